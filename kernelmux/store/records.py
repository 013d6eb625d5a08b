"""What the journal keeps, as values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

OK = "ok"


def canonical(value: object) -> str:
    """One spelling per value: JSON with sorted keys and no blanks. What journal keys are made of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def run_key(fingerprint: Mapping[str, Any], shape: Mapping[str, Any], space: object) -> str:
    """The identity of a tuning run: same machine and software, same shape, same space -> same key -> resumable."""
    return hashlib.sha256(canonical([dict(fingerprint), dict(shape), space]).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Run:
    """One tuning run: what must be equal for its measurements to count again."""

    key: str
    fingerprint: Mapping[str, Any]  # device, driver, CUDA, Triton, kernel source
    shape: Mapping[str, Any]
    space: Any  # what the space was, or its hash
    created: float = 0.0  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class Row:
    """One step of a race, measured. (run, m, side, tile, rung) is its identity.

    ``side`` is "up", "down", "pair" (both GEMMs, or the whole pipeline) or "align" (the sort). ``tile`` is the
    canonical JSON of what ran. ``rung`` names the step within the race, such as "0" or "retime-2"; a number is taken
    as its text. ``status`` is "ok", "error", "hang", "crash", "wrong" or "discarded"; ``samples_us`` are microseconds
    in round order.
    """

    run: str
    m: int
    side: str
    tile: str
    rung: str
    status: str = OK
    reason: str = ""
    samples_us: tuple[float, ...] = ()
    cubin: str | None = None  # sha256 of the binary that ran
    extra: Mapping[str, Any] = field(default_factory=dict)
    created: float = 0.0  # seconds since the epoch; 0: now

    def __post_init__(self) -> None:
        object.__setattr__(self, "rung", str(self.rung))
        object.__setattr__(self, "samples_us", tuple(float(us) for us in self.samples_us))


@dataclass(frozen=True, slots=True)
class CompileFact:
    """What compiling one tile gave. The first six fields are its identity.

    ``variant`` holds all else that changes the code: activation, dtype, divisibility of N and K, direct or sorted.
    """

    triton: str
    arch: str  # "sm_90"
    source: str  # hash of the kernel's source and launch rules
    side: str
    tile: str
    variant: str = ""
    status: str = OK
    reason: str = ""
    shared_bytes: int = 0
    registers: int = 0
    stack_bytes: int = 0
    sha256: str = ""
    seconds: float = 0.0
