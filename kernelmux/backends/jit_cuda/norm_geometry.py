"""How rows are dealt out to threads: pure rules over lengths and rows, with what was measured as data.

A row, or the group of it that is normalised together, is cut into chunks of one full access. ``lanes`` threads share a
row, chunk ``k * lanes + t`` is thread t's k-th. No geometry changes a result: see csrc/norms.cu.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import UsageError
from ...registry.value import Value
from .compiler import vector_bytes

if TYPE_CHECKING:
    from ...device import Capability

MOST_THREADS = 1024
REGISTERS = 64 * 1024
LONG_LANES = 512
MOST_SUMS = 32  # of a thread: as many as a warp has lanes
MEASURED = Path(__file__).with_name("norm_geometries.json")

ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
OPS = ("rms_norm", "fused_add_rms_norm", "gated_rms_norm")

Table = Mapping[str, Mapping[str, Mapping[str, Mapping[str, "list[tuple[int | None, str]]"]]]]
"""capability -> op -> bytes of an element -> length -> [most rows, geometry], ascending; null: any number."""

_PER_THREAD = (1, 2, 3, 4, 6, 8, 12, 16)

_NAME = re.compile(
    r"(?P<lanes>\d+)x(?P<rows>\d+)(?:-u(?P<unroll>\d+))?(?:-(?P<kind>[pf])(?P<blocks>\d+))?(?:-(?P<loads>keep|ordered))?"
    r"(?P<stores>-stream)?(?:-m(?P<least>\d+))?"
)


class Geometry(Value):
    """``lanes`` threads a row, ``rows`` rows a block side by side, ``unroll`` of them in a thread at a time.

    ``blocks``: so many blocks an SM go on from batch to batch (0: each takes one); ``prefetch``: they ask for the next
    before they finish one. ``loads``: stream, keep or ordered; ``stores``: keep or stream.
    ``least``: the compiler leaves room for so many blocks an SM. ``long``: a row is read twice, by one block.
    """

    lanes: int
    rows: int = 1
    unroll: int = 1
    blocks: int = 0
    prefetch: bool = False
    loads: str = "stream"
    stores: str = "keep"
    least: int = 1
    long: bool = False

    @property
    def threads(self) -> int:
        return self.lanes * self.rows

    @property
    def batch(self) -> int:
        """Rows a block takes at a time."""
        return self.rows * self.unroll

    @property
    def name(self) -> str:
        """``256x1-u2-f4-ordered-stream-m2``: what ``parse`` reads; ``long`` for a long row's only one."""
        if self.long:
            return "long"
        words = [f"{self.lanes}x{self.rows}"]
        words += [f"u{self.unroll}"] if self.unroll > 1 else []
        words += [f"{'f' if self.prefetch else 'p'}{self.blocks}"] if self.blocks else []
        words += [self.loads] if self.loads != "stream" else []
        words += [self.stores] if self.stores != "keep" else []
        words += [f"m{self.least}"] if self.least > 1 else []
        return "-".join(words)

    @staticmethod
    def parse(name: str) -> Geometry:
        """Raises UsageError for a name of another form."""
        if name == "long":
            return LONG
        found = _NAME.fullmatch(name)
        if found is None:
            raise UsageError(f"geometry {name!r} is not of the form 256x1-u2-f4-ordered-stream-m2 (lanes x rows, ...).")
        return Geometry(
            lanes=int(found["lanes"]),
            rows=int(found["rows"]),
            unroll=int(found["unroll"] or 1),
            blocks=int(found["blocks"] or 0),
            prefetch=found["kind"] == "f",
            loads=found["loads"] or "stream",
            stores="stream" if found["stores"] else "keep",
            least=int(found["least"] or 1),
        )

    def grid(self, parts: int, sm_count: int) -> int:
        """Blocks for that many rows; those that go on take equally many turns, but for the last."""
        batches = -(-parts // self.batch)
        most = sm_count * self.blocks
        if not self.blocks or batches <= most:
            return batches
        turns = -(-batches // most)
        return -(-batches // turns)


LONG = Geometry(LONG_LANES, blocks=2048 // LONG_LANES, loads="keep", long=True)


def chunks_of(length: int, item_bytes: int, vector: int) -> int:
    return -(-length * item_bytes // vector)


def fault(geometry: Geometry, op: str, length: int, item_bytes: int, vector: int) -> str | None:
    """Why the kernel cannot be built so, or would spill; None if it can."""
    chunks = chunks_of(length, item_bytes, vector)
    lanes, threads = geometry.lanes, geometry.threads
    if min(lanes, geometry.rows, geometry.unroll, geometry.least) < 1:
        return "a geometry has at least one of everything"
    if threads > MOST_THREADS or threads % 32:
        return f"a block has whole warps, at most {MOST_THREADS} threads, not {threads}"
    if lanes % 32 and (lanes > 32 or lanes & (lanes - 1) or chunks > 32):
        return f"{lanes} lanes: part of a warp (1, 2, 4, ...) for at most 32 chunks, or whole warps"
    if geometry.long:
        return None
    held = geometry.unroll * -(-chunks // lanes)
    if held > MOST_SUMS:
        return f"a thread would hold {held} chunks, more than {MOST_SUMS}"
    need, have = registers(geometry, op, chunks, item_bytes, vector), register_limit(threads * geometry.least)
    if need > have:
        return f"it needs about {need} registers a thread and has {have}"
    return None


def registers(geometry: Geometry, op: str, chunks: int, item_bytes: int, vector: int) -> int:
    """About how many a thread needs: rows in flight, what is held of them, the weight."""
    words, per_thread = vector // 4, -(-chunks // geometry.lanes)
    wide = words * (2 if item_bytes == 2 else 1)  # a chunk in fp32
    loaded = words if op == "rms_norm" else 2 * words
    held = words if op == "rms_norm" else wide
    rows = max(loaded, held) + (loaded if geometry.prefetch else 0)
    need = per_thread * (geometry.unroll * rows + words)
    overlap = geometry.prefetch or geometry.unroll > 1
    return 30 + wide + (need * 7 // 5 if overlap and per_thread * geometry.unroll > 2 else need)


def register_limit(threads: int) -> int:
    """What a thread may have where so many are to be on an SM: its quarters have a fourth of the registers each."""
    warps = (threads + 127) // 128  # of a quarter
    return min(REGISTERS // 4 // (32 * warps) // 8 * 8, 255)


def is_long(op: str, length: int, item_bytes: int, vector: int) -> bool:
    """Whether no block holds such a row in registers."""
    lanes = {_whole_warps(chunks_of(length, item_bytes, vector), per_thread) for per_thread in _PER_THREAD}
    return all(fault(Geometry(each, _rows(each, 32)), op, length, item_bytes, vector) for each in lanes)


def _whole_warps(chunks: int, per_thread: int) -> int:
    """The fewest lanes with which no thread holds more than that many chunks: part of a warp if that is enough."""
    if chunks <= 32 * per_thread:
        lanes = 1
        while lanes * per_thread < chunks and lanes < 32:
            lanes *= 2
        return lanes if chunks <= 32 else 32
    lines = -(-chunks // 32)
    return 32 * -(-lines // per_thread)


def _rows(lanes: int, threads: int) -> int:
    """Rows side by side in a block of about that many threads, in whole warps."""
    return max(threads // lanes, 32 // lanes, 1)


def geometries(op: str, length: int, dtype: str, capability: Capability) -> tuple[Geometry, ...]:
    """What is worth timing for rows of that length, each once, the default of many rows in front."""
    item_bytes, vector = ITEM_BYTES[dtype], vector_bytes(capability)
    if is_long(op, length, item_bytes, vector):
        return (LONG,)
    found: dict[str, Geometry] = {}
    chunks = chunks_of(length, item_bytes, vector)
    for geometry in (*(by_band(band, op, length, item_bytes, vector) for band in BANDS[::-1]), *_candidates(chunks)):
        if fault(geometry, op, length, item_bytes, vector) is None:
            found.setdefault(geometry.name, geometry)
    return tuple(found.values())


def _candidates(chunks: int) -> Iterator[Geometry]:
    for per_thread in (2, 1, 4, 3, 8):
        lanes = _whole_warps(chunks, per_thread)
        if lanes > MOST_THREADS or (per_thread > 1 and lanes == _whole_warps(chunks, per_thread - 1)):
            continue
        for threads in (256, 128) if lanes < 128 else (lanes,):
            rows = _rows(lanes, threads)
            yield Geometry(lanes, rows)
            yield Geometry(lanes, rows, loads="ordered")
            yield Geometry(lanes, rows, stores="stream")
            resident = 2048 // (lanes * rows)
            for blocks in sorted({max(resident // 2, 1), resident}):
                yield Geometry(lanes, rows, blocks=blocks, prefetch=True)
            yield Geometry(lanes, rows, blocks=resident)
            if per_thread <= 4:
                yield Geometry(lanes, rows, unroll=2)
            if per_thread <= 2 and lanes <= 128:
                yield Geometry(lanes, rows, unroll=4)
        if lanes < 32:
            yield Geometry(lanes, 32 // lanes, loads="ordered")


class Band(Value):
    """How rows are dealt out where nothing was measured: up to so many rows an SM (None: any number)."""

    rows_per_sm: float | None
    per_thread: int  # chunks
    threads: int  # a block, at least
    loads: str


# Few rows: latency, so as many threads as have a chunk, and the weight asked for first. Many: bytes in flight.
BANDS = (Band(1.0, 1, 32, "ordered"), Band(None, 2, 128, "stream"))
MOST_LANES = 512  # a barrier of more warps waits longer than a second chunk does


def choose(op: str, length: int, dtype: str, parts: int, capability: Capability, sm_count: int) -> Geometry:
    """The geometry for ``parts`` rows of ``length``: measured on that capability, else by the bands."""
    for most, geometry in measured(str(capability), op, ITEM_BYTES[dtype], length):
        if most is None or parts <= most:
            return geometry
    item_bytes, vector = ITEM_BYTES[dtype], vector_bytes(capability)
    if is_long(op, length, item_bytes, vector):
        return LONG
    band = next(each for each in BANDS if each.rows_per_sm is None or parts <= each.rows_per_sm * sm_count)
    return by_band(band, op, length, item_bytes, vector)


def by_band(band: Band, op: str, length: int, item_bytes: int, vector: int) -> Geometry:
    """The band's own, or the nearest that fits into the registers."""
    chunks = chunks_of(length, item_bytes, vector)
    tried: set[int] = set()
    for most_lanes in (MOST_LANES, MOST_THREADS):
        for per_thread in (band.per_thread, *_PER_THREAD):
            lanes = _whole_warps(chunks, per_thread)
            if lanes > most_lanes or lanes in tried:
                continue
            tried.add(lanes)
            geometry = Geometry(lanes, _rows(lanes, band.threads), loads=band.loads)
            if fault(geometry, op, length, item_bytes, vector) is None:
                return geometry
    raise AssertionError(f"{op}: no geometry for rows of {length}")  # is_long() says so before


@cache
def measured(capability: str, op: str, item_bytes: int, length: int) -> tuple[tuple[int | None, Geometry], ...]:
    """(most rows, geometry), ascending, for a length that was timed; None: any number. Empty for others."""
    table = _table().get(capability, {}).get(op, {}).get(str(item_bytes), {}).get(str(length), [])
    return tuple((most, Geometry.parse(name)) for most, name in table)


@cache
def _table() -> Table:
    if not MEASURED.exists():
        return {}
    found: Table = json.loads(MEASURED.read_text(encoding="utf-8"))["geometries"]
    return found
