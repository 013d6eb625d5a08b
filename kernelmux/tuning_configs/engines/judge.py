"""What is wrong with a table by the rules of the engine that reads it: name, keys, values, memory, its pair.

Each rule yields Faults; `kernelmux.tuning_configs.check` puts them together, `fix` mends what can be.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernelmux.tuning_configs import aliases
from kernelmux.tuning_configs.document import Fault
from kernelmux.tuning_configs.engines import entry as entries_of
from kernelmux.tuning_configs.engines import sglang, vllm
from kernelmux.tuning_configs.engines.entry import Entry, tile_of
from kernelmux.tuning_configs.engines.foreign import NOTE, ForeignTable, is_count
from kernelmux.tuning_configs.engines.question import nearest
from kernelmux.tuning_configs.names import TableName
from kernelmux.tuning_configs.shared_law import lower_bound, predicted_shared
from kernelmux.tuning_configs.tile import JSON_KEYS, Tile

if TYPE_CHECKING:
    from kernelmux.device import Device

# Bytes per element of (activations, weights) by the name's dtype; a dtype not listed is not judged.
BYTES: Mapping[str | None, tuple[float, float]] = {
    None: (2, 2),
    "float32": (4, 4),
    "fp8_w8a8": (1, 1),
    "int8_w8a8": (1, 1),
    "int8_w8a16": (2, 1),
    "fp8_w8a16": (2, 1),
    "int4_w4a16": (2, 0.5),
}
# What vLLM's FlyDSL kernel has: other values are snapped to the nearest of these at each launch.
FLYDSL_SETS: Mapping[str, tuple[int, ...]] = {
    "tile_m": (16, 32, 64, 128),
    "tile_n": (64, 128),
    "tile_k": (128, 256),
    "tile_n2": (128,),
    "tile_k2": (128, 256),
}
_RETUNE = "Tune the shape again."


def of_name(path: Path, name: TableName, engine: str) -> Iterator[Fault]:
    """Names that no look-up of the engine can ask for, and folders it cannot read."""
    if not name.device_name:
        fix = "Write the name torch reports, with _ for blanks."
        yield Fault("empty_device", "device_name", "the name carries no device, so no lookup can find it.", fix)
    alias = aliases.never_reported(name.device_name)
    if alias is not None:
        message = f"no board reports the name {name.device_name}: {alias.never}."
        yield Fault("dead_device", "device_name", message, f"Rename it for the board it was tuned on ({alias.name}?).")
    dead = {"vllm": vllm.unreachable, "sglang": sglang.unreachable}.get(engine, lambda _: None)(name)
    if dead is not None:
        code, why, mend = dead
        yield Fault(code, "file name", why, mend)
    folder = path.absolute().parent.name
    if engine == "vllm":
        return
    if folder.startswith("triton_") and not re.fullmatch(r"triton_\d+_\d+_\d+", folder):
        fix = "Name the folder after the release, like triton_3_6_0."
        yield Fault("odd_folder", "folder", f"SGLang fails on the folder name {folder!r}.", fix)
    elif engine == "sglang" and folder == "configs":
        message = "SGLang looks into configs/triton_x_y_z/, not into configs itself."
        yield Fault("odd_folder", "folder", message, "Move it into the folder of its Triton version.")


def of_keys(table: ForeignTable, engine: str) -> Iterator[Fault]:
    """Top-level keys that are no token counts, and their order."""
    for key, _ in table.pairs:
        if key == NOTE and engine == "sglang":
            message = f"{NOTE} beside the token counts: SGLang reads every key as a number and fails."
            yield Fault("note_key", key, message, "Remove the key.")
        elif key != NOTE and not is_count(key):
            message = "a key of a table is a token count, a whole number from 1."
            yield Fault("key_not_integer", _brief(key), message, "Remove it; notes belong into the sidecar.")
    counts = [int(key) for key, _ in table.pairs if is_count(key)]
    if not table.pairs:
        yield Fault("no_entries", "", "the table has no token counts.", "Tune the shape again.")
    for before, after in pairwise(counts):
        if after < before:
            message = f"M={after} follows M={before}; engines break ties by the order in the file."
            yield Fault("unsorted_keys", str(after), message, "Sort the keys by their number.")
            return


def of_entries(table: ForeignTable, name: TableName, engine: str) -> Iterator[Fault]:
    """Entries that the engine's launch does not take."""
    vendor = entries_of.vendor_of(name.device_name)
    for key, entry in table.pairs:
        if not is_count(key):
            continue
        yield from entries_of.faults(key, entry, engine, vendor, name.backend)
        if engine == "kernelmux" and isinstance(entry, Mapping):
            other = [word for word in entry if word in entries_of.KEYS and word not in JSON_KEYS]
            if other:
                message = f"kernelmux's tiles have no {', '.join(other)}."
                yield Fault("foreign_key", key, message, "Import the engine's table: `kernelmux configs import`.")


def of_values(table: ForeignTable, name: TableName, engine: str) -> Iterator[Fault]:
    """Values that the launcher replaces, or with which the kernel reads wrong scales. Entries must be sound."""
    if name.backend == "flydsl":
        snapped = [m for m, entry in table.entries.items() if _snapped(entry) != dict(entry)]
        if snapped:
            message = "the FlyDSL kernel has no such tiles any more; vLLM snaps them to the nearest it has."
            yield Fault("clamped", _list(snapped), message, "Write the values that run, or tune the shape again.")
        return
    split = [m for m, entry in table.entries.items() if entry.get("SPLIT_K", 1) != 1]
    if split:
        yield Fault("clamped", _list(split), "vLLM sets SPLIT_K to 1 before the launch.", "Write 1.")
    if name.block_shape is None or name.dtype not in ("fp8_w8a8", "int8_w8a8"):
        return
    limit = min(name.block_shape)
    over = [m for m, entry in table.entries.items() if entry["BLOCK_SIZE_K"] > limit]
    if not over:
        return
    if engine == "sglang":
        message = (
            f"BLOCK_SIZE_K is above the scale block of {limit}: SGLang does not clamp it, and its kernel takes the "
            "first block's scale for all of it."
        )
        yield Fault("wrong_scale", _list(over), message, f"Write {limit}, and tune the shape again.")
        return
    message = f"BLOCK_SIZE_K is above the scale block of {limit}; the launcher runs {limit}, not what stands here."
    yield Fault("clamped", _list(over), message, f"Write {limit}.")


def of_memory(table: ForeignTable, name: TableName, device: Device, triton: str) -> Iterator[Fault]:
    """Tiles over the device's shared memory. Entries must be sound."""
    sizes = BYTES.get(name.dtype)
    if sizes is None or device.shared_bytes <= 0 or name.backend:
        return
    for m, entry in table.entries.items():
        tile = clamped(tile_of(entry), name)
        need = least_shared(tile, device, sizes, triton)
        if need > device.shared_bytes:
            said = tile_of(entry).short()
            message = f"{said} needs {need:,} bytes of shared memory; {device.name} has {device.shared_bytes:,}."
            yield Fault("shared_memory", str(m), message, f"Lower num_stages or a block size. {_RETUNE}")


def least_shared(tile: Tile, device: Device, sizes: tuple[float, float], triton: str) -> int:
    """Bytes of shared memory that the tile takes: exact where the law has been compared, else a lower bound.

    Of AMD one stage: what more stages take there has changed with Triton's pipeliners, and none was compared.
    """
    if device.vendor != "nvidia":
        return tile.slab_bytes(*sizes)
    predicted, exact = predicted_shared(tile, device.capability, *sizes, triton)
    return predicted if exact else lower_bound(tile, device.capability, *sizes)


def clamped(tile: Tile, name: TableName) -> Tile:
    """The tile as vLLM launches it: BLOCK_SIZE_K no larger than a scale block."""
    return replace(tile, block_k=min(tile.block_k, *name.block_shape)) if name.block_shape else tile


def of_pair(up: Mapping[int, Entry], down: Mapping[int, Entry], engine: str) -> Iterator[Fault]:
    """Where up and down disagree, as the reader looks them up. Entries must be sound."""
    odd = sorted(up.keys() ^ down.keys())
    if odd and engine == "kernelmux":
        message = f"only one of up and down has M={_list(odd)}."
        yield Fault("pair_keys", str(odd[0]), message, _RETUNE)
    spots = sorted(up.keys() & down.keys()) if engine == "kernelmux" else breakpoints((*up, *down))
    wrong: list[int] = []
    said = ""
    for m in spots:
        left, right = (side[nearest(side, m)]["BLOCK_SIZE_M"] for side in (up, down))
        if left != right:
            wrong.append(m)
            said = said or f"BLOCK_SIZE_M is {left} for up and {right} for down at M={m}"
    if wrong:
        message = f"{said}; both GEMMs share one token order, so the engine bends down's tile to up's."
        fix = "Run `kernelmux configs check --fix`, or better: tune the shape again."
        yield Fault("pair_block_m", _list(wrong), message, fix)


def breakpoints(keys: Sequence[int]) -> list[int]:
    """Token counts that between them meet every pair of entries a linear nearest-key look-up can bring together."""
    ordered = sorted(set(keys))
    spots = set(ordered)
    for i, low in enumerate(ordered):
        # A key of one table may lie between two of the other, so every pair's middle counts.
        for high in ordered[i + 1 : bisect_right(ordered, low) + 8]:
            spots.update(((low + high) // 2, (low + high) // 2 + 1))
    return sorted(spots)


def flydsl_snapped(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The FlyDSL tile as vLLM runs it."""
    return _snapped(entry)


def _snapped(entry: Mapping[str, Any]) -> dict[str, Any]:
    def nearest_of(value: int, allowed: Sequence[int]) -> int:
        return min(allowed, key=lambda each: (abs(each - value), each))

    return {key: nearest_of(value, FLYDSL_SETS[key]) for key, value in entry.items()}


def _list(counts: Iterable[int]) -> str:
    listed = list(counts)
    return ", ".join(map(str, listed[:12])) + (f", ... ({len(listed)} in all)" if len(listed) > 12 else "")


def _brief(key: str) -> str:
    text = repr(key)[1:-1]
    return text if len(text) <= 40 else text[:37] + "..."
