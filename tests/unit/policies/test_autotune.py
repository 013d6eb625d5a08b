"""When a library's own autotuner runs."""

from __future__ import annotations

import pytest

from kernelmux.errors import UsageError
from kernelmux.policies.autotune import _rules, should_autotune
from kernelmux.registry import BACKENDS, Kernel, discovery

from .toyworld import gpu, make_kernel


def kernel(backend: str, op: str = "fused_moe", package: str = "flashinfer") -> Kernel:
    return make_kernel(backend, op=op, name=f"{package}.{op}[{backend}]")


@pytest.mark.parametrize("device", ["h100-sxm", "b200", "b300", "jetson-thor", "rtx-5090", "gb10"])
def test_moe_runners_and_fp4_gemms_with_tactics_are_tuned_from_9_0_on(device: str) -> None:
    for backend in ("trtllm", "cutlass", "cutedsl"):
        assert should_autotune(kernel(backend), gpu(device)).rule == "moe-runner"
    for backend in ("cutlass", "cutedsl"):
        assert should_autotune(kernel(backend, "nvfp4_gemm"), gpu(device)).rule == "fp4-gemm"
    for backend in ("cudnn", "trtllm"):
        assert not should_autotune(kernel(backend, "nvfp4_gemm"), gpu(device))


@pytest.mark.parametrize("device", ["t4", "a100-sxm-80gb", "l40s", "mi300x", "cpu"])
def test_nothing_is_tuned_below_9_0(device: str) -> None:
    found = should_autotune(kernel("cutlass"), gpu(device))
    assert (found.yes, found.rule) == (False, "below-9-0")


def test_the_a2a_combination_that_overruns_its_buffer_is_never_tuned() -> None:
    found = should_autotune(kernel("cutedsl"), gpu("b200"), a2a="deepep")
    assert (found.yes, found.rule) == (False, "a2a-overruns-its-buffer")
    assert should_autotune(kernel("cutedsl"), gpu("b200"), a2a="flashinfer")
    assert should_autotune(kernel("cutlass"), gpu("b200"), a2a="deepep")


def test_only_the_target_of_a_speculative_pair_is_tuned() -> None:
    assert should_autotune(kernel("trtllm"), gpu("b200"), role="target")
    assert should_autotune(kernel("trtllm"), gpu("b200"), role="draft").rule == "only-the-target"
    with pytest.raises(UsageError, match="unknown role 'drafter'. Known: target, draft"):
        should_autotune(kernel("trtllm"), gpu("b200"), role="drafter")


def test_a_deterministic_run_is_not_tuned() -> None:
    assert should_autotune(kernel("cutlass"), gpu("b200"), deterministic=True).rule == "deterministic"


def test_our_own_kernels_are_tuned_by_tables_and_not_by_a_librarys_autotuner() -> None:
    for op in discovery.BUILTIN:
        for own in discovery.registry().kernels(op):
            if own.name.startswith("kernelmux."):
                assert should_autotune(own, gpu("b200")).rule == "no-autotuner"


def test_a_kernel_without_a_device_is_refused() -> None:
    with pytest.raises(UsageError, match="needs the device"):
        should_autotune(kernel("cutlass"))


def test_every_autotune_rule_says_why_with_evidence_and_speaks_of_what_there_is() -> None:
    for rule in (*_rules()[0], *_rules()[1]):
        assert rule["why"]
        assert rule["evidence"].startswith("https://")
        assert set(rule["if"].get("op", ())) <= set(discovery.BUILTIN)
        assert set(rule["if"].get("backend", ())) <= set(BACKENDS)
