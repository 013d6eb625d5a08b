"""The scheme of one layer, read from a model's own files: each format's own rule for the same key."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelmux.errors import KernelmuxError, UnknownScheme, UsageError
from kernelmux.quant import layer_scheme, layer_schemes
from kernelmux.quant.names import glob, regex

L3 = "model.layers.3"
QKV, O_PROJ, GATE_UP, DOWN = (
    f"{L3}.self_attn.qkv_proj",
    f"{L3}.self_attn.o_proj",
    f"{L3}.mlp.gate_up_proj",
    f"{L3}.mlp.down_proj",
)
EXPERTS = f"{L3}.mlp.experts"
ALL = (QKV, O_PROJ, GATE_UP, DOWN, EXPERTS)

FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
NVFP4 = {"quantization": {"quant_algo": "NVFP4", "group_size": 16}}


def packed(ignore: list[str], kind: str = "float", bits: int = 4, inputs: bool = True, **more: Any) -> dict[str, Any]:
    weights = {"type": kind, "num_bits": bits, "strategy": "tensor_group", "group_size": 16, **more}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": {"num_bits": bits} if inputs else None}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, "ignore": ignore}


def modelopt(*excluded: str, algo: str = "NVFP4", **more: Any) -> dict[str, Any]:
    return {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": algo, "exclude_modules": excluded, **more}}


def mixed(**layers: str) -> dict[str, Any]:
    named = {name.replace("__", "."): {"quant_algo": algo} for name, algo in layers.items()}
    return modelopt(algo="MIXED_PRECISION", quantized_layers=named)


@pytest.mark.parametrize("layer", ALL)
@pytest.mark.parametrize(
    ("config", "name"),
    [
        (None, "none"),
        ({"model_type": "llama"}, "none"),
        (FP8, "fp8_block"),
        (AWQ, "int4_w4a16"),
        (GPTQ, "int4_w4a16"),
        (NVFP4, "nvfp4"),
        (packed([]), "nvfp4"),
        (packed([], inputs=False), "nvfp4_w4a16"),
        (modelopt(algo="W4A16_NVFP4"), "nvfp4_w4a16"),
    ],
)
def test_without_a_skip_list_every_layer_is_quantized(config: Any, name: str, layer: str) -> None:
    assert layer_scheme(config, layer).name == name


@pytest.mark.parametrize("config", [FP8, AWQ, GPTQ, NVFP4, packed([])])
def test_embeddings_and_norms_are_never_quantized(config: Any) -> None:
    for name in ("model.embed_tokens", f"{L3}.input_layernorm", "model.norm", f"{L3}.mixer.conv1d"):
        assert layer_scheme(config, name).name == "none"


def test_the_head_is_quantized_only_where_the_format_says_so() -> None:
    assert layer_scheme(FP8, "lm_head").name == "none"
    assert layer_scheme(AWQ, "lm_head").name == "none"
    assert layer_scheme({**GPTQ, "lm_head": True}, "lm_head").name == "int4_w4a16"
    assert layer_scheme(packed([]), "lm_head").name == "nvfp4"
    assert layer_scheme(packed(["lm_head"]), "lm_head").name == "none"
    assert layer_scheme(modelopt("lm_head"), "lm_head").name == "none"


def test_fp8_entries_match_at_the_dots_of_a_path() -> None:
    config = {**FP8, "modules_to_not_convert": ["mlp.gate", f"{L3}.self_attn"]}
    assert layer_scheme(config, f"{L3}.mlp.gate").name == "none"
    assert layer_scheme(config, GATE_UP).name == "fp8_block"  # sglang PR 23467: mlp.gate is not mlp.gate_up_proj
    assert layer_scheme(config, QKV).name == "none"
    assert layer_scheme(config, "model.layers.30.self_attn.qkv_proj").name == "fp8_block"


def test_awq_entries_match_anywhere_in_a_path() -> None:
    config = {**AWQ, "modules_to_not_convert": ["layers.3", "self_attn"]}
    assert layer_scheme(config, DOWN).name == "none"
    assert layer_scheme(config, "model.layers.31.mlp.down_proj").name == "none"
    assert layer_scheme(config, "model.layers.4.mlp.down_proj").name == "int4_w4a16"
    assert layer_scheme(config, "model.layers.4.self_attn.qkv_proj").name == "none"


def test_the_same_entry_means_different_layers_in_awq_and_fp8() -> None:
    layer = "model.layers.31.mlp.down_proj"
    assert layer_scheme({**AWQ, "modules_to_not_convert": ["layers.3"]}, layer).name == "none"
    assert layer_scheme({**FP8, "modules_to_not_convert": ["layers.3"]}, layer).name == "fp8_block"


def test_modelopt_globs_match_the_path_or_one_part_of_it() -> None:
    config = modelopt("model.layers.3.self_attn*", "mtp*", "lm_head")
    assert layer_scheme(config, QKV).name == "none"
    assert layer_scheme(config, DOWN).name == "nvfp4"
    assert layer_scheme(config, "mtp.layers.0.mlp.experts").name == "none"
    assert layer_scheme(config, "language_model.model.layers.3.self_attn.o_proj").name == "none"


def test_modelopt_excludes_a_fused_mla_projection_by_its_parts_in_that_layer() -> None:
    config = modelopt("model.layers.3.self_attn.q_a_proj", "model.layers.3.self_attn.kv_a_proj_with_mqa")
    assert layer_scheme(config, f"{L3}.self_attn.fused_qkv_a_proj_with_mqa").name == "none"
    assert layer_scheme(config, "model.layers.4.self_attn.fused_qkv_a_proj_with_mqa").name == "nvfp4"


def test_compressed_tensors_entries_are_whole_paths_or_expressions() -> None:
    config = packed(["mlp", f"{L3}.mlp.down_proj", "re:.*self_attn.*"])
    assert layer_scheme(config, DOWN).name == "none"
    assert layer_scheme(config, GATE_UP).name == "nvfp4"  # "mlp" is no path of a layer
    assert layer_scheme(config, QKV).name == "none"
    assert layer_scheme(packed(["re:self_attn"]), QKV).name == "nvfp4"  # from the start of the path


def test_compressed_tensors_groups_are_chosen_by_path_before_class() -> None:
    config = packed([])
    config["config_groups"]["group_1"] = {
        "targets": ["re:.*down_proj$"],
        "weights": {"type": "float", "num_bits": 8, "strategy": "channel"},
        "input_activations": {"num_bits": 8},
    }
    assert layer_scheme(config, DOWN).name == "fp8_channel"
    assert layer_scheme(config, GATE_UP).name == "nvfp4"
    with pytest.raises(UsageError, match=r"experts.0.down_proj .*: fp8_channel"):
        layer_scheme(config, EXPERTS)


def test_compressed_tensors_without_a_group_for_a_layer_leaves_it_alone() -> None:
    config = packed([])
    config["config_groups"]["group_0"]["targets"] = ["re:.*experts.*"]
    assert layer_scheme(config, EXPERTS).name == "nvfp4"
    assert layer_scheme(config, QKV).name == "none"


def test_gptq_dynamic_rules_skip_and_change_layers() -> None:
    dynamic = {r"-:.*\.o_proj": {}, r"+:.*\.down_proj": {"bits": 8, "group_size": 64}, r".*layers\.9\.": {"bits": 8}}
    config = {**GPTQ, "dynamic": dynamic}
    assert layer_scheme(config, O_PROJ).name == "none"
    assert (layer_scheme(config, DOWN).name, layer_scheme(config, DOWN).group) == ("int8_w8a16", 64)
    assert layer_scheme(config, "model.layers.9.self_attn.qkv_proj").name == "int8_w8a16"
    assert layer_scheme(config, QKV).name == "int4_w4a16"


def test_gptq_modules_in_block_list_what_is_quantized() -> None:
    config = {**GPTQ, "modules_in_block_to_quantize": [["self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj"]]}
    assert layer_scheme(config, QKV).name == "int4_w4a16"
    assert layer_scheme(config, DOWN).name == "none"


def test_mxfp4_quantizes_experts_alone() -> None:
    config = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    assert layer_scheme(config, EXPERTS).name == "mxfp4"
    assert {layer_scheme(config, name).name for name in (QKV, O_PROJ, f"{L3}.mlp.router", "lm_head")} == {"none"}
    skipped = {**config, "modules_to_not_convert": ["model.layers.*.mlp.experts"]}
    assert layer_scheme(skipped, EXPERTS).name == "none"


MIXED = {
    "model__layers__0__self_attn__q_proj": "FP8",
    "model__layers__0__self_attn__k_proj": "FP8",
    "model__layers__0__self_attn__v_proj": "fp8",
    "model__layers__0__mlp__experts": "W4A16_NVFP4",
    "model__layers__1__mlp__experts__0__up_proj": "NVFP4",
    "model__layers__1__mlp__experts__0__down_proj": "NVFP4",
}


def test_modelopt_mixed_precision_gives_each_layer_its_own_scheme() -> None:
    config = mixed(**MIXED)
    assert layer_scheme(config, "model.layers.0.self_attn.qkv_proj").name == "fp8_tensor"
    assert layer_scheme(config, "model.layers.0.mlp.experts").name == "nvfp4_w4a16"
    assert layer_scheme(config, "model.layers.1.mlp.experts").name == "nvfp4"
    assert layer_scheme(config, "model.layers.0.self_attn.o_proj").name == "none"
    assert layer_scheme(config, "language_model.model.layers.1.mlp.experts").name == "nvfp4"


def test_modelopt_mixed_precision_may_name_its_layers_in_groups() -> None:
    fp8 = {"weights": {"num_bits": 8, "type": "float"}, "input_activations": {"num_bits": 8}, "targets": [O_PROJ]}
    config = {"quant_algo": "MIXED_PRECISION", "quant_method": "modelopt", "config_groups": {"group_0": fp8}}
    assert layer_scheme(config, O_PROJ).name == "fp8_tensor"
    assert layer_scheme(config, DOWN).name == "none"


SKIPPED_EXPERTS = [
    {**AWQ, "modules_to_not_convert": [EXPERTS]},
    {**AWQ, "modules_to_not_convert": ["layers.3."]},
    {
        **AWQ,
        "modules_to_not_convert": [f"{EXPERTS}.{i}.{part}_proj" for i in (0, 1) for part in ("gate", "up", "down")],
    },
    {**FP8, "modules_to_not_convert": [EXPERTS]},
    {**FP8, "ignored_layers": [L3]},
    {**FP8, "ignored_layers": [f"{EXPERTS}.{i}.{part}_proj" for i in range(4) for part in ("gate", "up", "down")]},
    {**FP8, "ignored_layers": [f"{EXPERTS}.{i}.w{part}" for i in range(4) for part in (1, 2, 3)]},
    {**FP8, "ignored_layers": [f"{EXPERTS}.{i}.{part}_proj" for i in range(4) for part in ("up", "down")]},
    modelopt(f"{EXPERTS}*"),
    modelopt(f"{EXPERTS}.*"),
    modelopt(f"{L3}.*"),
    packed([r"re:.*layers\.3\.mlp.experts.*"]),
    packed([EXPERTS]),
    packed([f"{EXPERTS}.{i}.{part}_proj" for i in range(4) for part in ("gate", "up", "down")]),
    packed([r"re:.*\.layers\.3\.mlp\.experts\.\d+\.w[123]$"]),
    {**GPTQ, "dynamic": {r"-:.*\.3\..*\.experts\.": {}}},
]


@pytest.mark.parametrize("config", SKIPPED_EXPERTS)
def test_a_skipped_expert_layer_is_unquantized_never_an_error(config: Any) -> None:
    assert layer_scheme(config, EXPERTS).name == "none"
    assert layer_scheme(config, "model.layers.4.mlp.experts").name != "none"


@pytest.mark.parametrize("name", ["mlp.gate", "gate", "block_sparse_moe.gate"])
def test_an_entry_for_the_router_leaves_experts_quantized(name: str) -> None:
    for config in (FP8, AWQ, GPTQ):
        assert layer_scheme({**config, "modules_to_not_convert": [name]}, EXPERTS).name != "none"
    assert layer_scheme(modelopt(f"*{name}"), EXPERTS).name == "nvfp4"
    assert layer_scheme(packed([rf"re:.*{re.escape(name)}$"]), EXPERTS).name == "nvfp4"


@pytest.mark.parametrize(
    "config",
    [
        {**FP8, "modules_to_not_convert": [f"{L3}.self_attn.q_proj"]},
        {**AWQ, "modules_to_not_convert": [f"{L3}.self_attn.q_proj"]},
        modelopt(f"{L3}.self_attn.q_proj"),
        modelopt("*.q_proj"),
        packed([f"{L3}.self_attn.q_proj"]),
        packed(["re:.*q_proj"]),
        {**GPTQ, "dynamic": {r"-:.*\.q_proj": {}}},
        mixed(model__layers__3__self_attn__k_proj="FP8", model__layers__3__self_attn__v_proj="FP8"),
    ],
)
def test_parts_of_a_fused_module_that_differ_are_named(config: Any) -> None:
    with pytest.raises(UsageError, match=r"parts of model.layers.3.self_attn.qkv_proj .*q_proj.*k_proj and v_proj"):
        layer_scheme(config, QKV)


def test_experts_that_differ_are_named() -> None:
    one = {**FP8, "modules_to_not_convert": [f"{EXPERTS}.5.{part}_proj" for part in ("gate", "up", "down")]}
    with pytest.raises(UsageError, match=r"experts\.0\.gate_proj.*fp8_block.*experts\.5\.gate_proj.*none"):
        layer_scheme(one, EXPERTS)
    with pytest.raises(UsageError, match=r"experts\.0\.down_proj.*none"):
        layer_scheme(packed(["re:.*experts.*down_proj"]), EXPERTS)


def test_a_checkpoint_that_holds_a_module_fused_is_asked_by_that_name() -> None:
    for config in (
        {**FP8, "modules_to_not_convert": [QKV]},
        {**AWQ, "modules_to_not_convert": ["qkv_proj"]},
        modelopt("*.qkv_proj"),
        packed(["re:.*qkv_proj"]),
        packed([QKV]),
    ):
        assert layer_scheme(config, QKV).name == "none"
        assert layer_scheme(config, GATE_UP).name != "none"


def test_a_fused_module_may_be_quantized_under_its_own_name() -> None:
    assert layer_scheme(mixed(model__layers__3__self_attn__qkv_proj="FP8"), QKV).name == "fp8_tensor"
    config = packed([])
    config["config_groups"]["group_0"]["targets"] = ["re:.*qkv_proj"]
    assert layer_scheme(config, QKV).name == "nvfp4"
    assert layer_scheme(config, GATE_UP).name == "none"


def test_an_entry_for_one_fused_module_does_not_hide_that_another_ones_parts_differ() -> None:
    config = {**FP8, "ignored_layers": ["model.layers.0.self_attn.qkv_proj", f"{L3}.self_attn.q_proj"]}
    assert layer_scheme(config, "model.layers.0.self_attn.qkv_proj").name == "none"
    with pytest.raises(UsageError, match="differently"):
        layer_scheme(config, QKV)


@pytest.mark.parametrize("wrapper", ["language_model.model.", "model.language_model."])
def test_a_layer_is_known_by_its_name_inside_a_multimodal_model(wrapper: str) -> None:
    config = modelopt(f"{wrapper}layers.3.self_attn*", "vision_tower*")
    assert layer_scheme(config, QKV).name == "none"
    assert layer_scheme(config, f"{wrapper}layers.3.self_attn.qkv_proj").name == "none"
    assert layer_scheme(config, "model.layers.4.self_attn.qkv_proj").name == "nvfp4"
    for listed in ({**FP8, "ignored_layers": [O_PROJ]}, packed([O_PROJ]), {**AWQ, "modules_to_not_convert": [O_PROJ]}):
        assert layer_scheme(listed, f"{wrapper}layers.3.self_attn.o_proj").name == "none"


def test_an_algorithm_nobody_knows_stops_its_own_layer_only() -> None:
    config = mixed(**MIXED, model__layers__3__mlp__down_proj="MXFP8")
    assert layer_scheme(config, "model.layers.0.mlp.experts").name == "nvfp4_w4a16"
    with pytest.raises(UnknownScheme, match="MXFP8"):
        layer_scheme(config, DOWN)


def test_quantization_inside_a_multimodal_config_is_found() -> None:
    assert layer_scheme({"model_type": "vl", "text_config": {"quantization_config": FP8}}, QKV).name == "fp8_block"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**FP8, "modules_to_not_convert": "lm_head"}, "modules_to_not_convert must be a list"),
        ({**FP8, "modules_to_not_convert": [3]}, "must hold names of modules"),
        ({**FP8, "weight_block_size": [0, 128]}, "weight_block_size"),
        ({**FP8, "weight_block_size": "axb"}, "weight_block_size"),
        ({**AWQ, "group_size": "x"}, "group_size must be"),
        (packed(["re:("]), "no regular expression"),
        (packed(["re:(a+)+$"]), "inside a repeat"),
        (packed(["re:(.|.)*X"]), "inside a repeat"),
        (packed(["re:(?:.?.?)*X"]), "inside a repeat"),
        (packed(["re:" + ".?" * 30 + "X"]), "30 options"),
        (packed(["re:" + ".*" * 7 + "b"]), "unbounded repeats"),
        (packed(["re:" + "a" * 2000]), "too long"),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": 3}}, "config_groups.g must be an object"),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": 3}}}, "g.weights must be"),
        ({**GPTQ, "dynamic": ["x"]}, "dynamic of gptq"),
        ({**GPTQ, "dynamic": {"+:x": 3}}, "must be an object"),
        (modelopt(algo="MIXED_PRECISION"), "names no layers"),
        (modelopt(algo="MIXED_PRECISION", quantized_layers=[1]), "quantized_layers must be"),
        (modelopt(algo="MIXED_PRECISION", quantized_layers={"a": 1}), "quant_algo"),
        ({"quantization_config": [1]}, "must be an object"),
        ([1], "is an object"),
    ],
)
def test_a_hostile_config_gets_one_clear_error(config: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        layer_scheme(config, QKV)


@pytest.mark.parametrize("config", [{"quant_method": "quark"}, {"quant_method": ["fp8"]}, {**GPTQ, "bits": 3}])
def test_an_unknown_format_is_an_unknown_scheme(config: Any) -> None:
    with pytest.raises(UnknownScheme):
        layer_scheme(config, QKV)


@pytest.mark.parametrize("layer", ["", "...", None, 3])
def test_a_layer_needs_a_name(layer: Any) -> None:
    with pytest.raises(UsageError, match="module path"):
        layer_scheme(FP8, layer)


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.mlp\.experts\.\d+\.(gate|up|down)_proj$",
        r".*vision.*|.*audio.*|.*mm_projector.*",
        r"^(language_model\.)?model\.layers\.(?:[0-9]|1[0-9])\..*",
        r".*mlp\.(gate|up|gate_up|down)_proj.*",
        r"model\.layers\.\d{1,2}\.self_attn\.[qkv]_proj",
    ],
)
def test_the_expressions_that_checkpoints_hold_are_taken(pattern: str) -> None:
    assert layer_scheme(packed([f"re:{pattern}"]), "model.layers.1.mixer.in_proj").name in ("nvfp4", "none")


@settings(deadline=2000)
@given(st.text(alphabet="ab.*+?()|{}2,X", max_size=14))
def test_no_expression_of_a_config_runs_long(pattern: str) -> None:
    try:
        compiled = regex(pattern, "ignore")
    except UsageError:
        return
    compiled.match("ab" * 40)


words = st.sampled_from(
    ["model", "layers", "3", "mlp", "self_attn", "experts", "gate", "gate_proj", "q_proj", "o_proj"]
)
paths = st.lists(words, min_size=1, max_size=6).map(".".join)
junk: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 300) | st.text(max_size=8) | paths,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | paths, inner, max_size=3),
    max_leaves=8,
)
KEYS = (
    "quant_method", "quantization", "quant_algo", "config_groups", "ignore", "modules_to_not_convert", "dynamic",
    "bits", "group_size", "weight_block_size", "quantized_layers", "exclude_modules", "weights",
    "input_activations", "targets",
)  # fmt: skip
METHODS = ("fp8", "awq", "gptq", "compressed-tensors", "modelopt", "mxfp4")


@given(st.sampled_from(METHODS), st.dictionaries(st.sampled_from(KEYS[1:]), junk, max_size=5), paths)
def test_any_config_gives_a_scheme_or_one_of_our_errors(method: str, config: dict[str, Any], layer: str) -> None:
    try:
        scheme = layer_scheme({"quant_method": method, **config}, layer)
    except KernelmuxError as error:
        assert len(str(error).splitlines()) == 1
        return
    assert scheme.name


@given(st.sampled_from([FP8, AWQ, GPTQ]), paths, st.lists(paths, max_size=4))
def test_a_layer_named_in_full_is_always_skipped(config: dict[str, Any], layer: str, others: list[str]) -> None:
    skipping = {**config, "modules_to_not_convert": [*others, layer]}
    assert layer_scheme(skipping, layer).name == "none"


@given(st.sampled_from(METHODS), st.lists(paths, max_size=4), paths)
def test_a_longer_skip_list_never_quantizes_more(method: str, entries: list[str], layer: str) -> None:
    config: dict[str, Any] = {
        "fp8": FP8, "awq": AWQ, "gptq": GPTQ, "compressed-tensors": packed([]), "modelopt": dict(NVFP4["quantization"]),
        "mxfp4": {"quant_method": "mxfp4"},
    }[method]  # fmt: skip
    names = [layer_schemes({**config, "ignore": entries[:n]}) for n in range(len(entries) + 1)]
    quantized = []
    for schemes in names:
        try:
            quantized.append(schemes.of(layer).name != "none")
        except UsageError:  # parts that differ
            return
    assert quantized == sorted(quantized, reverse=True)


@given(st.text(alphabet="ab.*", max_size=8), st.text(alphabet="ab.", max_size=12))
def test_the_glob_is_modelopts_expression(pattern: str, text: str) -> None:
    expression = "".join(".*" if letter == "*" else re.escape(letter) for letter in pattern)
    assert glob(pattern, text) == bool(re.fullmatch(expression, text))
