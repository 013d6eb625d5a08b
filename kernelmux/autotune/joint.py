"""One BLOCK_SIZE_M per M for both sides, smooth along M where the measurements leave a choice.

Per M the sum up + down + sort is minimal over the BLOCK_SIZE_M values. Pairs that cannot be told from the best at
95% form its tie set; among them a Viterbi pass along M prefers a BLOCK_SIZE_M that does not fall and binaries
already in use, so that files are smooth and two runs agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kernelmux.measure.stats import Interval, interval, ratio
from kernelmux.tuning_configs.table import MoeConfig
from kernelmux.tuning_configs.tile import Tile

# Penalties in log time: a tie costs at most this much for a smoother file.
FALLING_BLOCK_M = 0.004
OTHER_BINARY = 0.0008
LARGER_TILE = 0.00005  # a step in stages or a doubling of the tile, the last resort among equals
TIE_WIDTH = 0.01  # never call more than 1% a tie, however noisy the samples
TIED_TILES = 4  # of one side and BLOCK_SIZE_M


@dataclass(frozen=True, slots=True)
class Finalists:
    """The final at one M: samples of each tile on each side, and the sort's cost by BLOCK_SIZE_M."""

    up: Mapping[Tile, tuple[float, ...]]
    down: Mapping[Tile, tuple[float, ...]]
    align_us: Mapping[int, float]
    default: MoeConfig | None  # the pair the table must not be slower than
    one_tile: bool = False  # up and down must run the same tile


@dataclass(frozen=True, slots=True)
class Choice:
    """What one M got. All times are microseconds; ``ties`` counts pairs that cannot be told from the best."""

    config: MoeConfig
    up: Interval
    down: Interval
    align_us: float
    ties: tuple[MoeConfig, ...]

    @property
    def us(self) -> float:
        return self.up.mid + self.down.mid + self.align_us


@dataclass(frozen=True, slots=True)
class _State:
    config: MoeConfig
    us: float
    choice: Choice


def solve(finals: Mapping[int, Finalists], seed: str) -> dict[int, Choice]:
    """The chosen pair for every M that has one on both sides; an M with no common BLOCK_SIZE_M is left out."""
    columns = {m: states for m in sorted(finals) if (states := _states(finals[m], f"{seed}/{m}"))}
    if not columns:
        return {}
    ms = list(columns)
    best = {m: min(s.us for s in columns[m]) for m in ms}
    cost = [[_own(s, best[ms[0]]) for s in columns[ms[0]]]]
    came: list[list[int]] = []
    for before, m in pairwise(ms):
        row, back = [], []
        for state in columns[m]:
            steps = [c + _step(p, state) for c, p in zip(cost[-1], columns[before], strict=True)]
            place = min(range(len(steps)), key=lambda i: (steps[i], i))
            row.append(steps[place] + _own(state, best[m]))
            back.append(place)
        cost.append(row)
        came.append(back)
    place = min(range(len(cost[-1])), key=lambda i: (cost[-1][i], i))
    path = [place]
    for back in reversed(came):
        path.append(back[path[-1]])
    chosen = {m: columns[m][i].choice for m, i in zip(ms, reversed(path), strict=True)}
    for m, choice in chosen.items():
        assert choice.config.up.block_m == choice.config.down.block_m, f"BLOCK_SIZE_M differs at M={m}"
    return chosen


def _states(final: Finalists, seed: str) -> list[_State]:
    """The pairs at one M that are the best or cannot be told from it, and are not slower than the default."""
    found = _same_tile(final, seed) if final.one_tile else _pairs(final, seed)
    if not found:
        return []
    found.sort(key=lambda f: (f[0], f[2]))
    best_us, best_half = found[0][0], found[0][1]
    ceiling = next((f[0] for f in found if f[2] == final.default), math.inf)
    tied = [
        f for f in found
        if f[0] - best_us <= min(math.hypot(f[1], best_half), TIE_WIDTH * best_us) and f[0] <= ceiling
    ] or found[:1]  # fmt: skip
    ties = tuple(f[2] for f in tied)
    return [_State(c, us, Choice(c, u, d, sort, ties)) for us, _, c, u, d, sort in tied]


_Pair = tuple[float, float, MoeConfig, Interval, Interval, float]  # sum, half width, config, up, down, sort


def _same_tile(final: Finalists, seed: str) -> list[_Pair]:
    """Every tile that ran on both sides, as a pair with itself."""
    found: list[_Pair] = []
    for tile in final.up.keys() & final.down.keys():
        up = interval(final.up[tile], f"{seed}/up/{tile.short()}")
        down = interval(final.down[tile], f"{seed}/down/{tile.short()}")
        sort = final.align_us.get(tile.block_m, 0.0)
        us, half = up.mid + down.mid + sort, math.hypot(up.half, down.half)
        found.append((us, half, MoeConfig(tile, tile), up, down, sort))
    return found


def _pairs(final: Finalists, seed: str) -> list[_Pair]:
    """The fastest tiles of each BLOCK_SIZE_M on either side, combined."""
    found: list[_Pair] = []
    for block_m in sorted({t.block_m for t in final.up} & {t.block_m for t in final.down}):
        sort = final.align_us.get(block_m, 0.0)
        ups = _tied({t: s for t, s in final.up.items() if t.block_m == block_m}, seed + "/up", final.default)
        downs = _tied({t: s for t, s in final.down.items() if t.block_m == block_m}, seed + "/down", final.default)
        for up, u in ups.items():
            for down, d in downs.items():
                half = math.hypot(u.half, d.half)
                found.append((u.mid + d.mid + sort, half, MoeConfig(up, down), u, d, sort))
    return found


def _tied(samples: Mapping[Tile, Sequence[float]], seed: str, default: MoeConfig | None) -> dict[Tile, Interval]:
    """The fastest tile of one BLOCK_SIZE_M and those that cannot be told from it, with the default's beside them."""
    if not samples:
        return {}
    mids = {t: interval(s, f"{seed}/{t.short()}") for t, s in samples.items()}
    ordered = sorted(mids, key=lambda t: (mids[t].mid, t))
    first = ordered[0]
    tied = [first]
    for tile in ordered[1:]:
        slower = ratio(samples[tile], samples[first], f"{seed}/{tile.short()}/ratio")
        if slower.low <= 1.0 and slower.mid <= 1 + TIE_WIDTH:
            tied.append(tile)
    kept = tied[:TIED_TILES]
    if default is not None:
        kept += [t for t in (default.up, default.down) if t in samples and t not in kept]
    return {t: mids[t] for t in kept}


def _own(state: _State, best_us: float) -> float:
    size = sum(math.log2(t.block_m * t.block_n * t.block_k) + t.stages for t in (state.config.up, state.config.down))
    return math.log(state.us / best_us) + LARGER_TILE * size


def _step(before: _State, after: _State) -> float:
    falling = FALLING_BLOCK_M if after.config.block_m < before.config.block_m else 0.0
    other = (before.config.up != after.config.up) + (before.config.down != after.config.down)
    return falling + OTHER_BINARY * other
