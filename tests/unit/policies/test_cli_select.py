from __future__ import annotations

import json
from pathlib import Path

import pytest

from kernelmux.cli.app import run

SHAPE = "M=64,E=128,N=384,K=2048,topk=8"
FIRST_KEYS = "op device scheme backend kernel source evidence why rule".split()
DESIGN_KEYS = [*FIRST_KEYS, "config", "config_source", "conditions", "outranked", "rejected"]


def test_select_prints_the_object_of_the_design(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--device", "h100-sxm", "--quant", "none", "--dtype", "bf16", "--shape", SHAPE, "--activation", "silu"]
    assert run(["select", "fused_moe", *arguments, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [key for key in data if key != "config_grade"] == DESIGN_KEYS
    assert data["device"] == {"name": "h100-sxm", "capability": "9.0"}
    assert (data["backend"], data["source"], data["rule"]) == ("triton", "policy", "fused-moe-unquantized")
    assert set(data["config"]) == {"up", "down"}
    assert data["outranked"] == [
        {"backend": "torch", "kernel": "kernelmux.fused_moe[torch]", "by": "fused-moe-unquantized"}
    ]


def test_select_explains_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(["select", "fused_moe", "--device", "rtx-5090", "--shape", "M=1..4096,E=8", "--assume-packages", "all"])
        == 0
    )
    out = capsys.readouterr().out
    assert "chosen" in out
    assert "outranked" in out
    assert "M=1..4096" in out


def test_select_without_a_device_or_a_gpu_says_that_it_took_the_cpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kernelmux.errors import DeviceNotFound
    from kernelmux.policies import select

    real = select.resolve_device

    def no_gpu(spec: object) -> object:
        if spec == "cuda":
            raise DeviceNotFound("none")
        return real(spec)

    monkeypatch.setattr(select, "resolve_device", no_gpu)
    assert run(["select", "fused_moe", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["device"] == {"name": "cpu", "capability": None}
    assert "decided for the CPU" in said.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["fused_mo"], 2, "Did you mean fused_moe"),
        (["fused_moe", "--device", "h1000"], 2, "unknown device 'h1000'"),
        (["fused_moe", "--device", "cpu", "--quant", "fp9"], 2, "unknown quant 'fp9'"),
        (["fused_moe", "--device", "cpu", "--shape", "M=x"], 2, "--shape"),
        (["fused_moe", "--device", "cpu", "--shape", "Q=1"], 2, "no axis 'Q'"),
        (["fused_moe", "--device", "cpu", "--dtype", "bf17"], 2, "unknown dtype 'bf17'"),
        (["fused_moe", "--device", "cpu", "--activation", "swish"], 2, "unknown activation 'swish'"),
        (["fused_moe", "--device", "cpu", "--backend", "tritn"], 2, "Did you mean triton"),
        (["fused_moe", "--device", "cpu", "--backend", "triton"], 1, "What would work: torch"),
        (["rms_norm", "--device", "h100-sxm", "--quant", "mxfp4"], 1, "not defined for quant mxfp4"),
        (["fused_moe", "--device", "cpu", "--policy", "/no/such.yaml"], 1, "/no/such.yaml"),
    ],
)
def test_bad_input_is_one_sentence_and_the_right_exit_code(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["select", *arguments]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert words in said.err
    assert "Traceback" not in said.err


def test_a_policy_file_is_honoured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    rule = "{id: mine, when: {op: fused_moe}, prefer: [torch], why: I said so, evidence: 'https://example.org'}"
    path.write_text(f"rules:\n  - {rule}\n")
    assert run(["select", "fused_moe", "--device", "h100-sxm", "--policy", str(path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["backend"], data["rule"]) == ("torch", "mine")


def test_ops_lists_what_each_op_means_and_what_its_kernels_require(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ops", "--json"]) == 0
    listed = {op["name"]: op for op in json.loads(capsys.readouterr().out)["ops"]}
    moe = listed["fused_moe"]
    assert moe["axes"] == ["M", "E", "N", "K", "topk"]
    assert {"none"} <= set(moe["schemes"])
    assert {kernel["backend"] for kernel in moe["kernels"]} >= {"torch", "triton"}
    assert all(kernel["requirements"] for kernel in moe["kernels"])
    assert run(["ops", "fused_moe"]) == 0
    assert "fused_moe" in capsys.readouterr().out
    assert run(["ops", "nothing"]) == 2
