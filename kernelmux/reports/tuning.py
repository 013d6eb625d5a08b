"""The report of one tuning run as one JSON-able value; `tuning_markdown` and `tuning_html` only render it.

Times are microseconds of one call; up + down without the sort, which has its own column, as the tuner compares them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kernelmux.contracts.moe_quant import UNQUANTIZED, MoeQuant
from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.tuning_configs.tile import Tile

if TYPE_CHECKING:
    from kernelmux.autotune.result import TuneResult
    from kernelmux.device import Device
    from kernelmux.reports.ceilings import Ceilings

SCHEMA = 1
KIND = "tuning"
TIES_SHOWN = 12  # as many tied pairs as a sidecar keeps

Entry = Mapping[str, Any]  # one tile as in a table file

# nvmlClocksEventReasons; the idle bit says nothing about a throttled measurement.
_THROTTLE = {
    0x1: "idle", 0x2: "application clocks", 0x4: "power cap", 0x8: "hardware slowdown", 0x10: "sync boost",
    0x20: "temperature", 0x40: "temperature (hardware)", 0x80: "power brake", 0x100: "display clocks",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shipped:
    """What an engine ships for this shape: M -> {"up": tile, "down": tile}, as its lookup answers."""

    engine: str  # "vllm 0.33.0"
    table_of: str  # the device name its table is filed under; "default heuristic" where it has none
    tiles: Mapping[int, Mapping[str, Entry]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a result comes from; what nobody recorded stays empty."""

    driver: str | None = None
    versions: Mapping[str, str] | None = None
    kernel: Mapping[str, str] | None = None  # name, source_hash
    created: str = ""
    command: str = ""
    host: str = ""
    files: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "driver": self.driver, "versions": dict(self.versions or {}), "kernel": dict(self.kernel or {}),
            "created": self.created, "command": self.command, "host": self.host, "files": list(self.files),
        }  # fmt: skip


def of_result(
    result: TuneResult, *, command: str = "", ceilings: Ceilings | None = None, shipped: Shipped | None = None,
    model: str = "",
) -> dict[str, Any]:  # fmt: skip
    """The report of a run that has just ended."""
    from kernelmux.autotune.run import versions_of

    seen = result.fingerprint
    provenance = Provenance(
        driver=seen.get("driver") or result.device.driver, versions=versions_of(seen),
        kernel={"name": result.target.variant.kernel_name, "source_hash": seen.get("kernel", "")}, command=command,
        files=[path.name for path in result.paths],
    )  # fmt: skip
    return build(
        result.to_json(), device=result.device, provenance=provenance, ceilings=ceilings, shipped=shipped, model=model
    )


def build(
    tuned: Mapping[str, Any],
    *,
    device: Device | None,
    provenance: Provenance,
    ceilings: Ceilings | None = None,
    shipped: Shipped | None = None,
    model: str = "",
) -> dict[str, Any]:
    """The report of ``tuned``, the object that ``kernelmux tune --json`` prints.

    ``device`` None: a GPU nobody listed, so there is no roofline. ``ceilings`` None: the data sheet's. ``model`` is
    a name people know the shape by. Raises BadShape for a shape that is none.
    """
    from kernelmux.reports.ceilings import Ceilings

    raw = tuned["shape"]
    shape = MoeShape.from_axes(raw, raw.get("activation", "silu"), raw.get("dtype", "bfloat16"))
    quant = quant_of(tuned.get("quant"))
    rates = Ceilings.of(device, quant.peak_dtype or shape.dtype) if device is not None else None
    ceilings = ceilings or rates
    rows = [_row(line, shape, quant, ceilings, shipped) for line in tuned["table"]]
    source = tuned["config_source"]
    spent = {str(k): float(v) for k, v in (tuned.get("seconds") or {}).items()}
    return {
        "schema": SCHEMA,
        "report": KIND,
        "model": model,
        "source": source,
        "effort": tuned.get("effort") or "",
        "shape": {**shape.axes(), "activation": shape.activation, "dtype": shape.dtype},
        "quant": quant.brief(),
        "reader": str(tuned.get("reader") or "kernelmux"),
        "device": _device(device, tuned.get("device")),
        "ceilings": ceilings.to_json() if ceilings else None,
        "datasheet": rates.to_json() if rates else None,
        "shipped": {"engine": shipped.engine, "table_of": shipped.table_of} if shipped else None,
        "summary": _summary(rows),
        "rows": rows,
        "discards": _discards(tuned.get("discards") or {}),
        "failures": [str(said) for said in tuned.get("failures") or ()],
        "notes": [str(said) for said in tuned.get("notes") or ()],
        "counts": {str(k): int(v) for k, v in (tuned.get("counts") or {}).items()},
        "seconds": _stages(spent),
        "total_seconds": spent.get("total"),
        "conditions": {str(k): _condition(v) for k, v in (tuned.get("conditions") or {}).items()},
        "provenance": {**provenance.to_json(), "again": again(shape, device, tuned.get("effort") or "", source)},
    }


def again(shape: MoeShape, device: Device | None, effort: str, source: str) -> str:
    """A command line that tunes the same thing."""
    axes = ",".join(f"{k}={v}" for k, v in shape.axes().items())
    words = ["kernelmux", "tune", "--shape", axes]
    words += ["--activation", shape.activation] if shape.activation != "silu" else []
    words += ["--dtype", shape.dtype] if shape.dtype != "bfloat16" else []
    words += ["--effort", effort] if effort not in ("", "full") else []
    if source == "predicted":
        words += ["--offline", "--device", device.name if device else "DEVICE"]
    return " ".join(words)


def quant_of(raw: Any) -> MoeQuant:
    """How the weights are quantized, from a scheme's name or from the object a sidecar keeps."""
    if not raw:
        return UNQUANTIZED
    if isinstance(raw, str):
        return MoeQuant.of(raw)
    block = raw.get("block_shape")
    return MoeQuant(raw.get("dtype"), (int(block[0]), int(block[1])) if block else None, bool(raw.get("per_channel")))


def brief(report: Mapping[str, Any]) -> str:
    """``E=128,N=384,K=2048,topk=8,silu,bfloat16``, and the scheme of quantized weights."""
    shape = report["shape"]
    axes = ",".join(f"{axis}={shape[axis]}" for axis in ("E", "N", "K", "topk"))
    quant = "" if report["quant"] == "none" else f",{report['quant']}"
    return f"{axes},{shape['activation']},{shape['dtype']}{quant}"


def _device(device: Device | None, name: object) -> dict[str, Any]:
    if device is None:
        return {"name": str(name or "unknown"), "torch_name": str(name or "unknown")}
    return {
        "name": device.name, "torch_name": device.torch_name,
        "capability": str(device.capability) if device.capability else None, "sm_count": device.sm_count,
        "shared_bytes": device.shared_bytes,
    }  # fmt: skip


def _row(
    line: Mapping[str, Any], shape: MoeShape, quant: MoeQuant, ceilings: Ceilings | None, shipped: Shipped | None
) -> dict[str, Any]:
    m = int(line["m"])
    config = _pair(line, f"M={m}")
    default = _pair(line["default"], f"M={m}.default") if line.get("default") else None
    us, default_us = _us(line.get("us")), _us(line.get("default_us"))
    interval = [float(end) for end in line["interval_us"]] if line.get("interval_us") else None
    floor_us, bound = ceilings.floor(shape, m, quant) if ceilings else (None, None)
    return {
        "m": m,
        **config,
        "default": default,
        "shipped": shipped.tiles.get(m) if shipped else None,
        "up_us": _us(line.get("up_us")),
        "down_us": _us(line.get("down_us")),
        "sort_us": _us(line.get("align_us")),
        "us": us,
        "interval_us": interval,
        "default_us": default_us,
        "gain": 1 - us / default_us if us and default_us else None,
        "verdict": verdict(us, default_us, interval, same=config == default),
        "ties": min(TIES_SHOWN, max(0, int(line.get("ties") or 0) - 1)),
        "floor_us": None if floor_us is None else round(floor_us, 3),
        "roofline": floor_us / us if floor_us and us else None,
        "bound": bound,
        "from_m": None if line.get("from_m") is None else int(line["from_m"]),
    }


def _pair(raw: Mapping[str, Any], where: str) -> dict[str, dict[str, int | bool]]:
    return {side: Tile.from_json(raw[side], f"{where}.{side}").to_json() for side in ("up", "down")}


def _us(value: Any) -> float | None:
    return None if value is None else float(value)


def verdict(
    us: float | None, default_us: float | None, interval_us: Sequence[float] | None, *, same: bool
) -> str | None:
    """How the chosen pair stands to the default: "same" (it is the default), "faster", "slower", "tie", or None.

    A tie is a difference within its own 95% interval. Only the chosen pair's interval is kept; the default was timed
    in the same rounds with as many samples, so its interval is taken to be as wide: sqrt(2) of the half width.
    """
    if same:
        return "same"
    if not us or not default_us:
        return None
    half = (interval_us[1] - interval_us[0]) / 2 if interval_us else 0.0
    if abs(default_us - us) <= math.sqrt(2) * half:
        return "tie"
    return "faster" if us < default_us else "slower"


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    compared = [row for row in rows if row["gain"] is not None]
    verdicts = [row["verdict"] for row in rows]
    best = max(compared, key=lambda row: row["gain"], default=None)
    near = max((row for row in rows if row["roofline"] is not None), key=lambda row: row["roofline"], default=None)
    logs = [math.log(row["us"] / row["default_us"]) for row in compared]
    return {
        "rows": len(rows),
        "timed": sum(row["us"] is not None for row in rows),
        **{word: verdicts.count(word) for word in ("faster", "tie", "same", "slower")},
        "mean_gain": 1 - math.exp(sum(logs) / len(logs)) if logs else None,
        "best": {"m": best["m"], "gain": best["gain"]} if best and best["gain"] > 0 else None,
        "nearest_roofline": {"m": near["m"], "roofline": near["roofline"]} if near else None,
    }


def _discards(raw: Mapping[str, Mapping[str, int]]) -> list[dict[str, Any]]:
    """By reason: tiles on each side; a reason of one M only ("M=64: ...") is folded into one with its M values."""
    folded: dict[str, dict[str, Any]] = {}
    for side in ("up", "down"):
        for text, tiles in (raw.get(side) or {}).items():
            found = re.fullmatch(r"M=(\d+): (.*)", str(text), re.DOTALL)
            reason = found[2] if found else str(text)
            entry = folded.setdefault(reason, {"reason": reason, "up": 0, "down": 0, "ms": []})
            entry[side] += int(tiles)
            if found and int(found[1]) not in entry["ms"]:
                entry["ms"].append(int(found[1]))
    for entry in folded.values():
        entry["ms"].sort()
    return sorted(folded.values(), key=lambda e: (bool(e["ms"]), -(e["up"] + e["down"]), e["reason"]))


def _stages(spent: Mapping[str, float]) -> list[dict[str, Any]]:
    stages = [{"stage": k, "seconds": round(v, 2)} for k, v in spent.items() if k != "total"]
    rest = spent.get("total", 0.0) - sum(s["seconds"] for s in stages)  # type: ignore[misc]
    if rest > 0.5:
        stages.append({"stage": "other", "seconds": round(rest, 2)})
    return stages


def _condition(seen: Mapping[str, Any]) -> dict[str, str]:
    out = {str(k): str(v) for k, v in seen.items()}
    if "throttle" in out:
        out["throttle"] = throttle(out["throttle"])
    return out


def throttle(bits: str) -> str:
    """NVML's bit mask in words: "0x4" is "power cap"."""
    try:
        mask = int(bits, 0)
    except ValueError:
        return bits
    words = [word for bit, word in _THROTTLE.items() if mask & bit]
    return ", ".join(words) or ("none" if mask == 0 else bits)
