"""What a table file cannot say: ``<name>.meta.json`` beside it, with its provenance and the hashes of both files.

vLLM and SGLang parse every key of a table as a token count, so all this must stay out of it. Read with the standard
library's json: msgspec would cost 20 ms of a first selection that may take 50.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kernelmux.contracts.moe_quant import UNQUANTIZED, MoeQuant
from kernelmux.contracts.moe_shape import ELEMENT_BYTES, MoeShape
from kernelmux.errors import BadShape, ConfigFileError, UsageError
from kernelmux.tuning_configs.document import FileFault, parse_json, read_bytes

SCHEMA = 1
FORMAT = "kernelmux"
SOURCES = ("measured", "imported", "predicted")
READERS = ("kernelmux", "vllm", "sglang")
_AGAIN = "Tune the shape again, or remove the sidecar to treat the table as a foreign one."


@dataclass(frozen=True, slots=True)
class OpenShape:
    """The shape of an imported table as far as it is known: file names carry no K, topk and activation."""

    E: int
    N: int
    K: int | None = None
    topk: int | None = None
    activation: str | None = None
    dtype: str = "bfloat16"

    @property
    def element_bytes(self) -> int:
        return ELEMENT_BYTES[self.dtype]

    @property
    def unknown(self) -> tuple[str, ...]:
        """The axes that nobody said."""
        return tuple(axis for axis in ("K", "topk", "activation") if getattr(self, axis) is None)


@dataclass(frozen=True, slots=True)
class Point:
    """What is known at one M. Times are medians in microseconds; ``interval`` is 95% of ``up_us + down_us``.

    ``default_us`` is the default heuristic's up + down in the same race; ``ties`` are the other pairs inside the
    interval, as `Tile.short` texts. None: not measured.
    """

    up_us: float | None = None
    down_us: float | None = None
    default_us: float | None = None
    interval: tuple[float, float] | None = None
    ties: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """The provenance of one up/down pair of tables."""

    source: str  # "measured", "imported" or "predicted"
    shape: MoeShape | OpenShape
    device: Mapping[str, Any]  # name, torch_name, capability, sm_count, shared_bytes, driver
    versions: Mapping[str, str]  # triton, torch, cuda, kernelmux
    kernel: Mapping[str, str]  # name, source_hash
    created: str  # ISO 8601, UTC
    effort: str = ""
    reader: str = FORMAT  # for whom the files are, on whose kernel a tile was measured: "kernelmux", "vllm", "sglang"
    quant: MoeQuant = UNQUANTIZED
    sha256: Mapping[str, str] = field(default_factory=dict)  # "up", "down": of the files' bytes; the writer fills it
    points: Mapping[int, Point] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)  # the tuner's own statistics

    def to_json(self) -> dict[str, Any]:
        words: dict[str, Any] = {} if self.reader == FORMAT else {"reader": self.reader}
        if self.quant != UNQUANTIZED:
            words["quant"] = asdict(self.quant)
        return {
            "schema": SCHEMA,
            "format": FORMAT,
            "source": self.source,
            "shape": asdict(self.shape),
            "device": dict(self.device),
            "versions": dict(self.versions),
            "kernel": dict(self.kernel),
            "created": self.created,
            "effort": self.effort,
            **words,
            "sha256": dict(self.sha256),
            "points": {str(m): asdict(self.points[m]) for m in sorted(self.points)},
            "report": dict(self.report),
        }

    def text(self) -> str:
        """The file's content."""
        return json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def load(path: Path | str) -> Sidecar:
    """Read a sidecar. Raises ConfigFileError naming the key that is missing, unknown to this version or off."""
    path = Path(path)
    try:
        raw, _ = parse_json(read_bytes(path))
    except FileFault as faulty:
        fault = faulty.fault
        raise ConfigFileError(path, fault.where, fault.message, _AGAIN) from faulty
    return from_json(raw, path)


def from_json(raw: object, path: Path | str) -> Sidecar:
    """A Sidecar from parsed JSON; raises ConfigFileError."""

    def broken(where: str, problem: str) -> ConfigFileError:
        return ConfigFileError(path, where, problem, _AGAIN)

    if not isinstance(raw, dict):
        raise broken("", "a sidecar is a JSON object.")
    if raw.get("format") != FORMAT:
        raise broken("format", f"{raw.get('format')!r} is not {FORMAT!r}.")
    schema = raw.get("schema")
    if not isinstance(schema, int) or schema < 1:
        raise broken("schema", f"{schema!r} is no schema number.")
    if schema > SCHEMA:
        problem = f"schema {schema} was written by a newer kernelmux; this one knows {SCHEMA}."
        raise ConfigFileError(path, "schema", problem, "Upgrade kernelmux.")
    if raw.get("source") not in SOURCES:
        raise broken("source", f"{raw.get('source')!r} is none of {', '.join(SOURCES)}.")
    for key in ("shape", "device", "versions", "kernel", "sha256"):
        if not isinstance(raw.get(key), dict):
            raise broken(key, "this object is missing.")
    try:
        shape = _shape(raw["shape"], raw["source"])
    except (TypeError, BadShape) as error:
        raise broken("shape", f"{error}".rstrip(".") + ".") from error
    reader = raw.get("reader", FORMAT)
    if reader not in READERS:
        raise broken("reader", f"{reader!r} is none of {', '.join(READERS)}.")
    try:
        quant = _quant(raw.get("quant"))
    except (TypeError, ValueError, UsageError) as error:
        raise broken("quant", f"{error}".rstrip(".") + ".") from error
    hashes = raw["sha256"]
    wanted = {"up"} if reader == "vllm" else {"up", "down"}
    if set(hashes) != wanted or not all(isinstance(value, str) for value in hashes.values()):
        raise broken("sha256", f"it must hold the hash of the {' and the '.join(sorted(wanted)[::-1])} file.")
    try:
        points = {int(m): _point(point) for m, point in (raw.get("points") or {}).items()}
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise broken("points", f"a point is malformed ({error}).") from error
    report = raw.get("report") or {}
    return Sidecar(
        source=raw["source"],
        shape=shape,
        device=raw["device"],
        versions=raw["versions"],
        kernel=raw["kernel"],
        created=str(raw.get("created", "")),
        effort=str(raw.get("effort", "")),
        reader=reader,
        quant=quant,
        sha256=hashes,
        points=points,
        report=report if isinstance(report, dict) else {},
    )


def _shape(raw: Mapping[str, Any], source: str) -> MoeShape | OpenShape:
    if source != "imported" or None not in raw.values():
        return MoeShape(**raw)
    shape = OpenShape(**raw)
    known = {axis: value for axis, value in raw.items() if value is not None}
    MoeShape(**{"K": 1, "topk": 1, **known})  # the axes that are known obey the same rules
    return shape


def _quant(raw: Any) -> MoeQuant:
    if not raw:
        return UNQUANTIZED
    block = raw.get("block_shape")
    return MoeQuant(raw.get("dtype"), tuple(block) if block else None, bool(raw.get("per_channel")))


def _point(raw: Mapping[str, Any]) -> Point:
    interval = raw.get("interval")
    return Point(
        up_us=_number(raw.get("up_us")),
        down_us=_number(raw.get("down_us")),
        default_us=_number(raw.get("default_us")),
        interval=None if interval is None else (float(interval[0]), float(interval[1])),
        ties=tuple(str(tie) for tie in raw.get("ties") or ()),
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
