"""Which tiles a race starts from, in which order: the default, public winners, and the best estimates."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from kernelmux.autotune import priors
from kernelmux.autotune.rank import HOPELESS, rank
from kernelmux.autotune.target import KERNELMUX, Target
from kernelmux.measure.bench import Side
from kernelmux.tuning_configs.tile import Tile

if TYPE_CHECKING:
    from kernelmux.contracts.moe_shape import MoeShape
    from kernelmux.device import Device

# Reciprocal rank fusion: how far down a list a place still counts. Priors place 62% of winners in their first 32.
FUSE = 12.0
PRIOR_WEIGHT = 2.0
NEAR = 0.02  # of the strongest vote
TMA_SHARE = 0.8  # tables say little of TMA: the twin of a public winner ranks just behind it


def order(
    tiles: Sequence[Tile], shape: MoeShape, device: Device, side: Side, m: int, target: Target = KERNELMUX
) -> tuple[list[Tile], dict[str, int]]:
    """The tiles worth measuring at ``m``, most promising first, and how many were cut for which reason.

    A tile is cut when its estimate exceeds five times the best one and hardly a public winner lies near it.
    """
    estimates = rank(tiles, shape, device, side, m, target=target)
    if not estimates:
        return [], {}
    votes = priors.smooth(priors.votes(shape, device.capability, m, side, kind=target.kind))
    vote = {t: votes.of(t) * (TMA_SHARE if t.use_tma else 1.0) for t in tiles}
    near = NEAR * max(vote.values())
    by_vote = sorted(tiles, key=lambda t: (-vote[t], t))
    place_vote = {t: i for i, t in enumerate(by_vote)}
    limit = HOPELESS * estimates[0].us
    kept = [(i, e.tile) for i, e in enumerate(estimates) if e.us <= limit or vote[e.tile] > near]
    fused = sorted(kept, key=lambda it: (-(1 / (FUSE + it[0]) + PRIOR_WEIGHT / (FUSE + place_vote[it[1]])), it[1]))
    cut = len(estimates) - len(kept)
    reason = f"estimated at more than {HOPELESS:g} times the best estimate"
    return balanced([tile for _, tile in fused]), ({reason: cut} if cut else {})


def balanced(tiles: Sequence[Tile]) -> list[Tile]:
    """The same order, but each BLOCK_SIZE_M has in every beginning at least half of its equal share.

    Only the sum of both sides can tell which BLOCK_SIZE_M wins, so none may be judged on a handful of tiles.
    """
    queues: dict[int, deque[Tile]] = {}
    for tile in tiles:
        queues.setdefault(tile.block_m, deque()).append(tile)
    place = {tile: i for i, tile in enumerate(tiles)}
    taken = dict.fromkeys(queues, 0)
    out: list[Tile] = []
    while queues:
        owed = len(out) / (2 * len(taken))
        behind = [bm for bm in queues if taken[bm] < owed]
        block_m = min(behind or queues, key=lambda bm: place[queues[bm][0]])
        out.append(queues[block_m].popleft())
        taken[block_m] += 1
        if not queues[block_m]:
            del queues[block_m]
    return out


def spread(
    ordered: Mapping[int, Sequence[Tile]], default: Mapping[int, Tile], field: int, cap: int
) -> dict[int, list[Tile]]:
    """For each M at most ``field`` of its ordered tiles, at most ``cap`` different ones over all M.

    Deals one tile to each M in turn, so that no M is starved. The default of each M is always in, on top of both.
    """
    chosen: dict[int, list[Tile]] = {m: [default[m]] for m in ordered}
    union: set[Tile] = set()
    for place in range(field):
        for m, tiles in ordered.items():
            if place >= len(tiles) or tiles[place] == default[m]:
                continue
            if tiles[place] in union or len(union) < cap:
                union.add(tiles[place])
                chosen[m].append(tiles[place])
    return chosen


def fitted(tiles: Iterable[Tile], block_ms: Iterable[int]) -> list[Tile]:
    """The tiles whose BLOCK_SIZE_M is still in the race, each once."""
    allowed = set(block_ms)
    return list(dict.fromkeys(t for t in tiles if t.block_m in allowed))
