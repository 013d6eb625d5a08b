"""What a kernel is checked on: calls of its op at sizes of the problem's own kind, and what they should give.

Everything is drawn on the device from a seed of its own. Imported only where torch is about to be used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..contracts.moe_shape import GATED
from ..errors import BadShape, UsageError
from ..measure.small_point import _scalar, arguments, small_ops, widening
from ..policies.selection import Selection, is_weight_only
from ..registry import Op, Problem
from ..registry.lazy import load
from .judge import SLACK, Limits

MIXED = (0.0, 4.0, 1 / 64, 1.0)
"""What the rows of a mixed batch are multiplied by, in turn."""

_LARGEST_X = 16.0  # an element of x: squares and products of it stay far from what float16 holds
_QUANTIZED_FLOOR = 0.05  # under one scale for all, rows this much smaller than the largest keep few bits
_ODD_FLOOR = 0.01  # rows whose inner values fall among float16's subnormals
_LARGEST_INNER = 2048.0  # of the activated inner rows, for their static scale
_CAPS = {"N": 1024, "K": 1024, "E": 512, "H": 16384, "topk": 64}
_MOE_CAPS = {"N": 256, "K": 512, "E": 512, "topk": 64}
_USUAL = {"N": 256, "K": 512, "E": 16, "H": 1024, "topk": 2}
_W4A4_MOE = Limits(0.12, 0.0, _QUANTIZED_FLOOR)  # two roundings of inputs to FP4: 9% each, added as squares
_W4A16_MOE = Limits(2e-2, 0.0, _ODD_FLOOR)  # weights of any width, inputs as they are


@dataclass(frozen=True, slots=True)
class Subject:
    """``weights`` as ``prepare`` takes them; ``call(m, mixed, nth)`` the rest, x first; ``want`` the right results.

    ``sizes`` are those of the check, without the token axis.
    """

    sizes: Mapping[str, int]
    weights: Mapping[str, Tensor]
    call: Callable[[int, bool, int], dict[str, Any]]
    want: Callable[[Mapping[str, Any]], tuple[Tensor, ...]]
    limits: Limits
    own_m: int | None = None  # the only number of rows that is sure to fit; None: any can be drawn


@dataclass(slots=True)
class Draw:
    """Random tensors on one device."""

    device: torch.device
    dtype: torch.dtype
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator(device=self.device).manual_seed(20)

    def normal(self, *shape: int, scale: float = 1.0, mean: float = 0.0) -> Tensor:
        """fp32."""
        made = torch.empty(*shape, device=self.device, dtype=torch.float32)
        return made.normal_(mean, scale, generator=self.generator) if made.numel() else made

    def uneven(self, *shape: int, scale: float = 1.0) -> Tensor:
        """fp32 whose magnitudes differ from element to element, and from one run of 16 to the next."""
        values = self.normal(*shape, scale=scale)
        runs = self.normal(*shape[:-1], -(-shape[-1] // 16), scale=0.7).exp().repeat_interleave(16, dim=-1)
        return values * runs[..., : shape[-1]]

    def rows(self, m: int, width: int, mixed: bool) -> Tensor:
        """x [m, width]: mixed magnitudes inside a row; in a mixed batch rows of zeros, large, tiny and usual ones."""
        values = self.normal(m, width) * (0.5 * self.normal(m, width)).exp()
        if mixed:
            factors = torch.tensor(MIXED, device=self.device, dtype=torch.float32)
            values = values * factors.repeat(-(-m // len(MIXED)))[:m].unsqueeze(1)
        return values.clamp(-_LARGEST_X, _LARGEST_X).to(self.dtype)


def scaled(size: int, cap: int) -> int:
    """A smaller size of the same kind: it divides by the same powers of two (up to 256), and by no more."""
    if size <= cap:
        return size
    unit = math.gcd(size, 256)
    count = max(cap // unit, 1)
    if unit < 256 and count > 1 and count % 2 == 0:
        count -= 1
    return unit * count


def subjects(selection: Selection) -> Iterator[Subject]:
    """Ways to check this kernel, the best first: at sizes like the problem's, then at those sizes, then on examples."""
    op, problem = selection.op, selection.problem
    given = {axis: size for axis, size in problem.shape.items() if axis != op.token_axis and isinstance(size, int)}
    whole = {axis: given.get(axis) or _USUAL.get(axis, 64) for axis in op.axes if axis != op.token_axis}
    caps = _MOE_CAPS if op.name == "fused_moe" else _CAPS
    small = {axis: scaled(size, caps.get(axis, 1024)) for axis, size in whole.items()}
    build = _BUILDERS.get(op.name) or (_small if small_ops([op]) else None)
    if build is not None:
        for sizes in (small, whole) if small != whole else (small,):
            try:
                made = build(selection, sizes)
            except (UsageError, LookupError):  # the op has a scheme or an argument that nobody draws here
                break
            if made is not None:
                yield made
    yield from _examples(selection)


def place(selection: Selection) -> torch.device:
    """Where the check runs."""
    device = selection.device
    return torch.device("cpu") if device.vendor == "cpu" else torch.device("cuda", device.index or 0)


def _draw(selection: Selection) -> Draw:
    return Draw(place(selection), getattr(torch, selection.problem.dtype or "bfloat16"))


def _tuple(results: Any) -> tuple[Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)


def _limits(op: Op, problem: Problem, floor: float = 0.0) -> Limits:
    found = op.tolerance.get(problem.dtype or "") or next(iter(op.tolerance.values()))
    rtol = found.rtol / SLACK if op.decoded else found.rtol  # that of packed results is wide enough
    return Limits(rtol, found.atol, floor)


# norms and activations: rows of one hidden size


def _small(selection: Selection, sizes: Mapping[str, int]) -> Subject:
    op, draw = selection.op, _draw(selection)
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
    limits = _limits(op, selection.problem, _ODD_FLOOR if op.decoded else 0.0)
    return Subject(sizes, weights, call, lambda given: _tuple(reference(**given, **weights)), limits)


# matrix products


def _router_gemm(selection: Selection, sizes: Mapping[str, int]) -> Subject:
    draw, op = _draw(selection), selection.op
    weight = draw.uneven(sizes["N"], sizes["K"], scale=sizes["K"] ** -0.5).to(draw.dtype)
    return _gemm(selection, sizes, draw, {"w": weight}, lambda nth: {}, _limits(op, selection.problem))


def _gemm(
    selection: Selection, sizes: Mapping[str, int], draw: Draw, weights: Mapping[str, Tensor],
    options: Callable[[int], dict[str, Any]], limits: Limits, without: tuple[str, ...] = (),
) -> Subject:  # fmt: skip
    """x [M, K] times weights; ``without``: weights that the kernel does not read, so that they count for nothing."""
    reference = load(selection.op.reference)
    read = {name: tensor for name, tensor in weights.items() if name not in without}

    def call(m: int, mixed: bool, nth: int) -> dict[str, Any]:
        return {"x": draw.rows(m, sizes["K"], mixed), **options(nth)}

    return Subject(sizes, weights, call, lambda given: _tuple(reference(**given, **read)), limits)


def _fp8_gemm(selection: Selection, sizes: Mapping[str, int]) -> Subject:
    from ..contracts.gemm_fp8_math import quantize_input, quantize_weight

    draw, scheme = _draw(selection), selection.problem.scheme.name
    w, w_scale = quantize_weight(draw.uneven(sizes["N"], sizes["K"], scale=sizes["K"] ** -0.5), scheme)
    limits = _limits(selection.op, selection.problem, _QUANTIZED_FLOOR)
    static = torch.tensor(_LARGEST_X / 448.0, device=draw.device, dtype=torch.float32)
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
    from ..contracts.nvfp4_math import quantize_reference

    draw, problem = _draw(selection), selection.problem
    weight = draw.uneven(sizes["N"], sizes["K"], scale=sizes["K"] ** -0.5)
    factor = _global_scale(weight)
    w, w_scale = quantize_reference(weight, factor)
    weights = {"w": w, "w_scale": w_scale, "w_global_scale": factor}
    if problem.scheme.name == "nvfp4":
        weights["input_scale"] = torch.tensor(_LARGEST_X / (448 * 6), device=draw.device, dtype=torch.float32)
    unread = ("input_scale",) if is_weight_only(selection.declaration, problem) else ()
    limits = _limits(selection.op, problem, _ODD_FLOOR)
    return _gemm(selection, sizes, draw, weights, lambda nth: {}, limits, unread)


def _global_scale(values: Tensor) -> Tensor:
    return (values.abs().amax() / (448 * 6)).clamp_min(1e-30).to(torch.float32)


def _nvfp4_quantize(selection: Selection, sizes: Mapping[str, int]) -> Subject:
    draw, reference = _draw(selection), load(selection.op.reference)

    def call(m: int, mixed: bool, nth: int) -> dict[str, Any]:
        x = draw.rows(m, sizes["K"], mixed)
        return {"x": x, "global_scale": _global_scale(x.float())}

    return Subject(
        sizes, {}, call, lambda given: _tuple(reference(**given)), _limits(selection.op, selection.problem, _ODD_FLOOR)
    )


# routing


def _topk(selection: Selection, sizes: Mapping[str, int]) -> Subject:
    op, draw, experts = selection.op, _draw(selection), sizes["E"]
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
        {**sizes, "topk": topk}, {}, call, lambda given: _tuple(reference(**given)), _limits(op, selection.problem)
    )


# experts


def _fused_moe(selection: Selection, sizes: Mapping[str, int]) -> Subject | None:
    from ..contracts.fused_moe_math import reference, routing

    draw, problem = _draw(selection), selection.problem
    activation, scheme = problem.activation or "silu", problem.scheme.name
    experts, inner, hidden = sizes["E"], sizes["N"], sizes["K"]
    topk = min(sizes["topk"], experts)
    up = 2 * inner if activation in GATED else inner
    if experts * (up + inner) * hidden > 512 * 2**20:
        return None  # sizes that nobody scaled: too much memory beside a model
    w1 = draw.uneven(experts, up, hidden, scale=hidden**-0.5)
    w2 = draw.uneven(experts, hidden, inner, scale=inner**-0.5)
    if scheme == "none":
        plain = {"w1": w1.to(draw.dtype), "w2": w2.to(draw.dtype)}
        limits, weights, want = _limits(selection.op, problem, _ODD_FLOOR), plain, None
    else:
        weights, limits, want = _quantized_experts(selection, w1, w2, draw.device)
        plain = {}
    del w1, w2

    def call(m: int, mixed: bool, nth: int) -> dict[str, Any]:
        router, ids = routing(m, experts, topk, seed=m, device=str(draw.device), skew=1.0, idle=True)
        made = {"x": draw.rows(m, hidden, mixed), "topk_weights": router, "topk_ids": ids.long() if nth % 2 else ids}
        return {**made, "activation": activation}

    return Subject(
        {**sizes, "topk": topk}, weights, call,
        (lambda given: _tuple(reference(**given, **plain))) if want is None else lambda given: (want(given),), limits,
    )  # fmt: skip


def _quantized_experts(
    selection: Selection, w1: Tensor, w2: Tensor, device: torch.device
) -> tuple[dict[str, Tensor], Limits, Callable[[Mapping[str, Any]], Tensor]]:
    """(weights as in a checkpoint, limits, what the layer gives). Raises UnknownScheme for a scheme not known here."""
    from ..contracts.moe_quant import MoeQuant
    from ..contracts.moe_quant_math import dequantize_expert, quantize_weight, reference_quantized

    problem = selection.problem
    if problem.scheme.name in ("nvfp4", "nvfp4_w4a16"):
        return _fp4_experts(selection, w1, w2, device)
    quant = MoeQuant.of(problem.scheme)
    (q1, s1), (q2, s2) = quantize_weight(w1, quant), quantize_weight(w2, quant)
    weights = {"w1": q1, "w2": q2, "w1_scale": s1, "w2_scale": s2}
    inputs = {}
    if quant.scheme == "fp8_tensor":
        inputs = {
            "a1_scale": torch.full((1,), _LARGEST_X / 448.0, device=device, dtype=torch.float32),
            "a2_scale": torch.full((1,), _LARGEST_INNER / 448.0, device=device, dtype=torch.float32),
        }
    if not quant.quantizes_activations or is_weight_only(selection.declaration, problem):
        plain = {
            name: torch.stack([dequantize_expert(w, s, quant) for w, s in zip(stored, scales, strict=True)])
            for name, stored, scales in (("w1", q1, s1), ("w2", q2, s2))
        }
        return {**weights, **inputs}, _W4A16_MOE, lambda given: _plain_experts(given, plain)
    tolerance = quant.tolerance("float16" if problem.dtype == "float32" else problem.dtype or "bfloat16")

    def want(given: Mapping[str, Any]) -> Tensor:
        result: Tensor = reference_quantized(
            given["x"], q1, q2, given["topk_weights"], given["topk_ids"], quant, w1_scale=s1, w2_scale=s2, **inputs,
            activation=given["activation"],
        )  # fmt: skip
        return result

    return {**weights, **inputs}, Limits(tolerance.rtol, tolerance.atol, _QUANTIZED_FLOOR), want


def _plain_experts(given: Mapping[str, Any], plain: Mapping[str, Tensor]) -> Tensor:
    """What the layer gives with dequantized weights and inputs as they are."""
    from ..contracts.fused_moe_math import reference

    result: Tensor = reference(**given, **plain)
    return result


def _fp4_experts(
    selection: Selection, w1: Tensor, w2: Tensor, device: torch.device
) -> tuple[dict[str, Tensor], Limits, Callable[[Mapping[str, Any]], Tensor]]:
    """NVFP4 weights with a global scale an expert, static scales of both inputs for W4A4."""
    from ..contracts.nvfp4_math import dequantize, quantize_reference

    weights: dict[str, Tensor] = {}
    plain: dict[str, Tensor] = {}
    for name, weight in (("w1", w1), ("w2", w2)):
        factors = torch.stack([_global_scale(expert) for expert in weight])
        stored = [quantize_reference(expert, factor) for expert, factor in zip(weight, factors, strict=True)]
        weights[name] = torch.stack([values for values, _ in stored])
        weights[f"{name}_scale"] = torch.stack([scale for _, scale in stored])
        weights[f"{name}_global_scale"] = factors
        plain[name] = torch.stack([dequantize(v, s, f) for (v, s), f in zip(stored, factors, strict=True)])
    both = selection.problem.scheme.name == "nvfp4"
    if both:
        weights["a1_scale"] = torch.full((1,), _LARGEST_X / (448 * 6), device=device, dtype=torch.float32)
        weights["a2_scale"] = torch.full((1,), _LARGEST_INNER / (448 * 6), device=device, dtype=torch.float32)
    alone = not both or is_weight_only(selection.declaration, selection.problem)

    return weights, _W4A16_MOE if alone else _W4A4_MOE, lambda given: _plain_experts(given, plain)


# any other op: the contract's own examples


def _examples(selection: Selection) -> Iterator[Subject]:
    """Each example of the op that this kernel can run, its rows taken in turn for any number of rows."""
    op, problem = selection.op, selection.problem
    reference, where = load(op.reference), place(selection)
    check = load(op.check) if op.check else None
    if op.scheme_of is None and problem.scheme.name != "none":
        return  # examples of what is quantized would say so
    try:
        calls = list(load(op.examples)(device=str(where), dtype=getattr(torch, problem.dtype or "bfloat16")))
    except (TypeError, AttributeError, UsageError):  # an op of another package, with examples of its own kind
        return
    scheme_of = load(op.scheme_of) if op.scheme_of else None
    for given in calls:
        first = next(iter(given.values()))
        if not isinstance(first, Tensor) or first.dim() < 1 or not first.numel():
            continue
        if given.get("activation", problem.activation) != problem.activation:
            continue
        if scheme_of is not None and scheme_of(**given) != problem.scheme.name:
            continue
        names = [name for name in (*op.weights, *op.optional_weights) if isinstance(given.get(name), Tensor)]
        weights = {name: given[name] for name in names}
        rest = {name: value for name, value in given.items() if name not in (*op.weights, *op.optional_weights)}
        alone = [given[name] for name in op.weights]
        shape = load(op.problem)(
            first, tuple(alone) if len(alone) > 1 else next(iter(alone), None), **_without_first(rest)
        )
        sizes = {axis: size for axis, size in shape.items() if axis != op.token_axis}
        own = shape.get(op.token_axis) if op.token_axis else None

        def call(
            m: int, mixed: bool, nth: int, rest: dict[str, Any] = rest, weights: dict[str, Tensor] = weights,
            own: int | None = own,
        ) -> dict[str, Any]:  # fmt: skip
            if own is None or m == own:
                return dict(rest)
            made = _resampled(rest, m)
            if check is not None:
                check(**made, **weights)
            return made

        def want(given: Mapping[str, Any], weights: Mapping[str, Tensor] = weights) -> tuple[Tensor, ...]:
            return _tuple(reference(**given, **weights))

        yield Subject(sizes, weights, call, want, _limits(op, problem, _ODD_FLOOR), own_m=own)


def _without_first(given: Mapping[str, Any]) -> dict[str, Any]:
    return dict(list(given.items())[1:])


def _resampled(given: Mapping[str, Any], m: int) -> dict[str, Any]:
    """The call with m rows: those of its first tensor, and of all that have as many, in turn. Raises BadShape."""
    first = next(iter(given.values()))
    if first.dim() != 2:
        raise BadShape(f"an example of {list(first.shape)} has no rows to be taken in turn")
    rows = first.shape[0]
    made = {}
    for name, value in given.items():
        if isinstance(value, Tensor) and value.dim() >= 1 and value.shape[0] == rows:
            value = value[torch.arange(m, device=value.device) % rows].contiguous()
        made[name] = value
    return made


_BUILDERS: Mapping[str, Callable[[Selection, Mapping[str, int]], Subject | None]] = {
    "router_gemm": _router_gemm,
    "fp8_gemm": _fp8_gemm,
    "nvfp4_gemm": _nvfp4_gemm,
    "nvfp4_quantize": _nvfp4_quantize,
    "topk": _topk,
    "fused_moe": _fused_moe,
}

__all__ = ["MIXED", "Subject", "place", "scaled", "subjects"]
