"""A kernel that leaves x as it is, is judged as one: against what the op gives without an input scale."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kernelmux.contracts import nvfp4_math
from kernelmux.contracts.nvfp4 import GEMM
from kernelmux.contracts.nvfp4_judge import as_judged, fault
from kernelmux.registry import ANY, Kernel, NeedsPackage, Numerics, OnCapability
from kernelmux.trust.check import check
from kernelmux.trust.judge import judge
from kernelmux.trust.subject import as_tuple
from kernelmux.trust.subjects import subjects

from .world import choose

HERE = "tests.unit.trust.test_weight_only"


def prepare(device: Any = None, **weights: Any) -> Any:
    weights["input_scale"] = None
    return weights


def prepare_both(device: Any = None, **weights: Any) -> Any:
    return weights


def run(x: Any, weights: Any, *, config: Any = None, out_dtype: Any = None) -> Any:
    return nvfp4_math.gemm_reference(x, **weights).to(out_dtype or x.dtype)


def planted(name: str, preparing: str, *promises: str) -> Kernel:
    return Kernel(
        name=f"planted.{name}[triton]", op="nvfp4_gemm", backend="triton", load=f"{HERE}:run",
        prepare=f"{HERE}:{preparing}", numerics=Numerics(promises=frozenset(promises)),
        requirements=(OnCapability(ANY), NeedsPackage("torch")),
    )  # fmt: skip


WEIGHT_ONLY = planted("weight_only", "prepare", "w4a16")
BOTH = planted("both", "prepare_both", "w4a16", "w4a4")
PRETENDS = planted("pretends", "prepare_both", "w4a16")


def faults(kernel: Kernel) -> list[str]:
    """What is wrong with it at the problem's sizes and on every example, as the live matrix looks at it."""
    selection = choose(kernel, "nvfp4_gemm", quant="nvfp4")
    assert selection.declaration is kernel
    found, seen = [], 0
    for subject in subjects(selection):
        weights = selection.prepare(**subject.weights)
        given = subject.call(subject.own_m if subject.own_m is not None else 5, False, 0)
        got = as_tuple(run(given["x"], weights))
        finding = judge(got, subject.want(given), subject.limits)
        seen += 1
        found += [finding.fault] if finding.fault else []
    assert seen >= 3  # the sizes, and examples with an input scale
    return found


@pytest.mark.parametrize("kernel", [WEIGHT_ONLY, BOTH], ids=lambda kernel: kernel.name)
def test_a_right_kernel_is_right_on_every_call(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELMUX_TRUST", "off")
    assert faults(kernel) == []
    report = check(choose(kernel, "nvfp4_gemm", quant="nvfp4"))
    assert report.ok, report.reason


def test_quantizing_x_against_the_promise_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELMUX_TRUST", "off")
    assert faults(PRETENDS)


def test_the_judge_of_nvfp4_asks_too() -> None:
    calls: Any = nvfp4_math.gemm_examples()
    call = next(call for call in calls if call["input_scale"] is not None and call["x"].shape[0])
    plain = nvfp4_math.gemm_reference(**{**call, "input_scale": None})
    assert fault(GEMM, call, {"w4a16"}, plain) is None
    assert fault(GEMM, call, {"w4a4"}, plain) and fault(GEMM, call, {"w4a16", "w4a4"}, plain)
    assert as_judged({"w4a16"}, call)["input_scale"] is None and as_judged((), call) == call
    assert isinstance(call["input_scale"], torch.Tensor)
