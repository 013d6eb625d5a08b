"""Who takes part in a race of one small op: kernelmux's kernels, their peers, and plain copies as the ceiling.

A contestant is built for given sets of arguments and answers with ``call(r)``: launch on set r, without a check and as
cheaply as it can. What ``call`` returns is its result; None means that the results lie in the set's own outs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from ..device import Device
from ..policies.resolve import complete
from ..quant import Scheme
from ..registry import Kernel, Op, Problem, Rejected
from ..registry.lazy import load
from ..registry.packages import Packages
from .small_point import Inputs, Point, bytes_moved

Call = Callable[[int], Any]
OURS, PEER, COPY = "kernel", "peer", "copy"
_WORD = 4  # bytes
_serial = count()


@dataclass(frozen=True, slots=True)
class Contestant:
    """``build(sets)`` makes its call, and raises what stands in its way. ``kind``: kernel, peer or copy."""

    name: str
    backend: str
    kind: str
    build: Callable[[Sequence[Inputs]], Call]
    kernel: Kernel | None = None


def kernels(
    op: Op, point: Point, device: Device, declared: Iterable[Kernel], packages: Packages | None = None
) -> tuple[list[Contestant], dict[str, str]]:
    """The declared kernels that can run the point, and why the others cannot, by name."""
    packages = packages if packages is not None else Packages.installed()
    asked = Problem(op.name, Scheme.of(None), point.dtype, {"M": point.m, "H": point.h})
    problem, _ = complete(op, device, asked)
    found, refused = [], {}
    for kernel in declared:
        decision = kernel.judge(op, device, packages, problem)
        if isinstance(decision, Rejected):
            refused[kernel.name] = decision.reason
        else:
            found.append(Contestant(kernel.name, kernel.backend, OURS, _kernel(op, kernel), kernel))
    return found, refused


def _kernel(op: Op, kernel: Kernel) -> Callable[[Sequence[Inputs]], Call]:
    def build(sets: Sequence[Inputs]) -> Call:
        if kernel.bind is not None:
            lists = [(*inputs.tensors, *inputs.outs) for inputs in sets]
            bound = load(kernel.bind, f"running {kernel.name}")(sets[0].scalars, *lists[0])
            return lambda r: bound(*lists[r])
        run = load(kernel.load, f"running {kernel.name}")
        calls = [run_arguments(op, inputs) for inputs in sets]
        return lambda r: run(calls[r][0], calls[r][1], config=None, **calls[r][2])

    return build


def run_arguments(op: Op, inputs: Inputs) -> tuple[Tensor, Any, dict[str, Any]]:
    """(x, weights, the rest by name, the outs among it) of a kernel's ``run``."""
    rest = dict(inputs.given)
    x = rest.pop(next(iter(rest)))
    weights = [rest.pop(name) for name in op.weights]
    rest.update(zip(op.outs, inputs.outs, strict=False))
    return x, (weights[0] if len(weights) == 1 else tuple(weights) or None), rest


# -- peers


def compiled(op: Op, mode: str = "default") -> Contestant:
    """torch.compile of the contract's own formula for exactly this shape, rounded once at its end."""
    reference = load(op.reference)

    def build(sets: Sequence[Inputs]) -> Call:
        dtypes = tuple(out.dtype for out in sets[0].outs)
        names, scalars = tuple(sets[0].given), sets[0].scalars
        rows = [[value for value in inputs.given.values() if isinstance(value, Tensor)] for inputs in sets]
        tensors = tuple(name for name in names if isinstance(sets[0].given[name], Tensor))
        left_out = {name: None for name in names if sets[0].given[name] is None}

        def formula(*given: Tensor) -> tuple[Tensor, ...]:
            made = reference(**dict(zip(tensors, given, strict=True)), **left_out, **scalars)
            return tuple(
                part.to(dtype) for part, dtype in zip(made if isinstance(made, tuple) else (made,), dtypes, strict=True)
            )

        # torch.compile counts compilations by code object and gives up at 8: each shape gets one of its own.
        code = formula.__code__.replace(co_name=f"formula_{next(_serial)}")
        own = FunctionType(code, formula.__globals__, code.co_name, None, formula.__closure__)
        run = torch.compile(own, fullgraph=True, dynamic=False, mode=None if mode == "default" else mode)
        return lambda r: run(*rows[r])

    suffix = "" if mode == "default" else f", {mode}"
    return Contestant(f"torch.compile, this shape{suffix}", "torch_compile", PEER, build)


def flashinfer(op: Op) -> Contestant | None:
    """FlashInfer's own function, called directly; None where it has none of this op."""
    if op.name in ("silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul"):
        return Contestant("flashinfer, direct", "flashinfer", PEER, _flashinfer_activation(op.name))
    norm = {"rms_norm": _flashinfer_norm, "fused_add_rms_norm": _flashinfer_add, "rms_norm_fp8": _flashinfer_fp8}
    build = norm.get(op.name)
    return Contestant("flashinfer, direct", "flashinfer", PEER, build) if build else None


def _flashinfer_activation(name: str) -> Callable[[Sequence[Inputs]], Call]:
    def build(sets: Sequence[Inputs]) -> Call:
        import flashinfer.activation

        function = getattr(flashinfer.activation, name)
        pairs = [(inputs.given["x"], inputs.outs[0]) for inputs in sets]
        return lambda r: function(pairs[r][0], out=pairs[r][1])

    return build


def _flashinfer_norm(sets: Sequence[Inputs]) -> Call:
    import flashinfer.norm

    gemma = sets[0].given.get("weight_bias", 0.0) == 1.0
    function = flashinfer.norm.gemma_rmsnorm if gemma else flashinfer.norm.rmsnorm
    eps = sets[0].given["eps"]
    return lambda r: function(sets[r].given["x"], sets[r].given["weight"], eps, out=sets[r].outs[0])


def _flashinfer_add(sets: Sequence[Inputs]) -> Call:
    """It works in place, so it gets copies of its own."""
    import flashinfer.norm

    gemma = sets[0].given.get("weight_bias", 0.0) == 1.0
    function = flashinfer.norm.gemma_fused_add_rmsnorm if gemma else flashinfer.norm.fused_add_rmsnorm
    eps = sets[0].given["eps"]
    own = [(inputs.given["x"].clone(), inputs.given["residual"].clone()) for inputs in sets]

    def call(r: int) -> tuple[Tensor, Tensor]:
        function(*own[r], sets[r].given["weight"], eps)
        return own[r]

    return call


def _flashinfer_fp8(sets: Sequence[Inputs]) -> Call:
    import flashinfer.norm

    if sets[0].given["scale"] is None:
        raise NotImplementedError("FlashInfer quantizes with a given scale only")
    if sets[0].given.get("weight_bias", 0.0):
        raise NotImplementedError("FlashInfer has no such norm with a weight of 1 + w")
    eps = sets[0].given["eps"]

    def call(r: int) -> tuple[Tensor, Tensor]:
        given = sets[r].given
        flashinfer.norm.rmsnorm_quant(sets[r].outs[0], given["x"], given["weight"], given["scale"], eps)
        return sets[r].outs[0], given["scale"]

    return call


# -- the ceiling


def copies() -> list[Contestant]:
    """Copies of as many bytes as the op moves: torch's, Triton's, and one that reads and writes in the op's ratio."""
    return [
        Contestant("copy, torch", "torch", COPY, _torch_copy),
        *(
            Contestant(f"copy, triton {words}x{warps}", "triton", COPY, _stream(words, warps, even=True))
            for words, warps in ((1024, 4), (4096, 8))
        ),
        Contestant("stream, triton", "triton", COPY, _stream(2048, 8, even=False)),
    ]


def _torch_copy(sets: Sequence[Inputs]) -> Call:
    half = -(-sum(bytes_moved(sets[0])) // (2 * _WORD))
    pairs = [_words(sets[0], half, half) for _ in sets]
    return lambda r: pairs[r][1].copy_(pairs[r][0])


def _stream(block: int, warps: int, *, even: bool) -> Callable[[Sequence[Inputs]], Call]:
    def build(sets: Sequence[Inputs]) -> Call:
        from .small_copy_kernels import stream_kernel

        read, written = bytes_moved(sets[0])
        reads = 1 if even else max(1, round(read / max(1, written)))
        count = max(1, -(-(read + written) // (_WORD * (reads + 1))))
        pairs = [_words(sets[0], reads * count, count) for _ in sets]
        grid = (-(-count // block),)

        def call(r: int) -> None:
            stream_kernel[grid](*pairs[r], count, READS=reads, BLOCK=block, num_warps=warps)

        return call

    return build


def _words(inputs: Inputs, read: int, written: int) -> tuple[Tensor, Tensor]:
    place = inputs.outs[0].device
    source = torch.randint(1, 2**31 - 1, (read,), dtype=torch.int32, device=place)
    return source, torch.empty(written, dtype=torch.int32, device=place)
