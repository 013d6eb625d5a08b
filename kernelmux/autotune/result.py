"""What tuning gives back: the table, where it lies, and everything the report says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernelmux.autotune.target import KERNELMUX, Target
from kernelmux.measure.stats import Interval
from kernelmux.tuning_configs.table import MoeConfig, MoeTable

if TYPE_CHECKING:
    from kernelmux.contracts.moe_shape import MoeShape
    from kernelmux.device import Device


@dataclass(frozen=True, slots=True)
class Line:
    """One M of the result. Times are microseconds of up + down (the sort apart); None where nothing was measured."""

    m: int
    config: MoeConfig
    up_us: float | None = None
    down_us: float | None = None
    align_us: float | None = None
    interval: Interval | None = None  # of up + down
    default: MoeConfig | None = None
    default_us: float | None = None
    ties: tuple[MoeConfig, ...] = ()
    from_m: int | None = None  # the M whose tiles stand in, when this one could not be decided

    @property
    def us(self) -> float | None:
        return None if self.up_us is None or self.down_us is None else self.up_us + self.down_us

    @property
    def gain(self) -> float | None:
        """How much faster than the default: 0.08 is 8% less time."""
        return None if self.us is None or not self.default_us else 1 - self.us / self.default_us

    def to_json(self) -> dict[str, Any]:
        return {
            "m": self.m, **self.config.to_json(), "us": rounded(self.us), "up_us": rounded(self.up_us),
            "down_us": rounded(self.down_us), "align_us": rounded(self.align_us),
            "interval_us": [rounded(self.interval.low), rounded(self.interval.high)] if self.interval else None,
            "default": self.default.to_json() if self.default else None, "default_us": rounded(self.default_us),
            "gain": None if self.gain is None else round(self.gain, 4), "ties": len(self.ties),
            "from_m": self.from_m,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneResult:
    """A finished run."""

    shape: MoeShape
    device: Device
    source: str  # "measured" or "predicted"
    effort: str
    table: MoeTable
    lines: tuple[Line, ...]
    paths: tuple[Path, ...]
    seconds: Mapping[str, float]  # by stage
    discards: Mapping[str, Mapping[str, int]]  # side -> reason -> tiles
    failures: tuple[str, ...] = ()  # tiles that raised, hung, crashed or computed something wrong
    notes: tuple[str, ...] = ()  # what the reader must know: rungs left out, M values that borrowed
    counts: Mapping[str, int] = field(default_factory=dict)  # measured, recalled, compiled
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    conditions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # of the GPU, before and after
    target: Target = KERNELMUX  # who reads the table

    def report(self) -> dict[str, Any]:
        """The tuner's statistics, as the sidecar keeps them."""
        return {
            "seconds": {k: round(v, 2) for k, v in self.seconds.items()},
            "discards": {side: dict(reasons) for side, reasons in self.discards.items()},
            "failures": list(self.failures),
            "notes": list(self.notes),
            "counts": dict(self.counts),
            "conditions": {when: dict(seen) for when, seen in self.conditions.items()},
            "align_us": {str(line.m): rounded(line.align_us) for line in self.lines if line.align_us is not None},
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "shape": {**self.shape.axes(), "activation": self.shape.activation, "dtype": self.shape.dtype},
            "device": self.device.name,
            "config_source": self.source,
            "format": self.target.format,
            "quant": self.target.quant.brief(),
            "kernel": self.target.variant.kernel_name,
            "effort": self.effort,
            "paths": [str(p) for p in self.paths],
            "table": [line.to_json() for line in self.lines],
            "fingerprint": dict(self.fingerprint),
            **self.report(),
        }


def rounded(us: float | None) -> float | None:
    return None if us is None else round(us, 3)
