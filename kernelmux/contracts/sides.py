"""On which side of the declared roundings a kernel's results are: told from the results, not from its source.

Imported only where torch is about to be used.

``fault(op, call, promises, results)`` is None for results that are where the promises say. For bf16 and fp16: zero ulp
from their own specification in EXACT_SHARE of the elements, and nearer to it than to every other that differs. In fp32
the orders coincide: at most FP32_ULPS, and a few more where a silu goes before. ``telling(op, ...)`` makes inputs on
which the specifications differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor

from . import activations_math, norms_math
from .activations_math import IS_GATED
from .norms import RESIDUAL_ROUNDINGS, ROUNDINGS
from .rounding import EXACT_SHARE, FP32_ULPS, exact_share, total_distance, ulps

ORDER_WORDS = frozenset({*ROUNDINGS, *RESIDUAL_ROUNDINGS})
_SILU_ULPS = 4  # what silu in fp32 adds to a norm of its product
_TOLD_APART = 0.02  # two specifications are compared where at least this share of the elements differs
Results = tuple[Tensor, ...]


def specifications(op: str, call: Mapping[str, Any]) -> dict[frozenset[str], Results]:
    """What the op gives under each set of promises that makes a difference to it, in the call's dtype."""
    if op == "fused_add_rms_norm":
        return {
            frozenset({order, kept}): norms_math.fused_add_rms_norm_rounded(**call, order=order, residual_rounding=kept)
            for order in ROUNDINGS
            for kept in RESIDUAL_ROUNDINGS
        }
    if op == "rms_norm_fp8":
        return {frozenset[str](): norms_math.rms_norm_fp8_rounded(**call)}
    if op == "silu_and_mul_fp8":
        return {frozenset[str](): activations_math.silu_and_mul_fp8_rounded(**call)}
    if op in IS_GATED and not IS_GATED[op]:
        return {frozenset[str](): (activations_math.unary_rounded(op, **call),)}
    if op in IS_GATED:
        return {frozenset({order}): (activations_math.gated_rounded(op, **call, order=order),) for order in ROUNDINGS}
    rounded: Any = {"rms_norm": norms_math.rms_norm_rounded, "gated_rms_norm": norms_math.gated_rms_norm_rounded}[op]
    return {frozenset({order}): (rounded(**call, order=order),) for order in ROUNDINGS}


def telling(
    op: str, dtype: torch.dtype, *, rows: int = 64, hidden: int = 1024, device: str = "cpu", seed: int = 0
) -> dict[str, Any]:
    """Arguments of one call, [rows, hidden], on which the specifications of the op differ."""
    generator = torch.Generator(device="cpu").manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0, mean: float = 0.0) -> Tensor:
        return (mean + scale * torch.randn(*shape, generator=generator)).to(dtype).to(device)

    if op in IS_GATED or op == "silu_and_mul_fp8":
        return {"x": draw(rows, hidden if IS_GATED.get(op) is False else 2 * hidden)}
    call = {"x": draw(rows, hidden)}
    if op == "fused_add_rms_norm":
        call["residual"] = draw(rows, hidden, scale=4.0)
    if op == "gated_rms_norm":
        call["z"] = draw(rows, hidden)
    return {**call, "weight": draw(hidden, scale=0.5, mean=1.0)}


def fault(op: str, call: Mapping[str, Any], promises: Set[str], results: Sequence[Tensor]) -> str | None:
    """What is wrong with the results of a kernel with these promises; None: nothing."""
    specified = specifications(op, call)
    own = [key for key in specified if key <= promises]
    if len(own) != 1:
        return f"it must promise one of {' | '.join(sorted('+'.join(sorted(key)) for key in specified))}"
    right = specified.pop(own[0])
    side = "+".join(sorted(own[0])) or "one rounding"
    if len(right) != len(results):
        return f"{len(results)} results, not {len(right)}"
    for nth, (got, want) in enumerate(zip(results, right, strict=True)):
        if got.shape != want.shape or got.dtype != want.dtype:
            return f"result {nth} is {list(got.shape)} {got.dtype}, not {list(want.shape)} {want.dtype}"
        if got.dtype == torch.float32:
            if op in IS_GATED and nth == 0:
                continue  # 1 + erf loses a negative gate's last places: the tolerance of the op is what holds
            most = FP32_ULPS + (_SILU_ULPS if op in ("gated_rms_norm", "silu_and_mul_fp8") else 0)
            if (worst := int(ulps(got, want).max()) if want.numel() else 0) > most:
                return f"result {nth} is up to {worst} ulp from {side}, in fp32 it must be within {most}"
            continue
        least = 1.0 if nth else EXACT_SHARE[got.dtype]  # a second 16-bit result is the sum, rounded once
        if (share := exact_share(got, want)) < least:
            return f"result {nth} equals {side} in {share:.2%} of its elements, {least:.1%} at least were promised"
        for key, others in specified.items():
            told_apart = exact_share(want, others[nth]) < 1 - _TOLD_APART
            if told_apart and total_distance(got, want) >= total_distance(got, others[nth]):
                return f"result {nth} is no nearer to {side} than to {'+'.join(sorted(key))}"
    return None


def differ(op: str, call: Mapping[str, Any]) -> bool:
    """Whether the inputs tell every two specifications of the op apart."""
    firsts = [results[0] for results in specifications(op, call).values()]
    return all(exact_share(a, b) < 1 - _TOLD_APART for nth, a in enumerate(firsts) for b in firsts[:nth])
