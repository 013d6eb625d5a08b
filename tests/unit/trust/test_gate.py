"""When the gate looks and when it does not: on a GPU, after freeze(), in a capture, on the hot path, among threads."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

import kernelmux as km
from kernelmux.device import Device, resolve_device
from kernelmux.errors import FrozenError, MissingPackage
from kernelmux.policies import selection as selections
from kernelmux.policies import standing
from kernelmux.policies.policy import Policy
from kernelmux.policies.selection import Selection
from kernelmux.registry import epoch, frozen
from kernelmux.registry.discovery import registry
from kernelmux.store import quarantine
from kernelmux.trust import check, examples, gate, subject, subjects
from tests.unit.trust import planted
from tests.unit.trust.world import SHAPES, choose, preferring


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Device:
    """A GPU that is there, as far as the gate can tell; its tensors are on the CPU. The gate is as by default."""
    monkeypatch.setenv("KERNELMUX_TRUST", "on")
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # tensors on the CPU are let through
    for module in (subject, examples, check):
        monkeypatch.setattr(module, "place", lambda selection: torch.device("cpu"))
    monkeypatch.setattr(gate, "_still_alive", lambda *_: None)
    return replace(resolve_device("h200"), live=True, index=0, driver="580.1")


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Whether a CUDA graph is being captured: the first element."""
    state = [False]
    monkeypatch.setattr(frozen, "is_capturing", lambda: state[0])
    yield state
    state[0] = False


def quietly(selection: Selection) -> Selection:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        selection.check()
    return selection


# on a GPU


def test_on_a_gpu_kernels_are_checked_without_being_told_to(gpu: Device) -> None:
    assert quietly(choose(planted.kernel("twice"), device=gpu)).backend == "torch"
    assert quietly(choose(planted.kernel("right"), device=gpu)).kernel == "planted.right[triton]"
    assert {v.kernel: v.status for v in quarantine.book()} == {
        "planted.twice[triton]": "quarantined",
        "planted.right[triton]": "trusted",
    }, "torch's own kernels are trusted by construction"


def test_a_described_gpu_has_no_verdicts(gpu: Device) -> None:
    kernel = planted.kernel("twice")
    quietly(choose(kernel, device=gpu))
    assert choose(kernel, device=gpu).backend == "torch"
    assert choose(kernel, device="h200").kernel == kernel.name
    assert standing.doubts(resolve_device("h200")) is None


def test_who_asks_for_a_kernel_by_name_gets_it_unchecked(gpu: Device) -> None:
    kernel = planted.kernel("twice")
    assert quietly(choose(kernel, device=gpu, backend=kernel.name)).source == "override"
    with km.override("silu_and_mul", backend=kernel.name):
        assert quietly(choose(kernel, device=gpu)).kernel == kernel.name
    assert not planted.runs


def test_a_selection_reads_no_verdict_where_there_is_none(gpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "_fingerprint", lambda *_: pytest.fail("it cost a fingerprint"))
    assert standing.doubts(gpu) is None
    choose(planted.kernel("right"), device=gpu)


def test_only_kernels_with_a_verdict_cost_a_fingerprint(gpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    quietly(choose(planted.kernel("twice"), device=gpu))
    asked: list[str] = []
    whole = standing._fingerprint

    def counting(kernel: Any, device: Device) -> dict[str, str]:
        asked.append(kernel.name)
        return whole(kernel, device)

    monkeypatch.setattr(standing, "_fingerprint", counting)
    standing.forget()
    epoch.bump()
    choose(planted.kernel("twice"), device=gpu)
    assert asked == ["planted.twice[triton]"]


def test_what_cannot_be_checked_runs_with_a_warning(gpu: Device) -> None:
    selection = choose(planted.kernel("refuses"), device=gpu)
    with pytest.warns(RuntimeWarning, match=r"planted.refuses\[triton\] runs unchecked on NVIDIA H200: not these rows"):
        selection.check()
    assert selection.kernel == "planted.refuses[triton]"


def test_a_missing_package_is_no_fault_of_the_kernel(gpu: Device) -> None:
    kernel = planted.kernel("right").but(name="planted.absent[triton]", load="absent_package.kernels:run", source=None)
    selection = choose(kernel, device=gpu)
    with pytest.raises(MissingPackage, match="absent_package"):
        selection.check()
    assert not len(quarantine.book())


def test_too_little_memory_is_no_fault_of_the_kernel(gpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(subjects, "_small", full)
    selection = choose(planted.kernel("right"), device=gpu)
    with pytest.warns(RuntimeWarning, match="unchecked.*no memory for the check"):
        selection.check()
    assert selection.kernel == "planted.right[triton]"


# after freeze() and in a capture


def test_after_freeze_the_best_trusted_kernel_is_chosen(gpu: Device) -> None:
    unchecked, trusted = planted.kernel("twice"), planted.kernel("right")
    quietly(choose(trusted, device=gpu))
    registry().add(unchecked)
    epoch.bump()
    policy = preferring("silu_and_mul", unchecked.name, trusted.name)
    question: dict[str, Any] = dict(device=gpu, dtype="bfloat16", shape={"M": 8, "H": 192}, policy=policy)
    assert km.select_backend("silu_and_mul", **question).kernel == unchecked.name
    km.freeze()
    chosen = km.select_backend("silu_and_mul", **{**question, "shape": {"M": 9, "H": 192}})
    assert chosen.kernel == trusted.name
    (refused,) = [one for one in chosen.rejected if one.kernel == unchecked.name]
    assert refused.code == "ungated"
    assert "km.warmup()" in refused.remedy


def test_after_freeze_a_selection_made_before_falls_back_too(gpu: Device) -> None:
    held = choose(planted.kernel("twice"), device=gpu)
    km.warmup("silu_and_mul", device=gpu, dtype="bfloat16", backend="kernelmux.silu_and_mul[torch, cast_before_mul]")
    km.freeze()
    held.check()
    assert held.backend == "torch"
    assert not planted.runs


def test_where_nothing_is_trusted_the_error_names_warmup(gpu: Device) -> None:
    kernel = planted.kernel("right")
    choose(kernel, device=gpu, shape={"M": 1, "H": 192})
    km.freeze()
    with pytest.raises(FrozenError, match=r"planted\.right\[triton\].*km\.warmup\(\)"):
        choose(kernel, device=gpu, shape={"M": 2, "H": 192}, policy=pinned(kernel.name))


def pinned(name: str) -> Policy:
    from kernelmux.policies.rule import read_rule

    rule = {
        "id": "pinned",
        "when": {"op": "silu_and_mul"},
        "pin": name,
        "why": "planted",
        "evidence": "https://example.org",
    }
    return Policy((read_rule(rule),))


def test_warmup_checks_so_that_a_frozen_process_keeps_the_kernel(gpu: Device) -> None:
    kernel = planted.kernel("right")
    registry().add(kernel)
    policy = preferring("silu_and_mul", kernel.name)
    question: dict[str, Any] = dict(device=gpu, dtype="bfloat16", policy=policy)
    (warm,) = km.warmup("silu_and_mul", shape={"M": 8, "H": 192}, **question)
    ran = planted.runs["right"]
    km.freeze()
    later = km.select_backend("silu_and_mul", shape={"M": 300, "H": 192}, **question)
    assert later.kernel == warm.kernel == kernel.name
    later(torch.zeros(2, 384, dtype=torch.bfloat16))
    assert planted.runs["right"] == ran + 1


def test_in_a_capture_an_unchecked_kernel_gives_way_and_comes_back_after_warmup(
    gpu: Device, capture: list[bool]
) -> None:
    kernel = planted.kernel("right", capturable=True)
    registry().add(kernel)
    torch_kernel = "kernelmux.silu_and_mul[torch, cast_before_mul]"
    question: dict[str, Any] = dict(
        device=gpu, dtype="bfloat16", shape={"M": 8, "H": 192}, policy=preferring("silu_and_mul", kernel.name, "torch")
    )
    km.warmup("silu_and_mul", device=gpu, dtype="bfloat16", backend=torch_kernel)
    held = km.select_backend("silu_and_mul", **question)
    capture[0] = True
    held.check()
    assert held.kernel == torch_kernel
    cold = km.select_backend("silu_and_mul", **question)
    assert cold.kernel == torch_kernel
    capture[0] = False
    assert not planted.runs
    (warm,) = km.warmup("silu_and_mul", **question)
    assert warm.kernel == kernel.name
    capture[0] = True
    assert km.select_backend("silu_and_mul", **question).kernel == kernel.name
    assert held.kernel == torch_kernel, "what was settled stays"


def test_in_a_capture_a_kernel_that_cannot_be_captured_is_no_substitute(gpu: Device, capture: list[bool]) -> None:
    kernel = planted.kernel("gate_and_up_swapped", "fused_moe", promises=frozenset())
    choose(kernel, "fused_moe", device=gpu, activation="silu")
    capture[0] = True
    with pytest.raises(FrozenError, match=r"gate_and_up_swapped.*km\.warmup"):
        choose(kernel, "fused_moe", device=gpu, activation="silu", shape={**SHAPES["fused_moe"], "M": 5})


# the callable face


def test_a_call_of_an_op_is_checked_and_served_by_the_next_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = planted.kernel("nan_at_8")
    registry().add(kernel)
    policy = preferring("silu_and_mul", kernel.name, "torch")
    monkeypatch.setattr(Policy, "builtin", classmethod(lambda cls, op: policy))
    x = torch.randn(8, 384, dtype=torch.bfloat16)
    with torch.no_grad(), pytest.warns(RuntimeWarning, match="quarantined"):
        first = km.ops.silu_and_mul(x)
    assert torch.isfinite(first).all()
    ran = planted.runs["nan_at_8"]
    with torch.no_grad():
        out = torch.empty_like(first)
        assert km.ops.silu_and_mul(x, out=out) is out
        assert torch.equal(km.ops.silu_and_mul(x), first)
        assert torch.equal(torch.ops.kernelmux.silu_and_mul(x), first)
    assert planted.runs["nan_at_8"] == ran


def test_a_call_after_its_check_knows_nothing_of_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    selection = choose(planted.kernel("right"))
    x = torch.randn(8, 384, dtype=torch.bfloat16)
    selection(x)

    def never(*_: Any) -> None:
        pytest.fail("the gate was asked again")

    for name in ("gate", "mode", "verdict", "applies"):
        monkeypatch.setattr(standing, name, never)
    monkeypatch.setattr(selections, "prepare_hooks", [never])
    monkeypatch.setattr(quarantine, "book", never)
    selection(x)
    selection.check()
    assert choose.__module__  # what follows is the cached answer
    question: dict[str, Any] = dict(
        device="cpu", dtype="bfloat16", shape={"M": 8, "H": 192}, backend="planted.right[triton]"
    )
    monkeypatch.undo()
    held = km.select_backend("silu_and_mul", **question)
    monkeypatch.setattr(standing, "doubts", never)
    assert km.select_backend("silu_and_mul", **question) is held


def test_threads_that_come_at_once_check_once() -> None:
    selection, other = choose(planted.kernel("twice")), choose(planted.kernel("twice"), shape={"M": 9, "H": 192})
    start = threading.Barrier(6)
    kernels, errors = [], []

    def use(which: Selection) -> None:
        start.wait()
        try:
            which.check()
            kernels.append(which.kernel)
        except Exception as error:
            errors.append(error)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        threads = [threading.Thread(target=use, args=(which,)) for which in (selection, other) * 3]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors
    assert set(kernels) == {selection.kernel}
    assert selection.backend == other.backend == "torch"
    assert planted.runs["twice"] == 1


# what the caller has switched on


def test_the_callers_modes_do_not_reach_the_check() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class Refuses(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            raise AssertionError("the check was seen by a mode")

    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    seed = torch.random.get_rng_state()
    try:
        with FakeTensorMode(), Refuses(), torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            choose(planted.kernel("right")).check()
        with torch.device("meta"), torch.enable_grad():
            assert quietly(choose(planted.kernel("twice"))).backend == "torch"
    finally:
        torch.set_default_dtype(default)
    assert [v.status for v in quarantine.book() if v.kernel.startswith("planted")] == ["trusted", "quarantined"]
    assert torch.equal(seed, torch.random.get_rng_state()), "the caller's random numbers are untouched"


def test_a_selection_can_be_sent_to_another_process_and_copied() -> None:
    import copy
    import pickle

    assert pickle.dumps(km.select_backend("fused_moe", device="h200"))
    shape = {"M": 2, "H": 192}
    selection = km.select_backend("silu_and_mul", device="cpu", dtype="bfloat16", backend="torch", shape=shape)
    copied = copy.deepcopy(selection)
    assert copied.kernel == selection.kernel
    assert copied(torch.zeros(2, 384, dtype=torch.bfloat16)).shape == (2, 192)


def test_an_interrupted_check_leaves_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    selection = choose(planted.kernel("right"))
    monkeypatch.setattr(check, "_twice", interrupted)
    with pytest.raises(KeyboardInterrupt):
        selection.check()
    assert not len(quarantine.book())
    monkeypatch.undo()
    monkeypatch.setenv("KERNELMUX_TRUST", "strict")
    selection.check()
    assert selection.kernel == "planted.right[triton]"


def test_importing_what_decides_imports_no_torch() -> None:
    import subprocess

    rooms = "kernelmux.policies.select, kernelmux.store.quarantine, kernelmux.trust.gate"
    code = f"import sys, {rooms}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
