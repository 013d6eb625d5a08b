"""What a Selection of fused_moe does with calls that do not fit, and with kernels that may not be fetched any more."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import kernelmux as km
from kernelmux.errors import BadShape, DeviceNotFound, FrozenError, UsageError
from kernelmux.registry import Packages, epoch, frozen

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
from kernelmux.backends.triton import fused_moe as _  # noqa: E402, F401  (before TRITON_INTERPRET is set for a test)
from kernelmux.contracts.fused_moe_math import examples  # noqa: E402

SHAPE = dict(E=8, N=48, K=64, topk=2)


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    epoch.bump()
    yield
    frozen.set_frozen(False)
    epoch.bump()


def on(device: str, **changes: Any) -> Any:
    options = {"dtype": "bfloat16", "shape": SHAPE, "activation": "silu", "packages": Packages.assume_all(), **changes}
    return km.select_backend("fused_moe", device=device, **options)


def call() -> dict[str, Any]:
    return next(iter(examples("cpu", torch.bfloat16)))


def test_a_call_without_weights_says_where_they_come_from() -> None:
    given = call()
    with pytest.raises(UsageError, match=r"after x, what prepare\(w1=w1, w2=w2\) returned"):
        on("cpu")(given["x"], topk_weights=given["topk_weights"], topk_ids=given["topk_ids"])


def test_prepare_names_the_weight_that_is_missing() -> None:
    with pytest.raises(UsageError, match=r"lacks w2: it takes w1=w1, w2=w2"):
        on("cpu").prepare(w1=call()["w1"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: {"x": c["x"][:, :32]}, "x [37, 32]"),
        (lambda c: {"x": c["x"].float()}, "share one dtype"),
        (lambda c: {"activation": "swish"}, "unknown activation 'swish'"),
        (lambda c: {"activation": "relu2"}, "asks for w1 [8, 48, 64]"),
        (lambda c: {"topk_ids": c["topk_ids"][:3]}, "[M, topk] with M = 37"),
    ],
)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_operands_that_do_not_fit_are_named_before_anything_is_read(
    backend: str, change: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # lets tensors on the CPU reach the Triton kernel's own check
    given = call()
    selection = on("h100-sxm", backend=backend)
    weights = selection.prepare(w1=given.pop("w1"), w2=given.pop("w2"))
    given |= change(given)
    with pytest.raises(BadShape) as error:
        selection(given.pop("x"), weights, **given)
    assert words in str(error.value)


def test_tensors_on_the_cpu_do_not_reach_a_kernel_for_a_gpu() -> None:
    given = call()
    selection = on("h100-sxm")
    weights = selection.prepare(w1=given.pop("w1"), w2=given.pop("w2"))
    with pytest.raises(UsageError, match=r"for h100-sxm and x is on the CPU\. .* device=x\.device"):
        selection(given.pop("x"), weights, **given)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_kernel_for_a_gpu_cannot_be_warmed_without_one() -> None:
    with pytest.raises(DeviceNotFound, match="can be warmed only on a GPU"):
        km.warmup(on("h100-sxm"), ms=[1])


def test_warmup_of_something_else_says_what_it_takes() -> None:
    with pytest.raises(UsageError, match="3 is none of them"):
        km.warmup(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [[1], "M=4"])
def test_a_shape_that_is_no_mapping_is_a_usage_error(shape: Any) -> None:
    with pytest.raises(BadShape, match="maps axes to sizes"):
        on("cpu", shape=shape)


def test_nothing_is_looked_up_while_a_cuda_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    known = on("b200")
    cuda = SimpleNamespace(is_initialized=lambda: True, is_current_stream_capturing=lambda: True)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert on("b200") is known
    with pytest.raises(FrozenError, match=r"being captured and this would look up a tuned table.*km\.warmup\(\)"):
        on("b200", shape={**SHAPE, "N": 96})
    cuda.is_current_stream_capturing = lambda: False
    assert on("b200", shape={**SHAPE, "N": 96}).backend == "triton"


FROZEN = """
from types import SimpleNamespace
from triton import knobs
from kernelmux.backends.triton import jit_guard
from kernelmux.backends.triton.moe_compile import compile_gemm
from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.device import Capability
from kernelmux.errors import FrozenError
from kernelmux.registry import frozen
from kernelmux.tuning_configs.tile import Tile

seen = []
knobs.runtime.jit_cache_hook = lambda *, fn, **_: seen.append(fn.name)
jit_guard.install()
jit_guard.install()

def compiled(stages):  # a launch's own way into Triton's compiler
    return compile_gemm(MoeShape(8, 64, 64, 2), "up", Tile(16, 64, 64, 1, 4, stages), Capability(9, 0))

assert compiled(2) is not None
assert len(seen) == 1, "the hook that was there is still asked"
frozen.set_frozen(True)
try:
    print("compiled", compiled(3))
except FrozenError as error:
    print(error)
knobs.runtime.jit_cache_hook(fn=SimpleNamespace(module="inductor.kernels", name="fused_add"))
assert seen[-1] == "fused_add", "the kernels of others are not ours to stop"
"""


def test_after_freeze_no_kernel_of_ours_compiles_and_those_of_others_do() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", FROZEN], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "frozen and this would compile or load moe_gemm in a variant not used so far" in done.stdout
    assert "km.warmup(" in done.stdout
