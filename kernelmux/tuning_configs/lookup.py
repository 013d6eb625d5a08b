"""Find the table that stands for a device, a Triton version and a shape, and say how well it fits.

A table is never read for another K, topk or activation than its sidecar says. Nothing here raises for a bad file: a
serving process goes on with the next best, and says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kernelmux.contracts.moe_quant import UNQUANTIZED, MoeQuant
from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.errors import BadShape, ConfigFileError, UsageError
from kernelmux.registry import epoch
from kernelmux.tuning_configs import sidecar as sidecars
from kernelmux.tuning_configs.choice import MoeChoice
from kernelmux.tuning_configs.document import Document, KernelmuxConfigWarning, read
from kernelmux.tuning_configs.folders import (
    Version,
    VersionFolder,
    distance,
    roots,
    spelled,
    version_folders,
    version_of,
)
from kernelmux.tuning_configs.names import TableName
from kernelmux.tuning_configs.reconcile import reconciled
from kernelmux.tuning_configs.sidecar import OpenShape, Sidecar
from kernelmux.tuning_configs.table import MoeTable
from kernelmux.tuning_configs.tile import Tile

if TYPE_CHECKING:
    from kernelmux.device import Device
    from kernelmux.registry.packages import Packages
    from kernelmux.registry.problem import Problem

# An imported table was at least measured, on a kernel of the same structure (public ones lie within 2% of the best
# tile there); a prediction was not.
_RANK = {"measured": 0, "imported": 1, "predicted": 2}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a table would lie: a folder and the device name to look under."""

    folder: VersionFolder
    root: int
    device_name: str
    family: int  # 0: the device itself; else its place in the family, nearest first
    same_version: bool

    @property
    def grade(self) -> str:
        parts = (["family"] if self.family else []) + ([] if self.same_version else ["triton-version"])
        return ", ".join(parts) or "exact"


@dataclass(frozen=True, slots=True)
class _Found:
    table: MoeTable
    source: str
    path: Path
    place: _Place
    notes: tuple[str, ...]
    tuned_on: str


_cache: dict[tuple[object, ...], MoeChoice] = {}
_cache_epoch = -1


def find(
    device: Device,
    triton_version: str | None,
    shape: MoeShape,
    folders: Sequence[Path | str] | None = None,
    quant: MoeQuant = UNQUANTIZED,
) -> MoeChoice:
    """The best table for ``shape`` on ``device``, else the heuristic; never raises for what lies in a folder.

    Measured tables come before imported ones, those before predicted; among equals this device's before its
    family's (each tile made to fit this device's shared memory), this Triton version's before the nearest, the
    user's folder before the packaged one. ``folders`` replaces those two roots. A broken file is passed over with a
    KernelmuxConfigWarning, which the choice's ``notes`` keep.
    """
    global _cache_epoch
    if _cache_epoch != epoch.value:
        _cache.clear()
        _cache_epoch = epoch.value
    places = tuple(map(Path, folders)) if folders is not None else roots()
    key = (device, triton_version, shape, places, quant)
    if key not in _cache:
        _cache[key] = _find(device, version_of(triton_version), shape, places, quant)
    return _cache[key]


def _find(
    device: Device, version: Version | None, shape: MoeShape, places: Sequence[Path], quant: MoeQuant
) -> MoeChoice:
    notes: list[str] = []
    best: _Found | None = None
    for place in _places(device, version, places):
        for found in _tables_at(place, device, shape, quant, notes):
            if best is None or _RANK[found.source] < _RANK[best.source]:
                best = found
        if best is not None and best.source == "measured":
            break
    if best is None:
        words = f"no tuned table for {shape.brief()} on {device.name}: vLLM's default heuristic, made to fit"
        return MoeChoice("heuristic", "heuristic", words, shape=shape, device=device, notes=tuple(notes))
    return MoeChoice(
        source=best.source,
        grade=best.place.grade,
        why=_why(best, device, version),
        path=best.path,
        table=best.table,
        shape=shape,
        device=device,
        notes=(*notes, *best.notes),
        tuned_on=best.tuned_on,
    )


def _why(found: _Found, device: Device, version: Version | None) -> str:
    verb = {"measured": "tuned", "imported": "tuned elsewhere", "predicted": "predicted"}[found.source]
    words = f"table {verb} for {found.place.device_name} under Triton {spelled(found.place.folder.version)}"
    if found.place.family:
        words += f", which stands in for {device.name} ({_kinship(found, device)}; shared memory checked)"
    if not found.place.same_version:
        here = f"the nearest to {spelled(version)}" if version else "the newest, as Triton's version here is not known"
        words += f"; that version is {here}"
    return words


def _kinship(found: _Found, device: Device) -> str:
    from kernelmux.tuning_configs import aliases

    known = {alias.name: alias for alias in aliases.for_device(device.table_name)}
    alias = known.get(found.place.device_name)
    return alias.why if alias else f"family {device.family}"


def _places(device: Device, version: Version | None, places: Sequence[Path]) -> Iterator[_Place]:
    """Every place to look, best first: device before family, this Triton before others, user before packaged."""
    listed = [(index, folder) for index, root in enumerate(places) for folder in version_folders(root)]
    if not listed:
        return
    same = [(index, folder) for index, folder in listed if folder.version == version]
    others = sorted(
        ((index, folder) for index, folder in listed if folder.version != version),
        key=lambda item: (distance(item[1].version, version), item[0]),
    )
    own = [device.table_name]
    kin: list[str] | None = None
    for group, names_of, exact in (
        (same, "own", True),
        (same, "kin", True),
        (others, "own", False),
        (others, "kin", False),
    ):
        if names_of == "kin" and kin is None:
            kin = _kin(device)
        for index, folder in group:
            for family, name in enumerate(own if names_of == "own" else kin or ()):
                yield _Place(folder, index, name, family + (names_of == "kin"), exact)


def _kin(device: Device) -> list[str]:
    """Table names whose tables stand in: those with evidence first, then the family, the likest first.

    A MIG slice has no kin: its SMs are a share of the GPU's.
    """
    if device.is_mig or device.vendor == "cpu" or not device.trusted:
        return []
    from kernelmux.device import catalog
    from kernelmux.tuning_configs import aliases

    def unlike(other: Device) -> tuple[int, float]:
        return abs(other.sm_count - device.sm_count), abs(other.bandwidth_gbs - device.bandwidth_gbs)

    others = [d for d in catalog().values() if d.family == device.family and d.table_name != device.table_name]
    known = [alias.name for alias in aliases.for_device(device.table_name)]
    return list(dict.fromkeys([*known, *(d.table_name for d in sorted(others, key=unlike))]))


def _tables_at(place: _Place, device: Device, shape: MoeShape, quant: MoeQuant, notes: list[str]) -> Iterator[_Found]:
    try:
        plain = TableName.of(place.device_name, shape, quant=quant)
    except ValueError:
        return
    for name in (plain.qualified(shape), plain):
        path = place.folder.path / name.format()
        try:
            found = _load(place, path, name, device, shape, quant, notes) if path.exists() else None
        except ConfigFileError as error:
            _say(f"{error} The table is passed over.", notes)
            continue
        except OSError as error:
            _say(f"{path} cannot be read ({error.strerror}); the table is passed over.", notes)
            continue
        if found is not None:
            yield found


def _load(
    place: _Place, path: Path, name: TableName, device: Device, shape: MoeShape, quant: MoeQuant, notes: list[str]
) -> _Found | None:
    """The table of ``path``, or None when it is another problem's; raises ConfigFileError for a broken one."""
    folder = place.folder.path
    side_path, down_path = folder / name.sidecar, folder / name.side(True).format()
    meta = sidecars.load(side_path) if side_path.exists() else None
    said: list[str] = []
    if meta is not None:
        mismatch = _mismatch(meta, shape)
        if mismatch:
            notes.append(f"{path} is for {mismatch}, so it does not count here.")
            return None
        if isinstance(meta.shape, OpenShape) and meta.shape.unknown:
            said.append(f"{path} does not say its {', '.join(meta.shape.unknown)}; taken to fit.")
        if meta.shape.dtype != shape.dtype:
            said.append(f"{path} was tuned with {meta.shape.dtype}; {shape.dtype} has the same element size.")
    else:
        said.append(f"{path} has no sidecar: its K, topk and activation are not known and are taken to fit.")
    up = read(path).checked()
    one_tile = meta is not None and meta.reader == "vllm"
    down = read(down_path).checked() if down_path.exists() and not one_tile else None
    if meta is not None:
        verify(meta, side_path, up, down)
    down_tiles = down.tiles if down is not None else _without_tma(up, said)
    # Tiles that were tuned on this very device fit it, whatever the formula says of them.
    source = _source(meta)
    trusted_here = source == "measured" and not place.family
    sizes = (shape.element_bytes,) if quant == UNQUANTIZED else (quant.element_bytes_a, quant.element_bytes_b)
    table, changes = reconciled(up.tiles, down_tiles, path, None if trusted_here else device, *sizes)
    for change in changes:
        _say(change, said)
    tuned_on = str(meta.kernel.get("source_hash", "")) if meta else ""
    return _Found(table, source, path, place, tuple(said), tuned_on)


def _source(meta: Sidecar | None) -> str:
    """Measured on kernelmux's own kernel counts as measured; on an engine's it is a table from elsewhere."""
    if meta is None or (meta.reader != "kernelmux" and meta.source == "measured"):
        return "imported"
    return meta.source


def _mismatch(meta: Sidecar, shape: MoeShape) -> str:
    """What of K, topk and activation is another's, in words; "" when all agree."""
    there = meta.shape
    odd = [
        f"{axis}={getattr(there, axis)}"
        for axis in ("E", "N", "K", "topk")
        if getattr(there, axis) not in (None, getattr(shape, axis))
    ]
    if there.activation not in (None, shape.activation):
        odd.append(f"activation {there.activation}")
    if there.element_bytes != shape.element_bytes:
        odd.append(f"dtype {there.dtype}")
    return ", ".join(odd)


def verify(meta: Sidecar, path: Path, up: Document, down: Document | None) -> None:
    """Check the hashes of both files. Raises ConfigFileError: edited after tuning, or a write that was cut short."""
    for side, document in (("up", up), ("down", down)):
        if side not in meta.sha256:
            continue
        if document is None:
            raise ConfigFileError(path, f"sha256.{side}", "the down table is missing.", "Tune the shape again.")
        if document.sha256 != meta.sha256[side]:
            problem = f"{document.path.name} is not the file that was tuned: it was edited, or its writing cut short."
            fix = "Tune the shape again (--resume repeats no measurement), or remove the sidecar to use it as imported."
            raise ConfigFileError(path, f"sha256.{side}", problem, fix)


def _without_tma(up: Document, said: list[str]) -> Mapping[int, Tile]:
    said.append(f"{up.path} has no _down table: its tiles serve both projections, without TMA for down.")
    return {m: replace(tile, use_tma=False) for m, tile in up.tiles.items()}


def _say(sentence: str, notes: list[str]) -> None:
    notes.append(sentence)
    warnings.warn(sentence, KernelmuxConfigWarning, stacklevel=3)


def provider(device: Device, packages: Packages, problem: Problem) -> MoeChoice:
    """``Kernel.configs`` of the Triton fused MoE kernel: `find` for the problem's shape.

    Where an axis is not given no table can be chosen: the heuristic, with the condition stated.
    """
    axes = {axis: size for axis, size in problem.shape.items() if isinstance(size, int)}
    missing = [axis for axis in ("E", "N", "K", "topk") if axis not in axes]
    if missing:
        condition = f"{', '.join(missing)} not given: a tuned table may be used once the whole shape is"
        why = "vLLM's default heuristic, made to fit, as the shape is not whole"
        return MoeChoice("heuristic", "heuristic", why, device=device, conditions=(condition,))
    try:
        shape = MoeShape.from_axes(axes, problem.activation or "silu", problem.dtype or "bfloat16")
        quant = MoeQuant.of(problem.scheme)
    except (BadShape, UsageError) as error:
        return MoeChoice("heuristic", "heuristic", "vLLM's default heuristic", device=device, conditions=(str(error),))
    return find(device, packages.get("triton"), shape, quant=quant)
