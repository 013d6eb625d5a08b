"""What others' tuned tables say about which tile wins where.

``priors.json`` holds counts derived by ``scripts/derive_priors.py`` from the tables that vLLM and SGLang ship: how
often a tile won at a point (dtype, GPU capability, tokens per expert, N, E), nothing of the files themselves. A vote is
a distance-weighted sum of those counts, smoothed over tiles one knob apart: a winner equals the winner of its
neighbour in the grid in 39% of cases and lies within one knob of it in 70%.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from kernelmux.measure.bench import Side
from kernelmux.tuning_configs.tile import Tile

if TYPE_CHECKING:
    from kernelmux.contracts.moe_shape import MoeShape
    from kernelmux.device import Capability

PRIORS_FILE = Path(__file__).with_name("priors.json")

# How many octaves apart two points may be before they stop informing each other, per feature. Chosen by
# leave-one-model-out on the public tables (`scripts/derive_priors.py --validate`).
TOKENS_SCALE, N_SCALE, E_SCALE = 0.7, 2.0, 1.0
# Tiles carry over between GPUs of one tensor-core generation, and hardly between generations.
SAME_GENERATION, OTHER_GENERATION = 0.5, 0.02
# Share of a tile's vote that each tile one knob apart receives.
SMOOTHING = 0.25
# A vote under this total weight is thin: about one shipped point at the very spot.
THIN = 0.7


KINDS = ("bf16", "fp8", "fp8_block", "int8_w8a8", "int8_w8a16")
"""How the operands are stored: what decides which tiles fit and which MMA runs."""


def kind(dtype: str | None, blocked: bool) -> str:
    """The kind of a table by its name's ``dtype=`` and whether it has a ``block_shape=``."""
    if dtype == "fp8_w8a8":
        return "fp8_block" if blocked else "fp8"
    return dtype or "bf16"


@dataclass(frozen=True, slots=True)
class Point:
    """Counts of winners at one spot. Features are octaves (log2)."""

    kind: str
    capability: tuple[int, int]
    side: str  # "both": one tile for up and down; "down": tuned for the down projection alone
    tokens: float
    n: float
    e: float
    counts: Mapping[Tile, float]


def tokens_octave(m: int, topk: int, e: int) -> float:
    """log2 of the pairs an expert gets on average."""
    return math.log2(m * topk / e)


@lru_cache(maxsize=1)
def load() -> tuple[Point, ...]:
    """The packaged points; empty when the file is missing."""
    try:
        raw = json.loads(PRIORS_FILE.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ()
    tiles = [Tile(*entry) for entry in raw["tiles"]]
    return tuple(
        Point(kind, (major, minor), side, t, n, e, {tiles[i]: c for i, c in counts})
        for kind, (major, minor), side, t, n, e, counts in raw["points"]
    )


def votes(
    shape: MoeShape,
    capability: Capability | None,
    m: int,
    side: Side,
    points: Iterable[Point] | None = None,
    kind: str = "bf16",
) -> dict[Tile, float]:
    """Tile -> weight of the shipped winners near this problem, not smoothed. TMA is never set: few tables say."""
    here = (tokens_octave(m, shape.topk, shape.E), math.log2(shape.N), math.log2(shape.E))
    total: defaultdict[Tile, float] = defaultdict(float)
    for point in load() if points is None else points:
        if point.kind != kind:
            continue
        weight = _affinity(capability, point.capability) * _side_affinity(side, point.side)
        if weight <= 0:
            continue
        weight *= math.exp(
            -0.5 * ((here[0] - point.tokens) / TOKENS_SCALE) ** 2
            - 0.5 * ((here[1] - point.n) / N_SCALE) ** 2
            - 0.5 * ((here[2] - point.e) / E_SCALE) ** 2
        )
        if weight > 1e-4:
            for tile, count in point.counts.items():
                total[tile] += weight * count
    return dict(total)


Knobs = tuple[int, int, int, int, int, bool]


def knobs(tile: Tile) -> Knobs:
    """The tile as votes see it: GROUP_SIZE_M only as one or more, TMA not at all."""
    return (tile.block_m, tile.block_n, tile.block_k, tile.warps, tile.stages, tile.group_m > 1)


@dataclass(frozen=True, slots=True)
class Votes:
    """Smoothed votes; ``of`` any tile."""

    weights: Mapping[tuple[int, ...], float]
    total: float

    def of(self, tile: Tile) -> float:
        return self.weights.get(knobs(tile), 0.0)

    @property
    def thin(self) -> bool:
        """Whether hardly anybody tuned near this spot."""
        return self.total < THIN


def smooth(raw: Mapping[Tile, float]) -> Votes:
    """Give each tile ``SMOOTHING ** n`` of the vote of every tile n knobs away; separable, so one knob at a time."""
    weights: dict[tuple[int, ...], float] = {}
    for tile, weight in raw.items():
        weights[knobs(tile)] = weights.get(knobs(tile), 0.0) + weight
    spots = weights
    for axis in range(6):
        values = {spot[axis] for spot in spots}
        lines: defaultdict[tuple[int, ...], float] = defaultdict(float)
        for spot, weight in spots.items():
            lines[spot[:axis] + spot[axis + 1 :]] += weight
        spread: dict[tuple[int, ...], float] = {}
        for line, total in lines.items():
            for value in values:
                spot = (*line[:axis], value, *line[axis:])
                spread[spot] = SMOOTHING * total + (1 - SMOOTHING) * spots.get(spot, 0.0)
        spots = spread
    return Votes(spots, sum(raw.values()))


def knobs_apart(a: Tile, b: Tile) -> int:
    """How many knobs differ; GROUP_SIZE_M counts only as one or not one (1 against more)."""
    return (
        (a.block_m != b.block_m)
        + (a.block_n != b.block_n)
        + (a.block_k != b.block_k)
        + (a.warps != b.warps)
        + (a.stages != b.stages)
        + ((a.group_m == 1) != (b.group_m == 1))
    )


def _affinity(mine: Capability | tuple[int, int] | None, theirs: tuple[int, int]) -> float:
    if mine is None:
        return OTHER_GENERATION
    if (int(mine[0]), int(mine[1])) == theirs:
        return 1.0
    return SAME_GENERATION if _generation(mine) == _generation(theirs) else OTHER_GENERATION


def _generation(capability: tuple[int, int]) -> str:
    """Which tensor-core instruction Triton uses there, and how much shared memory feeds it."""
    major, minor = int(capability[0]), int(capability[1])
    if major == 9:
        return "wgmma"
    if major in (10, 11):
        return "tcgen05"
    return "mma.sync 164K" if (major, minor) in ((8, 0), (8, 7)) else "mma.sync 100K"


def _side_affinity(mine: Side, theirs: str) -> float:
    if theirs == "both":
        return 1.0
    return 2.0 if mine == theirs else 0.0
