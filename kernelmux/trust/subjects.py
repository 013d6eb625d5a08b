"""What a kernel is checked on: calls of its op at sizes of the problem's own kind, and what they should give.

Everything is drawn on the device from a seed of its own. Imported only where torch is about to be used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..measure.small_point import _scalar, arguments, small_ops, widening
from ..policies.selection import Selection
from ..registry.lazy import load
from .examples import examples
from .experts import expert_caps, fused_moe
from .judge import Limits
from .subject import (
    LARGEST_X,
    MOST_ELEMENTS,
    ODD_FLOOR,
    QUANTIZED_FLOOR,
    Draw,
    Subject,
    as_tuple,
    drawing,
    global_scale,
    limits_of,
    scaled,
)

_CAPS = {"N": 1024, "K": 1024, "E": 512, "H": 16384, "topk": 64}
_USUAL = {"N": 256, "K": 512, "E": 16, "H": 1024, "topk": 2}


def subjects(selection: Selection) -> Iterator[Subject]:
    """Ways to check this kernel, the best first: at sizes like the problem's, then at those sizes, then on examples."""
    op, problem = selection.op, selection.problem
    given = {axis: size for axis, size in problem.shape.items() if axis != op.token_axis and isinstance(size, int)}
    whole = {axis: given.get(axis) or _USUAL.get(axis, 64) for axis in op.axes if axis != op.token_axis}
    caps = expert_caps(whole) if op.name == "fused_moe" else _CAPS
    small = {axis: scaled(size, caps.get(axis, 1024)) for axis, size in whole.items()}
    build = _BUILDERS.get(op.name) or (_small if small_ops([op]) else None)
    if build is not None:
        for sizes in (small, whole) if small != whole else (small,):
            if sizes.get("N", 1) * sizes.get("K", 1) > MOST_ELEMENTS:
                break
            try:
                made = build(selection, sizes)
            except (UsageError, LookupError):  # the op has a scheme or an argument that nobody draws here
                break
            if made is not None:
                yield made
    yield from examples(selection)


# norms and activations: rows of one hidden size


def _small(selection: Selection, sizes: Mapping[str, int]) -> Subject:
    op, draw = selection.op, drawing(selection)
    reference, check = load(op.reference), load(op.check) if op.check else None
    width = sizes["H"] * widening(op)
    weights = {name: draw.normal(sizes["H"], mean=1.0, scale=0.25).to(draw.dtype) for name in op.weights}

    def call(m: int, mixed: bool, nth: int) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for kind, name, default in arguments(op):
            if name in weights:
                continue
            if kind == "Tensor" and name.endswith("scale"):
                made[name] = torch.tensor(64.0 / (448 * 6), device=draw.device, dtype=torch.float32)
            elif kind == "Tensor":
                made[name] = draw.rows(m, width, mixed)
            elif kind == "Tensor?":  # a given scale at every other call
                made[name] = torch.tensor(0.05, device=draw.device, dtype=torch.float32) if nth % 2 else None
            else:
                made[name] = (default or "").strip("'\"") if kind == "str" else _scalar(kind, default)
        return made

    if check is not None:
        check(**call(2, False, 0), **weights)
    limits = limits_of(op, selection.problem, ODD_FLOOR if op.decoded else 0.0)
    return Subject(sizes, weights, call, lambda given: as_tuple(reference(**given, **weights)), limits)


# matrix products


def _router_gemm(selection: Selection, sizes: Mapping[str, int]) -> Subject:
    draw, op = drawing(selection), selection.op
    weight = draw.uneven(sizes["N"], sizes["K"], scale=sizes["K"] ** -0.5).to(draw.dtype)
    return _gemm(selection, sizes, draw, {"w": weight}, lambda nth: {}, limits_of(op, selection.problem))


def _gemm(
    selection: Selection, sizes: Mapping[str, int], draw: Draw, weights: Mapping[str, Tensor],
    options: Callable[[int], dict[str, Any]], limits: Limits, judged: Mapping[str, Any] | None = None,
) -> Subject:  # fmt: skip
    """x [M, K] times weights; ``judged``: what the reference takes in their place."""
    reference, read = load(selection.op.reference), weights if judged is None else judged

    def call(m: int, mixed: bool, nth: int) -> dict[str, Any]:
        return {"x": draw.rows(m, sizes["K"], mixed), **options(nth)}

    return Subject(sizes, weights, call, lambda given: as_tuple(reference(**given, **read)), limits)


def _fp8_gemm(selection: Selection, sizes: Mapping[str, int]) -> Subject:
    from ..contracts.gemm_fp8_math import quantize_input, quantize_weight

    draw, scheme = drawing(selection), selection.problem.scheme.name
    w, w_scale = quantize_weight(draw.uneven(sizes["N"], sizes["K"], scale=sizes["K"] ** -0.5), scheme)
    limits = limits_of(selection.op, selection.problem, QUANTIZED_FLOOR)
    static = torch.tensor(LARGEST_X / 448.0, device=draw.device, dtype=torch.float32)
    narrow = draw.dtype == torch.float8_e4m3fn
    draw.dtype = torch.bfloat16 if narrow else draw.dtype
    made = _gemm(
        selection, sizes, draw, {"w": w, "w_scale": w_scale},
        lambda nth: {"x_scale": static if scheme == "fp8_tensor" and nth % 2 else None}, limits,
    )  # fmt: skip
    if not narrow:
        return made

    def call(m: int, mixed: bool, nth: int) -> dict[str, Any]:
        stored, scale = quantize_input(draw.rows(m, sizes["K"], mixed).float(), scheme)
        return {"x": stored, "x_scale": scale}

    return Subject(sizes, made.weights, call, made.want, limits)


def _nvfp4_gemm(selection: Selection, sizes: Mapping[str, int]) -> Subject:
    from ..contracts.nvfp4_judge import as_judged
    from ..contracts.nvfp4_math import quantize_reference

    draw, problem = drawing(selection), selection.problem
    weight = draw.uneven(sizes["N"], sizes["K"], scale=sizes["K"] ** -0.5)
    factor = global_scale(weight)
    w, w_scale = quantize_reference(weight, factor)
    weights = {"w": w, "w_scale": w_scale, "w_global_scale": factor}
    if problem.scheme.name == "nvfp4":
        weights["input_scale"] = torch.tensor(LARGEST_X / (448 * 6), device=draw.device, dtype=torch.float32)
    read = as_judged(selection.declaration.numerics.promises, weights)
    return _gemm(selection, sizes, draw, weights, lambda nth: {}, limits_of(selection.op, problem, ODD_FLOOR), read)


def _nvfp4_quantize(selection: Selection, sizes: Mapping[str, int]) -> Subject:
    draw, reference = drawing(selection), load(selection.op.reference)

    def call(m: int, mixed: bool, nth: int) -> dict[str, Any]:
        x = draw.rows(m, sizes["K"], mixed)
        return {"x": x, "global_scale": global_scale(x.float())}

    limits = limits_of(selection.op, selection.problem, ODD_FLOOR)
    return Subject(sizes, {}, call, lambda given: as_tuple(reference(**given)), limits)


# routing


def _topk(selection: Selection, sizes: Mapping[str, int]) -> Subject:
    op, draw, experts = selection.op, drawing(selection), sizes["E"]
    reference, topk = load(op.reference), min(sizes["topk"], experts)
    grouped = "deepseek_v3_routing" in selection.declaration.numerics.promises and experts % 4 == 0 and experts >= 8

    def call(m: int, mixed: bool, nth: int) -> dict[str, Any]:
        # No two experts of a row are equal, also in 8 significant bits: whom to take then is another question.
        order = torch.rand(m, experts, generator=draw.generator, device=draw.device).argsort(dim=1)
        logits = (order - experts / 2) * (8.0 / max(experts, 64))
        made: dict[str, Any] = {"logits": logits.to(draw.dtype), "bias": None, "topk": topk}
        if grouped and nth % 2 and topk <= experts // 2:
            bias = draw.normal(experts, scale=0.01)
            made |= {"bias": bias, "scoring": "sigmoid", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}
            made["logits"] = made["logits"] * 0.25  # where sigmoids are far from 1, so that they differ
        return made

    return Subject(
        {**sizes, "topk": topk}, {}, call, lambda given: as_tuple(reference(**given)), limits_of(op, selection.problem)
    )


_BUILDERS: Mapping[str, Callable[[Selection, Mapping[str, int]], Subject | None]] = {
    "router_gemm": _router_gemm,
    "fp8_gemm": _fp8_gemm,
    "nvfp4_gemm": _nvfp4_gemm,
    "nvfp4_quantize": _nvfp4_quantize,
    "topk": _topk,
    "fused_moe": fused_moe,
}
