"""How accesses are dealt out to threads in csrc/activations.cu and fp8_epilogues.cu: pure rules, measurements as data.

The accesses of all rows are numbered through; a block takes ``threads * unroll`` neighbouring ones at a time. No
geometry changes a result.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UsageError
from ...registry.value import Value
from .compiler import vector_bytes

if TYPE_CHECKING:
    from ...device import Capability

MOST_ACCESSES = 2**31  # of one launch; the kernel's numbers have 32 bits
ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
MEASURED = Path(__file__).with_name("activation_geometries.json")

# As csrc/common.cuh names them. LOADS: KEEP, STREAM, FIRST. LAUNCH: EARLY, LATE, ENDED, the next kernel's coming in.
# On an H200: with much to do, loads that stay in the L1 are 5 to 10% faster than those that pass it by. With little,
# the next kernel must come in early (late costs 45% at one token), and loads that pass by are up to 8% faster. The
# fp8 epilogues are within 1% of their best with EARLY and KEEP at every size.
MUCH = (("LAUNCH", "LATE"), ("LOADS", "KEEP"))
LITTLE = (("LAUNCH", "EARLY"), ("LOADS", "STREAM"))
FP8 = (("LAUNCH", "EARLY"), ("LOADS", "KEEP"))
LITTLE_PER_SM = 2048.0  # accesses of the widest
OVERLAP = True  # programmatic dependent launch, where the GPU has it

_SHARES = {1: "", 2: "half", 4: "quarter"}
_NAME = re.compile(
    r"(?P<threads>\d+)x(?P<unroll>\d+)(?:-(?P<share>half|quarter))?(?:-p(?P<blocks>\d+))?(?P<stores>-stream)?"
)


class Geometry(Value):
    """``unroll`` accesses in each of ``threads`` threads before any waits for the first.

    ``share``: an access is the widest of the GPU divided by 1, 2 or 4, for more threads where there is little to do.
    ``blocks``: so many an SM go round until all is done; 0: a block for every batch. ``stores``: keep or stream.
    ``little``: there is little to do, see LITTLE above; no part of the name.
    """

    threads: int
    unroll: int = 1
    share: int = 1
    blocks: int = 0
    stores: str = "keep"
    little: bool = False

    @property
    def memory(self) -> tuple[tuple[str, str], ...]:
        """What csrc/activations.cu is compiled with for its loads and for the next kernel."""
        return LITTLE if self.little else MUCH

    @property
    def name(self) -> str:
        """``256x2-half-p8-stream``: what ``parse`` reads."""
        words = [f"{self.threads}x{self.unroll}"]
        words += [_SHARES[self.share]] if self.share > 1 else []
        words += [f"p{self.blocks}"] if self.blocks else []
        words += [self.stores] if self.stores != "keep" else []
        return "-".join(words)

    @staticmethod
    def parse(name: str) -> Geometry:
        """Raises UsageError for a name of another form, or for what the kernel cannot be built as."""
        found = _NAME.fullmatch(name)
        if found is None:
            raise UsageError(f"geometry {name!r} is not of the form 256x2-half-p8-stream (threads x unroll, ...).")
        geometry = Geometry(
            threads=int(found["threads"]),
            unroll=int(found["unroll"]),
            share={word: share for share, word in _SHARES.items()}[found["share"] or ""],
            blocks=int(found["blocks"] or 0),
            stores="stream" if found["stores"] else "keep",
        )
        said = fault(geometry)
        if said:
            raise UsageError(f"geometry {name!r}: {said}.")
        return geometry

    def grid(self, accesses: int, sm_count: int) -> int:
        """Blocks for that many accesses; those that go round take equally many turns, but for the last."""
        batches = -(-accesses // (self.threads * self.unroll))
        most = sm_count * self.blocks
        if not self.blocks or batches <= most:
            return batches
        return -(-batches // -(-batches // most))


def most_threads(unroll: int) -> int:
    """Of a block, so that a thread has the registers it needs: what csrc/activations.cu says as launch bounds."""
    return 512 if unroll > 2 else 1024


def fault(geometry: Geometry) -> str | None:
    """Why there is no such kernel; None if there is."""
    if geometry.unroll not in (1, 2, 4):
        return f"unroll is 1, 2 or 4, not {geometry.unroll}"
    most = most_threads(geometry.unroll)
    if not 32 <= geometry.threads <= most or geometry.threads % 32:
        return f"with unroll {geometry.unroll} a block has whole warps, at most {most} threads, not {geometry.threads}"
    return None


def geometries(op: str) -> tuple[Geometry, ...]:
    """What is worth timing. ``_fp8``: a warp's lanes share the scale of 128 values, so an access is never narrower."""
    names = [
        "128x1", "256x1", "512x1", "1024x1", "128x2", "256x2", "512x2", "128x4", "256x4",
        "256x1-p8", "512x1-p4", "256x2-p4", "256x2-p6", "512x2-p3", "256x4-p4",
        "256x1-stream", "512x1-stream", "256x2-stream", "256x4-stream", "256x2-p6-stream",
    ]  # fmt: skip
    if not op.endswith("_fp8"):
        names += ["64x1-half", "128x1-half", "256x1-half", "64x1-quarter", "128x1-quarter", "256x1-quarter"]
    return tuple(Geometry.parse(name) for name in names)


class Band(Value):
    """The geometry for up to so many of the widest accesses an SM (None: any number)."""

    accesses_per_sm: float | None
    geometry: Geometry


# Where nothing was measured. Few accesses: latency, so many threads with little each. Many: bytes in flight.
BANDS = tuple(
    Band(most, Geometry.parse(name))
    for most, name in ((128.0, "128x1-quarter"), (512.0, "128x1-half"), (4096.0, "256x1"), (None, "256x2"))
)


def choose(op: str, dtype: str, accesses: int, capability: Capability, sm_count: int) -> Geometry:
    """The geometry for that many of the widest accesses: measured on that capability, else as BANDS say."""
    bands = measured(str(capability), op, ITEM_BYTES[dtype]) or BANDS
    per_sm = accesses / sm_count
    found = next(each.geometry for each in bands if each.accesses_per_sm is None or per_sm <= each.accesses_per_sm)
    share = 1 if op.endswith("_fp8") else found.share
    return Geometry(found.threads, found.unroll, share, found.blocks, found.stores, per_sm <= LITTLE_PER_SM)


@cache
def measured(capability: str, op: str, item_bytes: int) -> tuple[Band, ...]:
    """The bands that were timed, ascending; empty where none were. An op or item size that was not timed takes those of
    one that was, in the order of the file: what is moved is the same."""
    by_op = _table().get("geometries", {}).get(capability, {})
    by_size: Mapping[str, Any] = by_op.get(op) or next(iter(by_op.values()), {})
    rows: list[tuple[float | None, str]] = by_size.get(str(item_bytes)) or next(iter(by_size.values()), [])
    return tuple(Band(most, Geometry.parse(name)) for most, name in rows)


def measured_row(capability: str, item_bytes: int, hidden: int) -> str | None:
    """The name of the geometry that was fastest for rows of rms_norm_fp8 of that length, if any was timed."""
    found: str | None = _table().get("rows", {}).get(capability, {}).get(str(item_bytes), {}).get(str(hidden))
    return found


@cache
def _table() -> Mapping[str, Any]:
    """``geometries``: capability -> op -> item bytes -> [[most accesses an SM, name], ...].

    ``rows``: capability -> item bytes -> length -> name.
    """
    found: Mapping[str, Any] = json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.exists() else {}
    return found


# arithmetic of addresses


def division(divisor: int) -> tuple[int, int]:
    """(magic, shift): (n * magic) >> shift is n // divisor for 0 <= n < 2**31, with 32 bits for the magic."""
    shift = 31 + max(divisor - 1, 0).bit_length()
    return -(-(1 << shift) // divisor), shift


def access_bytes(capability: Capability, item_bytes: int, alignment: int, share: int = 1) -> int:
    """Of one access: the widest of the GPU by the share, or what everything is aligned to; at least one element."""
    return max(min(vector_bytes(capability) // share, alignment), item_bytes)


def alignment_of(*byte_counts: int) -> int:
    """The largest power of two that divides all of them, at most 32."""
    together = 32
    for count in byte_counts:
        together |= count
    return together & -together
