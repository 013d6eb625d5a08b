"""Make one valid table of an up and a down table that disagree, saying what was changed.

Where BLOCK_SIZE_M differs, the one that the tuned entries around this M speak for wins, and the side that has to move
takes a tile of that BLOCK_SIZE_M which somebody measured; only where there is none is its own tile bent.
"""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import log2
from pathlib import Path
from typing import TYPE_CHECKING

from kernelmux.tuning_configs.document import KernelmuxConfigWarning
from kernelmux.tuning_configs.shared_law import fits, shrunk
from kernelmux.tuning_configs.table import MoeTable
from kernelmux.tuning_configs.tile import Tile

if TYPE_CHECKING:
    from kernelmux.device import Device

# How far a tile of the wanted BLOCK_SIZE_M may be fetched from along M: two octaves. Neighbouring keys of the usual
# grid are at most one apart.
_REACH = 2.0
# Up decides: its tile sorts the tokens, and SGLang bends down's to it.
_OWN_VOTE = {"up": 1.5, "down": 1.0}
_LEAST_M = 16


Tiles = Mapping[int, Tile]


@dataclass(frozen=True, slots=True)
class _Limits:
    """What a tile must respect: the device's shared memory at these bytes an element, and what Triton can lower."""

    device: Device | None
    a_bytes: float
    b_bytes: float

    def fits(self, tile: Tile) -> bool:
        return self.device is None or fits(tile, self.device, self.a_bytes, self.b_bytes)

    def takes(self, tile: Tile) -> bool:
        return _lowers(tile) and self.fits(tile)

    def shrunk(self, tile: Tile) -> Tile:
        return tile if self.device is None else shrunk(tile, self.device, self.a_bytes, self.b_bytes)


def pair(
    up: Tiles, down: Tiles, where: Path | str, device: Device | None = None, a_bytes: float = 2, b_bytes: float = 0
) -> MoeTable:
    """`reconciled`, with each thing changed said as a KernelmuxConfigWarning that names ``where`` and M."""
    table, notes = reconciled(up, down, where, device, a_bytes, b_bytes)
    for note in notes:
        warnings.warn(note, KernelmuxConfigWarning, stacklevel=2)
    return table


def reconciled(
    up: Tiles, down: Tiles, where: Path | str, device: Device | None = None, a_bytes: float = 2, b_bytes: float = 0
) -> tuple[MoeTable, tuple[str, ...]]:
    """A table of both, and a sentence for each thing that was changed to make it.

    The keys are those of either side; a side without one takes its nearest. Where BLOCK_SIZE_M differs, see the
    module. Every tile fits ``device`` afterwards (``a_bytes``, ``b_bytes`` an element of activations and weights;
    ``b_bytes`` 0: the same). A table that agrees and fits comes back unchanged. Raises ValueError when a side is empty.
    """
    if not up or not down:
        raise ValueError(f"{where}: one side of the pair has no entries")
    limits = _Limits(device, a_bytes, b_bytes or a_bytes)
    notes: list[str] = []
    odd = sorted(up.keys() ^ down.keys())
    if odd:
        listed = ", ".join(map(str, odd[:8])) + (", ..." if len(odd) > 8 else "")
        notes.append(f"{where}: only one of up and down has M={listed}; the other side takes its nearest entry there.")
    new_up: dict[int, Tile] = {}
    new_down: dict[int, Tile] = {}
    up_keys, down_keys = sorted(up), sorted(down)
    for m in sorted(up.keys() | down.keys()):
        left, right = up[nearest(up_keys, m)], down[nearest(down_keys, m)]
        if left.block_m != right.block_m:
            new_up[m], new_down[m] = _fitted(*_agreed(m, left, right, up, down, limits), limits)
            notes.append(
                f"{where} at M={m}: BLOCK_SIZE_M is {left.block_m} for up and {right.block_m} for down; "
                f"both GEMMs share one token order, so {new_up[m].block_m} is used. Now up {new_up[m].short()}, "
                f"down {new_down[m].short()}. Tune the shape again for the best pair."
            )
            continue
        new_up[m], new_down[m] = _fitted(left, right, limits)
        if (new_up[m], new_down[m]) != (left, right):
            assert device is not None
            notes.append(
                f"{where} at M={m}: up {left.short()}, down {right.short()} need more than the {device.shared_bytes:,} "
                f"bytes of shared memory of {device.name}; now up {new_up[m].short()}, down {new_down[m].short()}."
            )
    return MoeTable(new_up, new_down), tuple(notes)


def _agreed(m: int, left: Tile, right: Tile, up: Tiles, down: Tiles, limits: _Limits) -> tuple[Tile, Tile]:
    """The pair at ``m`` with one BLOCK_SIZE_M: of the two, the one with a measured partner, then with more votes."""
    choices = []
    for stays, moves, own, side in ((left, right, down, "up"), (right, left, up, "down")):
        moved, measured = _moved(m, moves, stays, own, limits)
        sound = limits.takes(stays) and limits.takes(moved)
        votes = _OWN_VOTE[side] + _votes(m, stays.block_m, up) + _votes(m, stays.block_m, down)
        pair_of = (stays, moved) if side == "up" else (moved, stays)
        choices.append((not sound, not measured, -votes, side == "down", pair_of))
    return min(choices)[-1]


def _moved(m: int, tile: Tile, partner: Tile, own: Tiles, limits: _Limits) -> tuple[Tile, bool]:
    """A tile with the partner's BLOCK_SIZE_M for the side that has to move, and whether somebody measured it there.

    Its own side's nearest one; else its own tile with the other number, where that is one step off and fits; else the
    partner's tile, as SGLang runs both GEMMs with up's where down has none.
    """
    block_m = partner.block_m
    near = [
        (abs(log2(key / m)), key, entry)
        for key, entry in own.items()
        if entry.block_m == block_m and limits.takes(entry) and abs(log2(key / m)) <= _REACH
    ]
    if near:
        return min(near)[-1], True
    bent = replace(tile, block_m=block_m)
    if not _lowers(bent):
        bent = replace(bent, warps=8)
    one_step = max(block_m, tile.block_m) <= 2 * min(block_m, tile.block_m)
    if (one_step and limits.takes(bent)) or not limits.takes(partner):
        return bent, False
    return replace(partner, use_tma=False), False


def _votes(m: int, block_m: int, tiles: Tiles) -> float:
    """How far the entries around ``m`` speak for a BLOCK_SIZE_M: the nearer along log M, the more; ``m``'s own not."""
    return sum(1 / (1 + abs(log2(key / m))) ** 2 for key, tile in tiles.items() if key != m and tile.block_m == block_m)


def _fitted(up: Tile, down: Tile, limits: _Limits) -> tuple[Tile, Tile]:
    """Both tiles made to fit; BLOCK_SIZE_M is halved, for both, only where nothing else helps."""
    while True:
        small = limits.shrunk(up), limits.shrunk(down)
        if all(map(limits.fits, small)) or up.block_m <= _LEAST_M:
            return small
        block_m = up.block_m // 2
        up, down = replace(up, block_m=block_m), replace(down, block_m=block_m)


def _lowers(tile: Tile) -> bool:
    """Triton 3.6 fails inside on these (sm_90, sm_120: RuntimeError, PassManager::run failed)."""
    return not (tile.block_m == 256 and tile.warps == 4 and tile.block_n == tile.block_k and tile.block_n >= 64)


def nearest(keys: list[int], m: int) -> int:
    """The key nearest to ``m`` in log space, ties to the smaller: `MoeTable.key_for` for one side (sorted keys)."""
    after = bisect_right(keys, m)
    if after in (0, len(keys)):
        return keys[min(after, len(keys) - 1)]
    low, high = keys[after - 1], keys[after]
    return low if m * m <= low * high else high
