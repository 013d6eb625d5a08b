"""How much work each effort does: the rungs of the race, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

GRAPH_CALLS = 8  # kernel calls inside one sample


@dataclass(frozen=True, slots=True)
class Rung:
    """One round of a race: how many tiles enter (a side, an M) and how often each is timed."""

    name: str
    field: int
    samples: int
    cap_s: float = 3.0  # long kernels get fewer samples, they are also the steadier ones
    least: int = 3

    def samples_for(self, tiles: int, us: float) -> int:
        """Samples a tile so that the rung stays near ``cap_s`` when a call takes ``us`` microseconds."""
        one_round_s = max(1, tiles) * GRAPH_CALLS * us * 1e-6
        return max(self.least, min(self.samples, int(self.cap_s / one_round_s))) if us > 0 else self.samples


@dataclass(frozen=True, slots=True, kw_only=True)
class RaceConfig:
    """The race of one effort.

    Counts for ``full`` are successive halving sized for 36 (M, side) pairs in about two minutes of an H100, where
    a sample is eight calls of 5 us to 1.5 ms. On an H200, over 30 (shape, M, side) measured densely, a tile within
    1% of the best stood among the first 39 of the order.
    """

    rungs: tuple[Rung, ...]
    refine: Rung  # neighbours of the leaders beside the leaders
    final: Rung  # ``field`` tiles for each BLOCK_SIZE_M still alive
    cubins: int | None  # most binaries compiled ahead, a side; None: all
    per_block_m: int = 3  # tiles each BLOCK_SIZE_M keeps until the joint solve may cut it
    leaders: int = 4  # tiles whose neighbours are tried
    refine_rounds: int = 2  # the second tries the neighbours of what the first found
    block_m_slack: float = 0.05  # a BLOCK_SIZE_M goes when its best pair is surely this much slower than the best
    tile_slack: float = 0.02  # a tile goes when it is surely this much slower than the best of its BLOCK_SIZE_M
    budget_s: float | None = None  # default for --budget


PROFILES: Mapping[str, RaceConfig] = {
    "quick": RaceConfig(
        rungs=(Rung("0", 64, 3, 1.0), Rung("1", 16, 8, 1.0)),
        refine=Rung("refine", 32, 5, 1.0),
        final=Rung("final", 2, 24, 1.5, least=10),
        cubins=160,
        per_block_m=2,
        leaders=3,
        refine_rounds=1,
        budget_s=150.0,
    ),
    "full": RaceConfig(
        rungs=(Rung("0", 96, 3, 2.5), Rung("1", 32, 8, 2.0), Rung("2", 12, 20, 2.0)),
        refine=Rung("refine", 48, 6, 2.0),
        final=Rung("final", 4, 60, 4.0, least=12),
        cubins=340,
        budget_s=235.0,
    ),
    "exhaustive": RaceConfig(
        rungs=(Rung("0", 10**6, 4, 30.0), Rung("1", 96, 10, 8.0), Rung("2", 24, 30, 6.0)),
        refine=Rung("refine", 120, 10, 8.0),
        final=Rung("final", 6, 80, 8.0, least=20),
        cubins=None,
        per_block_m=6,
        leaders=6,
    ),
}  # fmt: skip
