"""One entry of an engine's table: the keys a launch takes, which engine and vendor takes them, and their values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kernelmux.tuning_configs.document import Fault
from kernelmux.tuning_configs.tile import Tile

Entry = Mapping[str, Any]

_ALL = frozenset({"nvidia", "amd", "intel"})
_BOTH = frozenset({"vllm", "sglang"})


@dataclass(frozen=True, slots=True)
class Key:
    """What one key may hold, and who takes it. A key that the kernel's signature and Triton's backend do not know
    fails the launch ("specified but unrecognised"), so it is a fault elsewhere."""

    low: int = 1
    high: int = 1024
    power: bool = False
    kind: str = "integer"  # "integer", "switch" (true/false) or "word"
    words: tuple[object, ...] = ()
    engines: frozenset[str] = _BOTH
    vendors: frozenset[str] = _ALL

    def problem(self, value: object) -> str | None:
        """What is wrong with a value, or None. JSON's true is not the number 1."""
        if self.kind == "switch":
            return None if isinstance(value, bool) else f"{_brief(value)} is neither true nor false"
        if self.kind == "word":
            return None if value in self.words else f"{_brief(value)} is none of {', '.join(map(str, self.words))}"
        if not isinstance(value, int) or isinstance(value, bool):
            return f"{_brief(value)} is no integer"
        if not self.low <= value <= self.high:
            return f"{_brief(value)} is outside {self.low}..{self.high}"
        if self.power and value & (value - 1):
            return f"{value} is no power of two"
        return None


_BLOCK = Key(8, 1024, power=True)
_AMD = frozenset({"amd"})

# In the order in which the engines' tuners write them.
KEYS: Mapping[str, Key] = {
    "BLOCK_SIZE_M": _BLOCK,
    "BLOCK_SIZE_N": _BLOCK,
    "BLOCK_SIZE_K": _BLOCK,
    "GROUP_SIZE_M": Key(1, 1024),
    "SPLIT_K": Key(1, 64, engines=frozenset({"vllm"})),  # vLLM sets 1 before the launch, whatever stands here
    "num_warps": Key(1, 32, power=True),
    "num_ctas": Key(1, 16, power=True),
    "num_stages": Key(1, 16),
    "USE_TMA": Key(kind="switch", engines=frozenset({"sglang"})),
    "waves_per_eu": Key(0, 16, vendors=_AMD),
    "matrix_instr_nonkdim": Key(kind="word", words=(0, 4, 16, 32), vendors=_AMD),
    "kpack": Key(kind="word", words=(1, 2), vendors=_AMD),
    "grf_mode": Key(kind="word", words=("default", "auto", "128", "256"), vendors=frozenset({"intel"})),
}
REQUIRED = ("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "GROUP_SIZE_M")
# vLLM's FlyDSL kernel for int4 on AMD: not Triton's, and its tables are kept as they are.
FLYDSL_KEYS = ("tile_m", "tile_n", "tile_k", "tile_n2", "tile_k2")

_AGAIN = "Correct the value, or tune the table again."


def vendor_of(device_name: str) -> str | None:
    """The vendor that a table's device name begins with; None for a name that tells nothing."""
    first = device_name.partition("_")[0]
    return {"NVIDIA": "nvidia", "Tesla": "nvidia", "AMD": "amd", "Radeon": "amd", "Intel(R)": "intel"}.get(first)


def faults(m: str, entry: object, engine: str, vendor: str | None, backend: str | None = None) -> Iterator[Fault]:
    """What keeps the entry of token count ``m`` from being launched by ``engine`` on a GPU of ``vendor``."""
    if not isinstance(entry, Mapping):
        yield Fault("not_a_tile", m, f"{_brief(entry)} is no tile.", f"Write an object with {', '.join(REQUIRED)}.")
        return
    required = FLYDSL_KEYS if backend else REQUIRED
    missing = [key for key in required if key not in entry]
    if missing:
        yield Fault("missing_key", m, f"no {', '.join(missing)}.", "Add it, or tune the table again.")
    known: Mapping[str, Key] = dict.fromkeys(FLYDSL_KEYS, _BLOCK) if backend else KEYS
    for name, value in entry.items():
        key = known.get(name)
        if key is None:
            yield Fault("unknown_key", m, f"unknown key {_brief(name)}: the launch fails on it.", "Remove it.")
        elif engine in _BOTH and engine not in key.engines:
            message = f"{name} is not read by {ENGINE_TITLES[engine]}: the launch fails on it."
            yield Fault("foreign_key", m, message, "Remove it.")
        elif vendor is not None and vendor not in key.vendors:
            message = f"{name} belongs to {' and '.join(sorted(key.vendors))} GPUs: Triton fails on it elsewhere."
            yield Fault("foreign_key", m, message, "Remove it.")
        else:
            problem = key.problem(value)
            if problem:
                yield Fault("bad_value", f"{m}.{name}", f"{problem}.", _AGAIN)


ENGINE_TITLES = {"vllm": "vLLM", "sglang": "SGLang", "kernelmux": "kernelmux"}


def tile_of(entry: Entry) -> Tile:
    """The Tile of a sound entry; keys that `Tile` has no field for are left out (`extras` lists them)."""
    return Tile(
        entry["BLOCK_SIZE_M"], entry["BLOCK_SIZE_N"], entry["BLOCK_SIZE_K"], entry["GROUP_SIZE_M"],
        entry.get("num_warps", 4), entry.get("num_stages", 3), entry.get("USE_TMA", False),
    )  # fmt: skip


def extras(entry: Entry) -> dict[str, Any]:
    """What an entry says beyond its Tile: ``num_ctas`` and ``SPLIT_K`` of 1 say nothing."""
    silent = {("num_ctas", 1), ("SPLIT_K", 1)}
    own = {*REQUIRED, "num_warps", "num_stages", "USE_TMA"}
    return {key: value for key, value in entry.items() if key not in own and (key, value) not in silent}


def with_tile(entry: Entry, tile: Tile) -> dict[str, Any]:
    """The entry, its keys and their order kept, with the tile's values; keys it lacked come where tuners write them."""
    values = tile.to_json()
    if "USE_TMA" in entry:
        values["USE_TMA"] = tile.use_tma
    else:
        values.pop("USE_TMA", None)
    added = [key for key in values if key not in entry and not _is_default(key, values[key])]
    merged = {key: values.get(key, value) for key, value in entry.items()} | {key: values[key] for key in added}
    return merged if not added else {key: merged[key] for key in KEYS if key in merged}


def _is_default(key: str, value: object) -> bool:
    return (key, value) in {("num_warps", 4), ("num_stages", 3)}


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
