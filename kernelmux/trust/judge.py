"""Whether results are right, told row by row: finite, written, not zero where they should not be, near the reference.

Imported only where torch is about to be used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..measure.small_check import dequantized

TILE = 16  # columns; a store that is left out leaves at least so many
SLACK = 2.0
"""The gate allows this many times an op's tolerance: it looks for broken kernels, and a false alarm costs speed."""

_SCALES_APART = 0.07  # two neighbouring e4m3 scales
_FP32_SCALES_APART = 1e-3  # the last places of a sum or an exponential


@dataclass(frozen=True, slots=True)
class Limits:
    """``rtol`` and ``atol`` as an op's Tolerance has them; a row counts as at least ``floor`` of the largest row."""

    rtol: float
    atol: float = 0.0
    floor: float = 0.0


@dataclass(frozen=True, slots=True)
class Finding:
    """``error``: the worst row's relative L2 error; ``share``: that over what is allowed; ``cosine``: the least."""

    fault: str = ""
    error: float = 0.0
    share: float = 0.0
    cosine: float = 1.0


Decode = Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]


def judge(
    got: Sequence[Tensor], want: Sequence[Tensor], limits: Limits, decode: Decode | None = None, *, exact: bool = False
) -> Finding:
    """The first fault of any result, or the worst numbers of results without one.

    ``decode`` tells what packed results mean, values first and then their scales; ``exact``: every byte is equal.
    """
    if len(got) != len(want):
        return Finding(f"{len(got)} results where the op has {len(want)}")
    for nth, (mine, right) in enumerate(zip(got, want, strict=True)):
        if mine.shape != right.shape:
            return Finding(f"result {nth} is {list(mine.shape)}, not {list(right.shape)}")
    worst = Finding()
    if exact:
        pairs = [(mine, right, limits) for mine, right in zip(map(_raw, got), map(_raw, want), strict=True)]
    elif decode is not None:
        last = [Limits(_SCALES_APART, 0.0, limits.floor)] * (len(got) - 1)
        pairs = list(zip(decode(tuple(got)), decode(tuple(want)), (limits, *last), strict=True))
    else:
        pairs = _comparable(got, want, limits)
    for mine, right, limit in pairs:
        found = _floats(mine, right, limit) if right.is_floating_point() else _exact(mine, right)
        if found.fault:
            return found
        worst = found if found.share >= worst.share else worst
    return worst


def _comparable(
    got: Sequence[Tensor], want: Sequence[Tensor], limits: Limits
) -> list[tuple[Tensor, Tensor, Limits]]:  # fmt: skip
    """Pairs of numbers that can be compared: values with their scales as what they mean together."""
    if len(want) == 2 and want[0].dtype == torch.float8_e4m3fn:
        atol = limits.atol * float(want[1].abs().max()) if want[1].numel() else 0.0
        meant = Limits(limits.rtol, atol, limits.floor)
        return [
            (dequantized(*got), dequantized(*want), meant),
            (got[1].float(), want[1].float(), Limits(_FP32_SCALES_APART, 0.0, limits.floor)),
        ]
    return [(mine, right, limits) for mine, right in zip(got, want, strict=True)]


def _raw(tensor: Tensor) -> Tensor:
    return tensor.view(torch.uint8) if tensor.dtype == torch.float8_e4m3fn else tensor


def _exact(mine: Tensor, right: Tensor) -> Finding:
    unlike = (mine != right).reshape(-1, right.shape[-1] if right.dim() else 1)
    if not bool(unlike.any()):
        return Finding()
    rows = unlike.any(dim=1)
    return Finding(f"{int(unlike.sum())} of {unlike.numel()} whole numbers are wrong, first in row {_first(rows)}")


def _floats(mine: Tensor, right: Tensor, limits: Limits) -> Finding:
    if not right.numel():
        return Finding()
    size = right.shape[-1] if right.dim() else 1
    rows, ideal = mine.float().reshape(-1, size), right.float().reshape(-1, size)
    lost = ~rows.isfinite() & ideal.isfinite()
    if bool(lost.any()):
        what = "NaN" if bool(rows.isnan().any()) else "inf"
        bad = lost.any(dim=1)
        return Finding(
            f"{what} in {int(lost.sum())} of {lost.numel()} elements, first in row {_first(bad)}", float("nan")
        )
    if not bool(ideal.isfinite().all()):  # what is no number there may be anything here
        known = ideal.isfinite()
        rows, ideal = rows.where(known, 0.0), ideal.where(known, 0.0)
    norms = ideal.norm(dim=1)
    base = torch.maximum(norms, limits.floor * norms.max())
    if not bool(rows.any()) and bool(ideal.any()):
        return Finding("all zeros", 1.0, float("inf"), 0.0)
    fault = _empty_tile(rows, ideal, base)
    if fault:
        return Finding(fault, 1.0, float("inf"), 0.0)
    off = (rows - ideal).norm(dim=1)
    allowed = SLACK * (limits.rtol * base + limits.atol * size**0.5) + 1e-30
    share, row = (off / allowed).max(dim=0)
    cosine = (rows * ideal).sum(dim=1) / (rows.norm(dim=1) * norms).clamp_min(1e-30)
    judged = norms > limits.floor * norms.max()  # the direction of a row of zeros means nothing
    least = float(cosine[judged].min()) if bool(judged.any()) else 1.0
    error = float(off[row] / base[row].clamp_min(1e-30))
    found = Finding("", error, float(share), least)
    if float(share) <= 1:
        return found
    kind = "the direction is right and the size is not" if float(cosine[row]) > 0.999 else "the values are others"
    ceiling = float(allowed[row] / base[row].clamp_min(1e-30))
    far = f"row {int(row)} is {error:.3g} of its norm off, {ceiling:.3g} is allowed"
    return Finding(f"{far} (cosine {float(cosine[row]):.4f}: {kind})", error, float(share), least)


def _empty_tile(rows: Tensor, ideal: Tensor, base: Tensor) -> str:
    """Where whole runs of columns are zero though the reference has values there; empty: nowhere."""
    size = rows.shape[1]
    whole = size - size % TILE
    if size < 2 * TILE:
        return ""
    mine = rows[:, :whole].unflatten(1, (-1, TILE))
    right = ideal[:, :whole].unflatten(1, (-1, TILE))
    usual = base.unsqueeze(1) * (TILE / size) ** 0.5
    empty = (mine == 0).all(dim=2) & (right.norm(dim=2) > 0.25 * usual) & (usual > 0)
    if not bool(empty.any()):
        return ""
    row, tile = (int(place) for place in empty.nonzero()[0])
    return f"zeros in {int(empty.sum())} runs of {TILE} columns, first in row {row} at column {tile * TILE}"


def _first(rows: Tensor) -> int:
    return int(rows.nonzero()[0])
