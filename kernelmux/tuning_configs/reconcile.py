"""Make one valid table of an up and a down table that disagree, saying what was changed."""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kernelmux.tuning_configs.document import KernelmuxConfigWarning
from kernelmux.tuning_configs.shared_law import fits, shrunk
from kernelmux.tuning_configs.table import MoeTable
from kernelmux.tuning_configs.tile import Tile

if TYPE_CHECKING:
    from kernelmux.device import Device


def pair(
    up: Mapping[int, Tile],
    down: Mapping[int, Tile],
    where: Path | str,
    device: Device | None = None,
    element_bytes: float = 2,
) -> MoeTable:
    """`reconciled`, with each thing changed said as a KernelmuxConfigWarning that names ``where`` and M."""
    table, notes = reconciled(up, down, where, device, element_bytes)
    for note in notes:
        warnings.warn(note, KernelmuxConfigWarning, stacklevel=2)
    return table


def reconciled(
    up: Mapping[int, Tile],
    down: Mapping[int, Tile],
    where: Path | str,
    device: Device | None = None,
    element_bytes: float = 2,
) -> tuple[MoeTable, tuple[str, ...]]:
    """A table of both, and a sentence for each thing that was changed to make it.

    The keys are those of either side; a side without one takes its nearest. Where BLOCK_SIZE_M differs, both take
    up's, as SGLang does, if down's other knobs fit the device's shared memory with it; else down's if up's fit with
    that; else up's, and down's stages and blocks shrink. Every tile fits ``device`` afterwards. A table that agrees
    and fits comes back unchanged. Raises ValueError when either side is empty.
    """
    if not up or not down:
        raise ValueError(f"{where}: one side of the pair has no entries")
    notes: list[str] = []
    odd = sorted(up.keys() ^ down.keys())
    if odd:
        listed = ", ".join(map(str, odd[:8])) + (", ..." if len(odd) > 8 else "")
        notes.append(f"{where}: only one of up and down has M={listed}; the other side takes its nearest entry there.")
    new_up: dict[int, Tile] = {}
    new_down: dict[int, Tile] = {}
    up_keys, down_keys = sorted(up), sorted(down)
    for m in sorted(up.keys() | down.keys()):
        left, right = up[_nearest(up_keys, m)], down[_nearest(down_keys, m)]
        new_up[m], new_down[m] = _agree(left, right, device, element_bytes)
        if left.block_m != right.block_m:
            notes.append(
                f"{where} at M={m}: BLOCK_SIZE_M is {left.block_m} for up and {right.block_m} for down; "
                f"both GEMMs share one token order, so {new_up[m].block_m} is used. Now up {new_up[m].short()}, "
                f"down {new_down[m].short()}. Tune the shape again for the best pair."
            )
        elif (new_up[m], new_down[m]) != (left, right):
            assert device is not None
            notes.append(
                f"{where} at M={m}: up {left.short()}, down {right.short()} need more than the {device.shared_bytes:,} "
                f"bytes of shared memory of {device.name}; now up {new_up[m].short()}, down {new_down[m].short()}."
            )
    return MoeTable(new_up, new_down), tuple(notes)


def _agree(up: Tile, down: Tile, device: Device | None, size: float) -> tuple[Tile, Tile]:
    def usable(tile: Tile) -> bool:
        return _lowers(tile) and (device is None or fits(tile, device, size, size))

    def made_to_fit(tile: Tile) -> Tile:
        lowered = tile if _lowers(tile) else replace(tile, warps=8)
        return lowered if device is None else shrunk(lowered, device, size, size)

    if up.block_m != down.block_m:
        ups, downs = replace(down, block_m=up.block_m), replace(up, block_m=down.block_m)
        if usable(up) and usable(ups):
            return up, ups
        if usable(downs) and usable(down):
            return downs, down
        return made_to_fit(up), made_to_fit(ups)
    return (up if device is None else shrunk(up, device, size, size)), (
        down if device is None else shrunk(down, device, size, size)
    )


def _lowers(tile: Tile) -> bool:
    """Triton 3.6 fails inside on these (sm_90, sm_120: RuntimeError, PassManager::run failed)."""
    return not (tile.block_m == 256 and tile.warps == 4 and tile.block_n == tile.block_k and tile.block_n >= 64)


def _nearest(keys: list[int], m: int) -> int:
    """The key nearest to ``m`` in log space, ties to the smaller: `MoeTable.key_for` for one side."""
    after = bisect_right(keys, m)
    if after in (0, len(keys)):
        return keys[min(after, len(keys) - 1)]
    low, high = keys[after - 1], keys[after]
    return low if m * m <= low * high else high
