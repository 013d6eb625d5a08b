"""`kernelmux compile`, with a kernel of one's own whose hook is here, and with the real norms."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kernelmux.backends.compile_job import CompileJob
from kernelmux.cli import app
from kernelmux.errors import CompileFailed
from kernelmux.registry import ANY, Kernel, OnCapability, VendorIn, discovery

done: list[tuple[str, str, dict[str, int], str]] = []


def jobs(device: Any, dtype: str, shape: dict[str, int]) -> Iterator[CompileJob]:
    """Two compilations, of which the second was in the cache; for float32 the first fails."""

    def first() -> bool:
        if dtype == "float32":
            raise CompileFailed("NVRTC 12.9 cannot compile toy:\ntoy.cu(3): error: no such thing", "the log")
        done.append((device.name, dtype, dict(shape), "first"))
        return True

    yield CompileJob("first", first)
    yield CompileJob("second", lambda: False)


TOY = Kernel(
    name="toy.relu2[triton]",
    op="relu2",
    backend="triton",
    load=f"{__name__}:jobs",
    compile=f"{__name__}:jobs",
    requirements=(OnCapability(ANY), VendorIn(frozenset({"nvidia"}))),
)


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """relu2 has one kernel with a hook, and those of other ops are as they are."""
    real = discovery.discover()

    class Registry:
        faults: tuple[str, ...] = ()

        def op(self, name: str) -> Any:
            return real.op(name)

        def ops(self) -> Any:
            return [real.op("relu2")]

        def kernels(self, name: str) -> Any:
            return (TOY,) if name == "relu2" else real.kernels(name)

    monkeypatch.setattr(discovery, "registry", Registry)
    monkeypatch.setenv("KERNELMUX_CACHE_DIR", str(tmp_path / "cache"))
    done.clear()


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = app.run(["compile", *args])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_every_dtype_and_shape_is_compiled_once(capsys: pytest.CaptureFixture[str]) -> None:
    args = ("relu2", "--device", "h100-sxm", "--dtype", "bf16", "--dtype", "fp16", "--dtype", "bfloat16")
    code, out, _ = run(capsys, *args, "--shape", "H=128", "--shape", "H=256", "--json")
    assert code == 0
    data = json.loads(out)
    assert data["device"] == {"name": "h100-sxm", "arch": "sm_90"}
    rows = data["kernels"]
    assert [(row["dtype"], row["shape"]["H"]) for row in rows] == [
        ("bfloat16", 128), ("float16", 128), ("bfloat16", 256), ("float16", 256),
    ]  # fmt: skip
    assert all((row["jobs"], row["compiled"], row["cached"]) == (2, 1, 1) for row in rows)
    assert ("h100-sxm", "float16", {"H": 256}, "first") in done
    assert data["failed"] == 0


def test_a_failure_is_told_and_the_rest_is_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--device", "sm120")
    assert code == 1
    assert "toy.relu2[triton]" in out
    assert "common sizes" in out
    assert "toy.cu(3): error: no such thing" in err
    assert {dtype for _, dtype, _, _ in done} == {"bfloat16", "float16"}
    code, out, _ = run(capsys, "--device", "sm120", "--json")
    assert code == 1
    (failed,) = (row["failed"] for row in json.loads(out)["kernels"] if row["failed"])
    assert failed[0]["what"] == "first"


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (
            ("relu2", "--device", "mi300x"),
            1,
            "nothing of relu2 can be compiled for mi300x. toy.relu2[triton]: it",
        ),
        (("topk", "--device", "h200"), 1, "no kernel of topk is compiled ahead of its first call"),
        (("relu3", "--device", "h200"), 2, "unknown op 'relu3'"),
        (("relu2", "--device", "h201"), 2, "unknown device 'h201'"),
        (("relu2", "--device", "h200", "--dtype", "int3"), 2, "unknown dtype 'int3'"),
        (("relu2", "--device", "h200", "--shape", "Q=3"), 2, "relu2 has no axis Q; it has"),
        (("relu2", "--device", "h200", "--shape", "H=1..9"), 2, "H must be one size, not a range"),
    ],
)
def test_what_cannot_be_done_is_said(
    args: tuple[str, ...], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, out, err = run(capsys, *args)
    assert (found, out) == (code, "")
    assert message in err


def test_without_a_gpu_a_device_must_be_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import kernelmux.device

    monkeypatch.setattr(kernelmux.device, "live_devices", list)
    code, _, err = run(capsys, "relu2")
    assert code == 1
    assert "no GPU answers on this machine. Say which one to compile for, as in --device h100-sxm." in err


def test_norms_are_compiled_once_for_a_gpu_that_is_not_here(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    args = ("rms_norm", "--device", "b200", "--dtype", "bfloat16", "--shape", "H=2880", "--json")
    first, again = (json.loads(run(capsys, *args)[1])["kernels"] for _ in range(2))
    ours = [row for row in first if "jit_cuda" in row["kernel"]]
    assert ours
    assert all(row["compiled"] and not row["cached"] and not row["failed"] for row in ours)
    kept = list((tmp_path / "cache" / "jit_cuda" / "sm_100").glob("*.cubin"))
    assert 0 < len(kept) <= sum(row["compiled"] for row in ours)
    assert all(row["cached"] and not row["compiled"] for row in again if "jit_cuda" in row["kernel"])
