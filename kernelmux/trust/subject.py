"""Subject: calls of one op that a kernel is checked on, and what they are drawn with.

Imported only where torch is about to be used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..policies.selection import Selection
from ..registry import Op, Problem
from .judge import SLACK, Limits

MIXED = (0.0, 4.0, 1 / 64, 1.0)
"""What the rows of a mixed batch are multiplied by, in turn."""

LARGEST_X = 16.0  # an element of x: squares and products of it stay far from what float16 holds
QUANTIZED_FLOOR = 0.05  # under one scale for all, rows this much smaller than the largest keep few bits
MOST_ELEMENTS = 64 * 2**20
"""Of a matrix that is drawn: 256 MB in fp32, for kernels of one size alone."""
ODD_FLOOR = 0.01  # rows whose inner values fall among float16's subnormals


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
        return values.clamp(-LARGEST_X, LARGEST_X).to(self.dtype)


def scaled(size: int, cap: int) -> int:
    """A smaller size of the same kind: it divides by the same powers of two (up to 256), and by no more."""
    if size <= cap:
        return size
    unit = math.gcd(size, 256)
    count = max(cap // unit, 1)
    if unit < 256 and count > 1 and count % 2 == 0:
        count -= 1
    return unit * count


def place(selection: Selection) -> torch.device:
    """Where the check runs."""
    device = selection.device
    return torch.device("cpu") if device.vendor == "cpu" else torch.device("cuda", device.index or 0)


def drawing(selection: Selection) -> Draw:
    return Draw(place(selection), getattr(torch, selection.problem.dtype or "bfloat16"))


def as_tuple(results: Any) -> tuple[Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)


def limits_of(op: Op, problem: Problem, floor: float = 0.0) -> Limits:
    found = op.tolerance.get(problem.dtype or "") or next(iter(op.tolerance.values()))
    rtol = found.rtol / SLACK if op.decoded else found.rtol  # that of packed results is wide enough
    return Limits(rtol, found.atol, floor)


def global_scale(values: Tensor) -> Tensor:
    return (values.abs().amax() / (448 * 6)).clamp_min(1e-30).to(torch.float32)
