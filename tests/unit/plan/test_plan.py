"""kernelmux plan: every op of a model on any GPU, with the kernel and the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kernelmux.cli import main
from kernelmux.device import resolve_device
from kernelmux.errors import ConfigFileError, UsageError
from kernelmux.models.site import GEMM_OPS
from kernelmux.plan import CHOSEN, OUT_OF_SCOPE, OUTSIDE, REFUSED, UNREADABLE, UNREGISTERED, Plan, plan
from kernelmux.registry import discovery
from kernelmux.registry.packages import Packages

from .test_models import EXAMPLES, example

DEVICES = ("h100-sxm", "h200", "b200", "rtx-pro-6000-server", "gb10", "a100-sxm-80gb", "l40s")
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.json"))
EVERYTHING = Packages.assume_all()
PORTABLE = Packages({"torch": "2.9.0", "triton": "3.6.0"})  # so that the experts run on Triton, which reads tables

# Quantized experts that no kernel runs on some GPU even with every package: kernelmux has no kernel of its own for them
# yet. Whatever else is refused is a fault.
WITHOUT_A_PORTABLE_KERNEL = {("fused_moe", name) for name in ("int4_w4a16", "mxfp4")}

# The ops a plan may ask for. Until each is declared, its lines say so; when all are, none may be missing.
OPS = {
    "fused_moe", "rms_norm", "fused_add_rms_norm", "gated_rms_norm", "silu_and_mul", "gelu_and_mul",
    "gelu_tanh_and_mul", "relu2", "router_gemm", "topk", *GEMM_OPS.values(),
}  # fmt: skip


def planned(name: str, device: str, packages: Packages = EVERYTHING, **more: Any) -> Plan:
    return plan(EXAMPLES / f"{name}.json", device, packages=packages, **more)


def test_every_op_a_plan_asks_for_is_declared() -> None:
    missing = OPS - set(discovery.registry().names())
    assert not missing


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NAMES)
def test_each_example_on_each_gpu_is_planned_with_no_unexplained_op(name: str, device: str) -> None:
    made = planned(name, device, tp=2)
    here = resolve_device(device)
    assert made.lines
    for line in made.lines:
        where = f"{line.site.module} ({line.site.op}, {line.site.scheme}) on {device}"
        assert line.why.strip(), where
        assert line.state not in (UNREADABLE, UNREGISTERED), f"{where}: {line.why}"
        if line.state == CHOSEN:
            assert line.selection is not None
            assert line.selection.device == here
            assert line.selection.why
        elif line.state == REFUSED:  # every candidate and what would mend it
            assert (line.site.op, line.site.scheme.name) in WITHOUT_A_PORTABLE_KERNEL, f"{where}: {line.why}"
            assert "Remedy" in line.why or "must be asked for" in line.why, where
        else:
            assert line.state == OUTSIDE
            assert "kernelmux" in line.why, where


@pytest.mark.parametrize("name", ["qwen3-30b-a3b", "mixtral-8x7b", "nemotron-3-nano", "glm-4.6", "llama-3.1-8b"])
@pytest.mark.parametrize("device", DEVICES)
def test_every_op_of_an_unquantized_model_has_a_kernel_on_every_gpu(name: str, device: str) -> None:
    made = planned(name, device)
    assert [line.why for line in made.lines if line.state == REFUSED] == []


def test_a_gpu_nobody_listed_is_planned_with_portable_kernels_and_called_untrusted() -> None:
    made = planned("qwen3-30b-a3b", "sm_999")
    assert any("untrusted" in note for note in made.notes)
    assert {line.selection.backend for line in made.lines if line.selection} <= {"torch", "triton", "torch_compile"}


def test_attention_is_said_to_be_out_of_scope_and_plain_gemms_to_be_torchs() -> None:
    made = planned("llama-3.1-8b", "h100-sxm")
    assert OUT_OF_SCOPE in made.notes
    (line,) = [line for line in made.lines if line.site.module == "mlp.down_proj"]
    assert (line.state, line.kernel) == (OUTSIDE, "torch matmul")
    assert "torch matmul, not an op of kernelmux" in line.why


def test_a_dense_layer_of_a_scheme_without_an_op_says_which_have_one() -> None:
    (line,) = [line for line in planned("qwen3-8b-awq", "h100-sxm").lines if line.site.module == "mlp.down_proj"]
    assert line.state == OUTSIDE
    assert "no dense GEMM for int4_w4a16" in line.why


@pytest.mark.parametrize(
    ("name", "module", "op"),
    [
        ("deepseek-v3", "self_attn.o_proj", "fp8_gemm"),
        ("llama-3.3-70b-nvfp4", "mlp.down_proj", "nvfp4_gemm"),
        ("nemotron-3-nano", "mixer.norm", "gated_rms_norm"),
        ("nemotron-3-nano", "mixer.gate", "router_gemm"),
    ],
)
def test_a_layer_runs_the_op_of_its_scheme(name: str, module: str, op: str) -> None:
    (line,) = [line for line in planned(name, "h100-sxm").lines if line.site.module == module]
    assert line.site.op == op
    assert line.selection is not None
    assert line.selection.problem.scheme == line.site.scheme


def test_a_kernel_that_leaves_activations_alone_is_said_to_run_another_scheme() -> None:
    made = planned("llama-3.3-70b-nvfp4", "a100-sxm-80gb")
    (line,) = [line for line in made.lines if line.site.module == "mlp.down_proj"]
    assert line.scheme == "nvfp4, run as nvfp4_w4a16"
    assert line.to_json()["runs_as"] == "nvfp4_w4a16"
    (line,) = [line for line in planned("llama-3.3-70b-nvfp4", "b200").lines if line.site.module == "mlp.down_proj"]
    assert line.scheme == "nvfp4"


def test_what_a_rule_prefers_and_cannot_run_is_named_with_the_reason() -> None:
    made = planned("llama-3.1-8b", "h100-sxm", PORTABLE)
    (line,) = [line for line in made.lines if line.site.module == "mlp.act"]
    assert line.selection is not None
    assert line.selection.policy_rule is not None
    best = line.selection.policy_rule.prefer[0]
    assert best not in (line.selection.backend, line.selection.kernel)
    assert best in dict(line.passed_over())
    assert line.to_json()["passed_over"][0]["reason"]


def test_a_norm_over_heads_is_asked_for_as_many_rows_as_there_are_heads() -> None:
    made = planned("qwen3-30b-a3b", "h100-sxm", tp=2, tokens=(1, 64))
    (line,) = [line for line in made.lines if line.site.module == "self_attn.q_norm"]
    assert line.selection is not None
    assert dict(line.selection.problem.shape) == {"M": (16, 16 * 64), "H": 128}


def test_measured_shapes_need_no_tuning_and_others_come_with_the_command() -> None:
    assert planned("qwen3-30b-a3b", "h200", PORTABLE, tp=2).to_tune() == []  # a measured table ships for it
    made = planned("qwen3-30b-a3b", "l40s", PORTABLE, tp=4)
    (line,) = made.to_tune()
    (said,) = made.to_json()["to_tune"]
    assert line.site.op == "fused_moe"
    assert said["command"] == "kernelmux tune --shape E=128,N=192,K=2048,topk=8 --device l40s"
    assert said["config_source"] != "measured"


def test_the_command_names_the_activation_where_it_is_not_silu() -> None:
    (said,) = planned("nemotron-3-nano", "l40s", PORTABLE, tp=2).to_json()["to_tune"]
    assert said["command"].endswith("--device l40s --activation relu2")


def test_a_config_may_be_given_as_it_is() -> None:
    made = plan(example("llama-3.1-8b"), "h100-sxm", packages=EVERYTHING)
    assert made.to_json() == planned("llama-3.1-8b", "h100-sxm").to_json()


@pytest.mark.parametrize("tokens", [(0, 4), (8, 4)])
def test_a_range_of_tokens_that_is_none_is_a_usage_error(tokens: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="is no range"):
        planned("llama-3.1-8b", "h100-sxm", tokens=tokens)


def test_an_op_that_is_not_declared_yet_is_reported_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    names = tuple(name for name in discovery.registry().names() if name != "topk")
    monkeypatch.setattr(type(discovery.registry()), "names", lambda self: names)
    (line,) = [line for line in planned("mixtral-8x7b", "h100-sxm").lines if line.site.op == "topk"]
    assert line.state == UNREGISTERED
    assert "topk" in line.why


def test_a_quantization_nobody_knows_explains_each_layer_it_touches() -> None:
    made = plan(example("llama-3.1-8b", quantization_config={"quant_method": "quark"}), "h100-sxm", packages=EVERYTHING)
    assert {line.state for line in made.lines if line.site.module.endswith("_proj")} == {UNREADABLE}
    assert all("quark" in line.why for line in made.lines if line.state == UNREADABLE)
    assert made.model.method == "unknown"


def test_the_command_prints_a_line_an_op_and_a_reason_each(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(EXAMPLES / "deepseek-v3.json")
    assert main(["plan", path, "--device", "b200", "--tp", "8", "--assume-packages", "all"]) == 0
    out = capsys.readouterr().out
    assert "deepseek_v3: 61 layers, bfloat16, quantization fp8; one of 8 ranks on NVIDIA B200, M=1..4096" in out
    assert "self_attn.fused_qkv_a_proj_with_mqa" in out
    assert "n_group=8, topk_group=4" in out
    assert "[1] " in out
    assert OUT_OF_SCOPE in out
    assert max(map(len, out.split("\n[1]")[1].splitlines())) < 200


def test_the_commands_json_holds_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(EXAMPLES / "mixtral-8x7b.json")
    assert main(["plan", path, "--device", "h200", "--tokens", "64", "--assume-packages", "all", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads(json.dumps(planned("mixtral-8x7b", "h200", tokens=(64, 64)).to_json()))
    assert all(op["why"] for op in said["ops"])
    assert said["tokens"] == [64, 64]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.json", "--device", "h200"], "there is no file none.json"),
        ([str(EXAMPLES / "mixtral-8x7b.json"), "--device", "h201"], "unknown device"),
        ([str(EXAMPLES / "mixtral-8x7b.json"), "--device", "h200", "--tp", "3"], "--tp 3 does not divide"),
        ([str(EXAMPLES / "mixtral-8x7b.json"), "--device", "h200", "--tokens", "x"], "no count of tokens"),
        ([str(EXAMPLES / "mixtral-8x7b.json")], "--device"),
    ],
)
def test_a_wrong_word_is_a_usage_error(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *arguments]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert len(err.splitlines()) == 1


def test_a_file_that_is_no_config_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for content, words in (("[", "not JSON"), ("[]", "not a JSON object"), ("{}", "no one of num_hidden_layers")):
        path.write_text(content)
        with pytest.raises(ConfigFileError, match=words):
            plan(path, "h200")
