"""Which tile a small op runs: a pure function of its rows, their width, their element size and the GPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

VECTOR_BYTES = 16
LONGEST = 32768  # elements of a row that are held in registers
LONGEST_OF = {"rms_norm_fp8": 16384}  # twice that spills
SMALL = 4  # rows for each multiprocessor, up to which latency counts and not bandwidth

TABLE = Path(__file__).with_name("small_tiles.json")


class Tile(NamedTuple):
    """ROWS x (chunks of BLOCK columns), its warps, and how tiles are dealt to programs."""

    rows: int
    block: int
    warps: int
    stages: int = 1
    per_sm: int = 0  # programs a multiprocessor, each taking many tiles; 0: one tile a program


def pow2_at_least(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def vector(itemsize: int) -> int:
    return VECTOR_BYTES // itemsize


@lru_cache(maxsize=4096)
def row_tile(op: str, rows: int, width: int, itemsize: int, capability: str, sms: int) -> Tile:
    """Tile of an op that sums whole rows. How a row is summed depends on rows, block and warps of the tile.

    So only stages and per_sm depend on how many rows there are: a row's result is the same in any batch.
    """
    measured = _entry(op, width, itemsize, capability)
    if measured is None:
        return row_geometry(op, width, itemsize)
    geometry, dealt = measured["tile"], _last_at_most(measured["dealt"], rows)
    return Tile(*geometry, *dealt)


@lru_cache(maxsize=4096)
def column_tile(op: str, rows: int, width: int, itemsize: int, capability: str, sms: int) -> Tile:
    """Tile of an op whose result does not depend on tiles. silu_and_mul_fp8: rows and width of its blocks of 128."""
    measured = _entry(op, width, itemsize, capability)
    if measured is None:
        return _column_rule(rows, width, itemsize, sms)
    return Tile(*_last_at_most(measured["tiles"], rows))


def _entry(op: str, width: int, itemsize: int, capability: str) -> dict[str, Any] | None:
    """What was fastest on this capability at this width."""
    found: dict[str, Any] | None = _table().get(capability, {}).get(op, {}).get(str(itemsize), {}).get(str(width))
    return found


def _last_at_most(entries: Sequence[Sequence[int]], rows: int) -> Sequence[int]:
    """Of [least rows, *what], by rising rows: the last that starts at or below ``rows``, else the first."""
    best = entries[0]
    for entry in entries:
        if entry[0] <= rows:
            best = entry
    return best[1:]


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    tiles: dict[str, Any] = json.loads(TABLE.read_text("utf-8"))["tiles"]
    return tiles


def longest(op: str) -> int:
    return LONGEST_OF.get(op, LONGEST)


def row_geometry(op: str, width: int, itemsize: int) -> Tile:
    each = vector(itemsize)
    vectors = -(-width // each)
    if width > longest(op):
        return Tile(1, 16 * 32 * each * 2, 16)
    if vectors <= 64:  # several rows a tile, a vector a thread
        columns = pow2_at_least(width)
        return Tile(max(1, 4 * 32 * each // columns), columns, 4)
    warps = 4
    while warps < 32 and vectors > warps * 32 * (3 if warps < 8 else 4):
        warps *= 2
    return Tile(1, warps * 32 * each, warps)


def _column_rule(rows: int, width: int, itemsize: int, sms: int) -> Tile:
    each = vector(itemsize)
    few = rows * width <= SMALL * sms * 1024
    warps = 1 if few else 4
    block = min(warps * 32 * each, pow2_at_least(width))
    return Tile(max(1, warps * 32 * each // block), block, warps)


def row_geometries(op: str, width: int, itemsize: int) -> tuple[Tile, ...]:
    """What a sweep times, the rule's own first."""
    each = vector(itemsize)
    vectors = -(-width // each)
    found = [row_geometry(op, width, itemsize)]
    if width > longest(op):
        found += [Tile(1, warps * 32 * each * k, warps) for warps in (8, 16, 32) for k in (1, 2, 4)]
    elif vectors <= 64:
        columns = pow2_at_least(width)
        for warps in (1, 2, 4, 8):
            found += [Tile(max(1, warps * 32 * each * k // columns), columns, warps) for k in (1, 2, 4)]
    else:
        for warps in (1, 2, 4, 8, 16, 32):
            a_thread = -(-vectors // (warps * 32))
            if a_thread <= 8 and (a_thread > 1 or vectors * 2 > warps * 32):
                found.append(Tile(1, warps * 32 * each, warps))
    return tuple(dict.fromkeys(found))


def dealings(tile: Tile, tiles: int, sms: int) -> tuple[tuple[int, int], ...]:
    """(stages, per_sm) that a sweep times with this tile: one tile a program, and where there are many, persistent."""
    found = [(1, 0)]
    resident = max(1, min(64 // tile.warps, 16))
    if tiles > 2 * sms * resident // 4:
        found += [(1, resident), (2, resident), (3, resident), (3, max(1, resident // 2))]
    return tuple(dict.fromkeys(found))


def column_candidates(rows: int, width: int, itemsize: int, sms: int) -> tuple[Tile, ...]:
    """What a sweep times, the rule's own tile first."""
    each = vector(itemsize)
    found = [_column_rule(rows, width, itemsize, sms)]
    for warps, k in ((1, 1), (2, 1), (4, 1), (8, 1), (4, 2), (8, 2), (4, 4)):
        size = warps * 32 * each * k
        block = min(size, pow2_at_least(width))
        height = max(1, size // block)
        if height > max(rows, 1):
            continue
        found.append(Tile(height, block, warps))
        tiles = -(-rows // height) * -(-width // block)
        if (warps, k) in ((4, 1), (8, 1), (4, 2)):
            found += [Tile(height, block, warps, *deal) for deal in dealings(found[-1], tiles, sms) if deal[0] != 2]
    return tuple(dict.fromkeys(found))
