"""Medians and bootstrap intervals, in the standard library.

Everything is seeded by the caller, so that a resumed run draws the same intervals from the same samples.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

# Below this many samples a bootstrap only repeats the extremes; take them, widened by the floor.
FEW_SAMPLES = 6
# Two builds of one kernel differ by about this much on an idle H100 (graph replays, L2-cold): never claim less.
NOISE_FLOOR = 0.001
RESAMPLES = 400


@dataclass(frozen=True, slots=True)
class Interval:
    """A median with its 95% interval; microseconds, or a plain ratio."""

    mid: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the width: what follows the plus-minus sign."""
        return (self.high - self.low) / 2

    def overlaps(self, other: Interval) -> bool:
        return self.low <= other.high and other.low <= self.high


def interval(samples: Sequence[float], seed: str, resamples: int = RESAMPLES) -> Interval:
    """The median of ``samples`` and its 95% bootstrap interval. Raises ValueError without samples."""
    if not samples:
        raise ValueError("no samples")
    mid = median(samples)
    if len(samples) < FEW_SAMPLES:
        low, high = min(samples), max(samples)
        # Three samples say little of the spread: as much again on both sides.
        low, high = mid - 2 * (mid - low), mid + 2 * (high - mid)
    else:
        low, high = _bootstrap(samples, seed, resamples)
    return Interval(mid, min(low, mid * (1 - NOISE_FLOOR)), max(high, mid * (1 + NOISE_FLOOR)))


def ratio(of: Sequence[float], to: Sequence[float], seed: str, resamples: int = RESAMPLES) -> Interval:
    """The ratio ``of/to`` with its 95% interval: paired by round when both have as many samples, else of medians."""
    if not of or not to:
        raise ValueError("no samples")
    if len(of) == len(to) and len(of) >= FEW_SAMPLES:
        return interval([a / b for a, b in zip(of, to, strict=True)], seed, resamples)
    a, b = interval(of, seed + "/of", resamples), interval(to, seed + "/to", resamples)
    return Interval(a.mid / b.mid, a.low / b.high, a.high / b.low)


def _bootstrap(samples: Sequence[float], seed: str, resamples: int) -> tuple[float, float]:
    draw = random.Random(seed).choices
    count = len(samples)
    mids = sorted(median(draw(samples, k=count)) for _ in range(resamples))
    cut = max(0, int(resamples * 0.025))
    return mids[cut], mids[-1 - cut]
