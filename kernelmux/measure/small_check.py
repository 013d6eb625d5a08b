"""Whether a small op's results are right: against the fp32 reference, by the op's own tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..registry import Op
from ..registry.lazy import load

_SCALE_ERROR = 1e-3  # fp32 scales differ in the last places of a sum or an exponential only
_ROWS = 4096  # rows compared at once: fp32 copies of a whole 16384 x 16384 result would not always fit


@dataclass(frozen=True, slots=True)
class Verdict:
    """``worst`` is the largest error of a row over what it may be; at most 1 for a right result."""

    ok: bool
    worst: float
    reason: str = ""


def reference(op: Op, given: Any) -> tuple[Tensor, ...]:
    """What the contract says, computed where the arguments are."""
    want = load(op.reference)(**given)
    return want if isinstance(want, tuple) else (want,)


def judge(op: Op, dtype: str, got: Sequence[Tensor], want: Sequence[Tensor]) -> Verdict:
    """Every row of every result within the op's tolerance; values with their scales, as the numbers they mean.

    What was not written is NaN and never passes.
    """
    if len(got) != len(want):
        return Verdict(False, float("inf"), f"{len(got)} results where the op has {len(want)}")
    for mine, ideal in zip(got, want, strict=True):
        if mine.shape != ideal.shape:
            return Verdict(False, float("inf"), f"a result is {list(mine.shape)}, not {list(ideal.shape)}")
    worst = 0.0
    rtol, atol = op.tolerance[dtype].rtol, op.tolerance[dtype].atol
    limits = [(rtol, atol)] * len(got)
    if op.decoded is not None:
        decode = load(op.decoded)
        got, want = decode(tuple(got)), decode(tuple(want))
    elif any(tensor.dtype == torch.float8_e4m3fn for tensor in got):
        (values, scale), (right_values, right_scale) = got, want
        got = (dequantized(values, scale), scale)
        want = (dequantized(right_values, right_scale), right_scale)
        limits = [(rtol, atol * float(right_scale.max()) if right_scale.numel() else 0.0), (_SCALE_ERROR, 0.0)]
    for mine, ideal, (rtol, atol) in zip(got, want, limits, strict=True):
        if not ideal.numel():
            continue
        size = ideal.shape[-1] if ideal.dim() else 1
        for some, right in zip(mine.reshape(-1, size).split(_ROWS), ideal.reshape(-1, size).split(_ROWS), strict=True):
            right = right.float()
            limit = rtol * right.norm(dim=1) + atol * size**0.5 + 1e-30
            error = ((some.float() - right).norm(dim=1) / limit).max().item()
            worst = max(worst, error) if error == error else float("nan")
            if not error <= 1:
                what = "not every element was written" if error != error else f"{error:.3g} times the error allowed"
                return Verdict(False, worst, f"wrong result: {what}")
    return Verdict(True, worst)


def dequantized(values: Tensor, scale: Tensor) -> Tensor:
    """fp32 [..., H] of e4m3 values with a scale a tensor, a row, or a block of the row."""
    wide = values.float()
    if scale.numel() == 1:
        return wide * scale.float()
    blocks = scale.shape[-1]
    return (wide.unflatten(-1, (blocks, -1)) * scale.float().unsqueeze(-1)).flatten(-2)
