"""What a model runs, read from the fields of its config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelmux.errors import ConfigFileError, KernelmuxError, UsageError
from kernelmux.models.fields import ModelConfig
from kernelmux.models.implied import IMPLIED
from kernelmux.models.site import Model, Placed, Site
from kernelmux.models.walk import describe

EXAMPLES = Path(__file__).parents[3] / "examples" / "models"


def example(name: str, **changes: Any) -> dict[str, Any]:
    return {**json.loads((EXAMPLES / f"{name}.json").read_text()), **changes}


def model(name: str, tp: int = 1, **changes: Any) -> Model:
    return describe(ModelConfig(example(name, **changes)), tp)


def sites(described: Model, module: str) -> list[tuple[Site, str]]:
    found = [(placed.site, placed.where) for placed in described.placed if placed.site.module == module]
    assert found, f"no {module} in {[placed.site.module for placed in described.placed]}"
    return found


def site(described: Model, module: str) -> Site:
    ((found, _),) = sites(described, module)
    return found


def shape(described: Model, module: str) -> dict[str, int]:
    return dict(site(described, module).shape)


def test_a_dense_model_has_four_projections_a_layer_and_its_norms() -> None:
    llama = model("llama-3.1-8b")
    assert shape(llama, "self_attn.qkv_proj") == {"N": 6144, "K": 4096}
    assert shape(llama, "self_attn.o_proj") == {"N": 4096, "K": 4096}
    assert shape(llama, "mlp.gate_up_proj") == {"N": 28672, "K": 4096}
    assert shape(llama, "mlp.down_proj") == {"N": 4096, "K": 14336}
    assert site(llama, "mlp.act").op == "silu_and_mul"
    assert [(s.op, where) for s, where in sites(llama, "input_layernorm")] == [
        ("rms_norm", "0"),
        ("fused_add_rms_norm", "1-31"),
    ]
    assert shape(llama, "lm_head") == {"N": 128256, "K": 4096}
    assert not llama.unread


def test_tensor_parallel_ranks_divide_heads_and_widths_and_repeat_few_key_heads() -> None:
    llama = model("llama-3.1-8b", tp=16)
    assert shape(llama, "self_attn.qkv_proj") == {"N": (2 + 2) * 128, "K": 4096}
    assert shape(llama, "self_attn.o_proj") == {"N": 4096, "K": 256}
    assert shape(llama, "mlp.gate_up_proj") == {"N": 1792, "K": 4096}
    assert shape(llama, "lm_head")["N"] == 8016


def test_a_tp_that_does_not_divide_the_model_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"--tp 8 does not divide the number of attention heads 28"):
        model("qwen2.5-7b-gptq-int4", tp=8)


def test_norms_of_queries_and_keys_are_per_head_or_over_the_whole_layer() -> None:
    qwen = model("qwen3-30b-a3b", tp=2)
    assert (shape(qwen, "self_attn.q_norm"), site(qwen, "self_attn.q_norm").rows) == ({"H": 128}, 16)
    assert site(qwen, "self_attn.k_norm").rows == 2
    minimax = model("minimax-m2", tp=2)
    assert (shape(minimax, "self_attn.q_norm"), site(minimax, "self_attn.q_norm").rows) == ({"H": 3072}, 1)


def test_latent_attention_has_down_and_up_projections() -> None:
    deepseek = model("deepseek-v3", tp=8)
    assert shape(deepseek, "self_attn.fused_qkv_a_proj_with_mqa") == {"N": 1536 + 512 + 64, "K": 7168}
    assert shape(deepseek, "self_attn.q_b_proj") == {"N": 16 * 192, "K": 1536}
    assert shape(deepseek, "self_attn.kv_b_proj") == {"N": 16 * 256, "K": 512}
    assert shape(deepseek, "self_attn.o_proj") == {"N": 7168, "K": 16 * 128}


def test_the_first_layers_of_deepseek_are_dense_and_the_rest_have_shared_experts() -> None:
    deepseek = model("deepseek-v3", tp=8)
    assert sites(deepseek, "mlp.gate_up_proj")[0][1] == "0-2"
    ((experts, where),) = sites(deepseek, "mlp.experts")
    assert (dict(experts.shape), where) == ({"E": 256, "N": 256, "K": 7168, "topk": 8}, "3-60")
    assert shape(deepseek, "mlp.shared_experts.gate_up_proj") == {"N": 512, "K": 7168}


def test_routing_is_read_with_groups_scoring_bias_and_factor() -> None:
    assert dict(site(model("deepseek-v3"), "mlp.topk").options) == {
        "scoring": "sigmoid", "renormalize": True, "n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5,
        "bias": True,
    }  # fmt: skip
    assert dict(site(model("mixtral-8x7b"), "block_sparse_moe.topk").options) == {
        "scoring": "softmax",
        "renormalize": True,
    }
    assert dict(site(model("glm-4.6"), "mlp.topk").options)["scoring"] == "sigmoid"
    assert dict(site(model("minimax-m2"), "block_sparse_moe.topk").options)["bias"] is True


def test_nemotron_follows_its_hybrid_pattern() -> None:
    nano = model("nemotron-3-nano")
    pattern = example("nemotron-3-nano")["hybrid_override_pattern"]
    for module, letter in (("mixer.in_proj", "M"), ("mixer.qkv_proj", "*"), ("mixer.experts", "E")):
        (placed,) = [placed for placed in nano.placed if placed.site.module == module]
        assert placed.layers == tuple(i for i, kind in enumerate(pattern) if kind == letter)
    assert shape(nano, "mixer.in_proj") == {"N": 10304, "K": 2688}
    assert shape(nano, "mixer.out_proj") == {"N": 2688, "K": 4096}
    experts = site(nano, "mixer.experts")
    assert (dict(experts.shape), experts.activation) == ({"E": 128, "N": 1856, "K": 2688, "topk": 6}, "relu2")
    assert shape(nano, "mixer.shared_experts.up_proj") == {"N": 3712, "K": 2688}
    assert site(nano, "mixer.shared_experts.act").op == "relu2"
    assert (shape(nano, "mixer.norm"), dict(site(nano, "mixer.norm").options)) == ({"H": 4096}, {"n_groups": 8})


def test_the_same_pattern_as_a_list_gives_the_same_model() -> None:
    words = {"M": "mamba", "E": "moe", "*": "attention", "-": "mlp"}
    kinds = [words[letter] for letter in example("nemotron-3-nano")["hybrid_override_pattern"]]
    listed = model("nemotron-3-nano", hybrid_override_pattern=None, layers_block_type=kinds)
    assert listed == model("nemotron-3-nano")


def test_a_list_of_layers_counts_them() -> None:
    listed = model(
        "nemotron-3-nano", num_hidden_layers=None, hybrid_override_pattern=None, layers_block_type=["moe"] * 3
    )
    assert listed.layers == 3


def test_a_single_shared_expert_has_a_name_and_a_gate_of_its_own() -> None:
    qwen = model("qwen3-30b-a3b", shared_expert_intermediate_size=512)
    assert shape(qwen, "mlp.shared_expert.gate_up_proj") == {"N": 1024, "K": 2048}
    assert shape(qwen, "mlp.shared_expert_gate") == {"N": 1, "K": 2048}


def test_latent_experts_work_on_the_latent_size_between_two_projections() -> None:
    latent = model("nemotron-3-super-nvfp4", tp=2)
    assert shape(latent, "mixer.fc1_latent_proj") == {"N": 1024, "K": 4096}
    assert shape(latent, "mixer.experts") == {"E": 512, "N": 1344, "K": 1024, "topk": 22}
    assert shape(latent, "mixer.fc2_latent_proj") == {"N": 4096, "K": 1024}
    assert shape(latent, "mixer.gate") == {"N": 512, "K": 4096}


@pytest.mark.parametrize(
    ("name", "schemes"),
    [
        ("llama-3.1-8b-fp8", {"self_attn.qkv_proj": "fp8_tensor", "lm_head": "none"}),
        ("llama-3.3-70b-nvfp4", {"mlp.down_proj": "nvfp4", "lm_head": "none"}),
        ("qwen3-8b-awq", {"self_attn.qkv_proj": "int4_w4a16", "lm_head": "none"}),
        ("qwen2.5-7b-gptq-int4", {"mlp.gate_up_proj": "int4_w4a16"}),
        ("qwen3-30b-a3b-fp8", {"self_attn.qkv_proj": "fp8_block", "mlp.experts": "fp8_block", "mlp.gate": "none"}),
        ("qwen3-30b-a3b-nvfp4", {"self_attn.o_proj": "nvfp4", "mlp.experts": "nvfp4", "mlp.gate": "none"}),
        ("deepseek-r1-nvfp4", {"self_attn.o_proj": "none", "mlp.experts": "nvfp4", "mlp.down_proj": "nvfp4"}),
        ("kimi-k2-thinking", {"self_attn.o_proj": "none", "mlp.experts": "int4_w4a16", "mlp.down_proj": "none"}),
        ("minimax-m2", {"self_attn.qkv_proj": "fp8_block", "block_sparse_moe.experts": "fp8_block"}),
        ("gpt-oss-120b", {"self_attn.qkv_proj": "none", "mlp.experts": "mxfp4"}),
        (
            "nemotron-3-super-nvfp4",
            {"mixer.experts": "nvfp4", "mixer.in_proj": "fp8_tensor", "mixer.qkv_proj": "none", "lm_head": "none"},
        ),
    ],
)
def test_each_layer_has_the_scheme_of_its_own_entry(name: str, schemes: dict[str, str]) -> None:
    described = model(name)
    assert {module: site(described, module).scheme.name for module in schemes} == schemes


def test_parts_that_differ_stop_one_op_not_the_plan() -> None:
    odd = {**example("llama-3.1-8b-fp8")["quantization_config"], "ignore": ["model.layers.0.self_attn.q_proj"]}
    described = model("llama-3.1-8b-fp8", quantization_config=odd)
    found = {where: found for found, where in sites(described, "self_attn.qkv_proj")}
    assert "q_proj" in found["0"].trouble
    assert not found["1-31"].trouble


def test_a_swiglu_that_is_clamped_is_noted() -> None:
    assert "swiglu_limit 7" in site(model("gpt-oss-120b"), "mlp.experts").note


def test_dense_layers_between_experts_are_found_by_any_of_the_fields() -> None:
    def dense(**changes: Any) -> str:
        return sites(model("qwen3-30b-a3b", num_hidden_layers=8, **changes), "mlp.gate_up_proj")[0][1]

    assert dense(decoder_sparse_step=2) == "0,2,4,6"
    assert dense(mlp_only_layers=[1, 5]) == "1,5"
    assert dense(moe_layer_freq=[0, 1, 1, 1, 1, 1, 1, 0]) == "0,7"
    assert dense(first_k_dense_replace=3) == "0-2"
    assert dense(mlp_layer_types=["dense"] + ["sparse"] * 7) == "0"


def test_an_unknown_model_gets_what_could_be_read_and_a_sentence_on_the_rest() -> None:
    described = model("llama-3.1-8b", model_type="brand_new", num_attention_heads=None, vision_config={"x": 1})
    modules = {placed.site.module for placed in described.placed}
    assert "mlp.gate_up_proj" in modules
    assert "self_attn.qkv_proj" not in modules
    said = " ".join(described.unread)
    assert "no num_attention_heads" in said
    assert "'brand_new' is not one kernelmux has a description of" in said
    assert "vision tower" in said


def test_a_language_model_inside_a_multimodal_config_is_found() -> None:
    inner = example("qwen3-30b-a3b-fp8")
    quantization = inner.pop("quantization_config")
    wrapped = {"model_type": "vl", "vision_config": {"x": 1}, "text_config": inner, "quantization_config": quantization}
    described = describe(ModelConfig(wrapped))
    assert site(described, "mlp.experts").scheme.name == "fp8_block"
    assert site(described, "self_attn.qkv_proj").scheme.name == "fp8_block"


def test_modelopts_own_file_beside_the_config_is_read(tmp_path: Path) -> None:
    raw = example("deepseek-r1-nvfp4")
    quantization = raw.pop("quantization_config")
    (tmp_path / "config.json").write_text(json.dumps(raw))
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(quantization))
    assert site(describe(ModelConfig.read(tmp_path)), "mlp.experts").scheme.name == "nvfp4"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": None}, "no hidden_size"),
        ({"num_hidden_layers": 10**9}, "above 4096"),
        ({"num_hidden_layers": "x"}, "num_hidden_layers"),
        ({"hybrid_override_pattern": "M"}, "1 layers"),
        ({"hybrid_override_pattern": "?" * 32}, "is none of"),
    ],
)
def test_a_config_nothing_can_be_read_of_is_one_clear_error(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigFileError, match=words):
        model("llama-3.1-8b", **changes)


def test_layers_are_written_as_runs() -> None:
    assert Placed(site(model("llama-3.1-8b"), "mlp.act"), (0, 1, 2, 5, 7, 8)).where == "0-2,5,7-8"
    assert Placed(site(model("llama-3.1-8b"), "mlp.act"), tuple(range(0, 80, 2))).where == "0,2,..,78 (40)"


def test_every_family_described_has_an_example_or_shares_one() -> None:
    described = {example(path.stem)["model_type"] for path in EXAMPLES.glob("*.json")}
    assert described <= set(IMPLIED)


FIELDS = sorted({key for path in EXAMPLES.glob("*.json") for key in json.loads(path.read_text())} - {"architectures"})
junk: Any = (
    st.none() | st.booleans() | st.integers(-3, 600) | st.text(max_size=6) | st.lists(st.integers(0, 9), max_size=3)
)


@given(
    st.sampled_from(["deepseek-v3", "nemotron-3-nano", "gpt-oss-120b", "llama-3.1-8b"]),
    st.dictionaries(st.sampled_from(FIELDS), junk, max_size=4),
    st.sampled_from([1, 2, 8]),
)
def test_any_config_gives_a_model_or_one_of_our_errors(name: str, changes: dict[str, Any], tp: int) -> None:
    raw = example(name, num_hidden_layers=6, hybrid_override_pattern="MEM*E-" if "nemotron" in name else None)
    try:
        described = describe(ModelConfig({**raw, **changes}), tp)
    except KernelmuxError as error:
        assert len(str(error).splitlines()) == 1
        return
    assert all(size > 0 for placed in described.placed for _, size in placed.site.shape)


@given(st.sampled_from(["deepseek-v3", "glm-4.6", "mixtral-8x7b", "minimax-m2"]), st.sampled_from([1, 2, 4, 8]))
def test_the_ranks_together_hold_every_expert_once(name: str, tp: int) -> None:
    def experts(ranks: int) -> dict[str, int]:
        ((found),) = [p.site for p in model(name, tp=ranks).placed if p.site.op == "fused_moe"]
        return dict(found.shape)

    assert {**experts(tp), "N": experts(tp)["N"] * tp} == experts(1)
