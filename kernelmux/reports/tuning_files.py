"""Make a tuning report from what lies on disk: a tuned table with its sidecar, or the output of ``tune --json``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.errors import BadShape, ConfigFileError, UnknownDevice
from kernelmux.reports import ceilings as ceilings_file
from kernelmux.reports.tuning import Provenance, Shipped, build
from kernelmux.tuning_configs import sidecar as sidecars
from kernelmux.tuning_configs.document import FileFault, parse_json, read, read_bytes
from kernelmux.tuning_configs.names import TableName
from kernelmux.tuning_configs.table import MoeTable
from kernelmux.tuning_configs.tile import Tile

if TYPE_CHECKING:
    from kernelmux.device import Device
    from kernelmux.tuning_configs.sidecar import Sidecar

_OLD = "kernelmux.fused_moe[triton]"  # the only kernel when the output of tune did not name one
_WANTED = "Give a tuned table, its .meta.json, or what `kernelmux tune --json` printed."


def report_of(
    path: Path,
    *,
    ceilings: Path | None = None,
    shipped: Path | Shipped | None = None,
    engine: str = "",
    model: str = "",
    kernel: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The report value of ``path``.

    ``ceilings``: a file of measured ones. ``shipped``: the table file an engine ships for this shape. ``kernel``: its
    name and source hash, for an output that does not say. Raises ConfigFileError naming the file and what is wrong.
    """
    sidecar, tuned, provenance = _read(path)
    device = _device(sidecar.device if sidecar else tuned)
    try:
        if sidecar is not None:
            tuned = _tuned(path, sidecar, device)
        raw = tuned["shape"]
        torch_name = device.torch_name if device else None
        rates = ceilings_file.read(ceilings, torch_name, raw.get("dtype", "bfloat16")) if ceilings else None
        if isinstance(shipped, Path):
            shipped = shipped_from(shipped, [int(line["m"]) for line in tuned["table"]], engine)
        if kernel and not provenance.kernel:
            provenance = replace(provenance, kernel=kernel)
        return build(tuned, device=device, provenance=provenance, ceilings=rates, shipped=shipped, model=model)
    except (KeyError, TypeError, ValueError, AttributeError, BadShape) as error:
        what = f"no {error.args[0]}" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise ConfigFileError(path, "", f"no tuning report can be made of it ({what}).", _WANTED) from error


def shipped_from(path: Path, ms: list[int], engine: str = "") -> Shipped:
    """The entries of an engine's own table file that stand for ``ms``; a ``_down`` file beside it is read too.

    Both engines take the entry whose key is nearest to M, the first in the file among equals.
    """
    try:
        name = TableName.parse(path.name)
    except ValueError as error:
        raise ConfigFileError(path, "file name", f"{error}.", "Give a table file that vLLM or SGLang ships.") from error
    up = read(path).checked()
    down_path = path.with_name(name.side(True).format())
    down = read(down_path).checked() if down_path.exists() and not name.down else up

    def at(tiles: Mapping[int, Tile], m: int) -> dict[str, int | bool]:
        return tiles[min(tiles, key=lambda key: abs(key - m))].to_json()

    tiles = {m: {"up": at(up.tiles, m), "down": at(down.tiles, m)} for m in ms}
    return Shipped(engine or "the engine", name.device_name, tiles)


def _read(path: Path) -> tuple[Sidecar | None, dict[str, Any], Provenance]:
    """(sidecar of a table, tune --json object, provenance); one of the first two is there."""
    try:
        name = _name(path)
    except ValueError:
        return _read_output(path)
    side_path = path.with_name(name.sidecar)
    if not side_path.exists():
        problem = f"it has no sidecar {side_path.name}, so nobody knows its K, topk, activation and times."
        raise ConfigFileError(path, "", problem, "Give a table that kernelmux tuned.")
    sidecar = sidecars.load(side_path)
    return sidecar, {}, _provenance(sidecar, name)


def _name(path: Path) -> TableName:
    """The table a path names, whether it is its file or its sidecar; raises ValueError."""
    meta = path.name.endswith(".meta.json")
    return TableName.parse(path.name.removesuffix(".meta.json") + ".json" if meta else path.name)


def _read_output(path: Path) -> tuple[None, dict[str, Any], Provenance]:
    try:
        raw, _ = parse_json(read_bytes(path))
    except FileFault as faulty:
        raise ConfigFileError(path, faulty.fault.where, faulty.fault.message, _WANTED) from faulty
    if not isinstance(raw, dict):
        raise ConfigFileError(path, "", "this is no JSON object.", _WANTED)
    whole = raw
    if isinstance(raw.get("report"), dict) and "table" not in raw:
        raw = raw["report"]  # a committed measurement: the output below "report", beside what made it
    if not isinstance(raw.get("table"), list) or not isinstance(raw.get("shape"), dict) or "config_source" not in raw:
        raise ConfigFileError(path, "", "this is neither a tuned table nor an output of tune.", _WANTED)
    seen = raw["fingerprint"] if isinstance(raw.get("fingerprint"), dict) else {}
    versions = whole.get("versions") or {key: seen[key] for key in ("triton", "torch", "cuda") if key in seen}
    kernel = {"name": str(raw.get("kernel") or _OLD), "source_hash": str(seen.get("kernel"))}
    provenance = Provenance(
        driver=whole.get("driver") or seen.get("driver"), versions=versions if isinstance(versions, dict) else {},
        kernel=kernel if seen.get("kernel") else None,
        created=str(whole.get("date") or ""), command=str(whole.get("command") or ""),
        host=str(whole.get("host") or ""), files=[Path(str(p)).name for p in raw.get("paths") or ()],
    )  # fmt: skip
    return None, raw, provenance


def _provenance(sidecar: Sidecar, name: TableName) -> Provenance:
    return Provenance(
        driver=sidecar.device.get("driver"), versions=sidecar.versions, kernel=sidecar.kernel,
        created=sidecar.created, files=[name.side(False).format(), name.side(True).format(), name.sidecar],
    )  # fmt: skip


def _device(said: Mapping[str, Any]) -> Device | None:
    """The GPU a sidecar's ``device`` object or an output names, or None when nobody listed it."""
    from kernelmux.device import resolve_device

    named = (said.get("torch_name"), said.get("name"), said.get("device"))
    for spec in (name for name in named if isinstance(name, str) and name):
        with suppress(UnknownDevice):
            return resolve_device(spec)
    return None


def _tuned(path: Path, sidecar: Sidecar, device: Device | None) -> dict[str, Any]:
    """The object that ``tune --json`` would have printed, from a table and its sidecar.

    The default's tiles are not kept there: they are what the heuristic says now.
    """
    from kernelmux.tuning_configs.heuristic import default_config
    from kernelmux.tuning_configs.lookup import verify

    name, kept = _name(path), sidecar.to_json()
    side_path = path.with_name(name.sidecar)
    up = read(path.with_name(name.side(False).format())).checked()
    down_path = path.with_name(name.side(True).format())
    down = read(down_path).checked() if down_path.exists() else None  # vLLM reads one file for both
    verify(sidecar, side_path, up, down)
    try:
        table = MoeTable(up.tiles, (down or up).tiles)
    except ValueError as error:
        raise ConfigFileError(path, "", f"{error}.", "Tune the shape again.") from error
    shape = kept["shape"]
    default_of = MoeShape(**shape)
    sort_us = sidecar.report.get("align_us") or {}
    lines = []
    for m, config in table.configs().items():
        point = sidecar.points.get(m)
        times = (point.up_us, point.down_us) if point else (None, None)
        lines.append(
            {
                "m": m,
                **config.to_json(),
                "up_us": times[0],
                "down_us": times[1],
                "align_us": sort_us.get(str(m)),
                "us": None if None in times else round(sum(times), 3),  # type: ignore[arg-type]
                "interval_us": list(point.interval) if point and point.interval else None,
                "default": default_config(default_of, m, device).to_json(),
                "default_us": point.default_us if point else None,
                "ties": len(point.ties) + 1 if point else 0,
                "from_m": None,
            }
        )
    return {
        **sidecar.report,
        "shape": shape,
        "quant": kept.get("quant"),
        "reader": kept.get("reader"),
        "device": sidecar.device.get("name"),
        "config_source": sidecar.source,
        "effort": sidecar.effort,
        "table": lines,
    }
