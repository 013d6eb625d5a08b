"""The launch configuration of one Triton MoE GEMM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernelmux.errors import ConfigFileError

# JSON key -> field. The order is the order in which a table file is written (SGLang's and vLLM's).
JSON_KEYS: Mapping[str, str] = {
    "BLOCK_SIZE_M": "block_m",
    "BLOCK_SIZE_N": "block_n",
    "BLOCK_SIZE_K": "block_k",
    "GROUP_SIZE_M": "group_m",
    "num_warps": "warps",
    "num_stages": "stages",
    "USE_TMA": "use_tma",
}
_REQUIRED = ("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "GROUP_SIZE_M")

# What a launch uses when the file has no such key: Triton's own defaults for NVIDIA (`CUDAOptions`, 3.6).
# 36 of SGLang's shipped entries rely on it.
DEFAULT_WARPS = 4
DEFAULT_STAGES = 3

# field -> (least, greatest). Public tables hold BM 8..256, BN 16..256, BK 32..256, warps 1..16, stages 1..8.
_POWERS = {"block_m": (8, 1024), "block_n": (8, 1024), "block_k": (8, 1024), "warps": (1, 32)}
_COUNTS = {"group_m": (1, 1024), "stages": (1, 16)}


@dataclass(frozen=True, slots=True, order=True)
class Tile:
    """BLOCK_SIZE_M/N/K, GROUP_SIZE_M, num_warps, num_stages, and whether operands come through TMA descriptors.

    Blocks and warps are powers of two. A value that no launch could take raises ValueError.
    """

    block_m: int
    block_n: int
    block_k: int
    group_m: int = 1
    warps: int = DEFAULT_WARPS
    stages: int = DEFAULT_STAGES
    use_tma: bool = False

    def __post_init__(self) -> None:
        for field in JSON_KEYS.values():
            problem = _problem(field, getattr(self, field))
            if problem:
                raise ValueError(f"Tile.{field}: {problem}")

    def to_json(self) -> dict[str, int | bool]:
        """The entry of a table file, keys in the files' order; ``USE_TMA`` only when true."""
        entry: dict[str, int | bool] = {
            "BLOCK_SIZE_M": self.block_m,
            "BLOCK_SIZE_N": self.block_n,
            "BLOCK_SIZE_K": self.block_k,
            "GROUP_SIZE_M": self.group_m,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }
        if self.use_tma:
            entry["USE_TMA"] = True
        return entry

    @classmethod
    def from_json(cls, entry: object, where: str = "", path: Path | str = "tile") -> Tile:
        """Read one entry of a table file.

        ``where`` is the place inside ``path`` that an error names. Without ``num_warps`` or ``num_stages`` the
        launch takes Triton's defaults, 4 and 3. Raises ConfigFileError for a missing key, a key no launch reads or
        a value no launch takes.
        """
        if not isinstance(entry, Mapping):
            keys = ", ".join(_REQUIRED)
            raise ConfigFileError(path, where, f"{_brief(entry)} is no tile.", f"Write an object with {keys}.")
        unknown = sorted(str(key) for key in entry if key not in JSON_KEYS)
        if unknown:
            raise ConfigFileError(
                path, where, f"unknown key {', '.join(unknown)}.", f"Known keys: {', '.join(JSON_KEYS)}."
            )
        missing = [key for key in _REQUIRED if key not in entry]
        if missing:
            raise ConfigFileError(path, where, f"no {', '.join(missing)}.", "Add it, or tune the table again.")
        fields: dict[str, Any] = {}
        for key, value in entry.items():
            field = JSON_KEYS[key]
            problem = _problem(field, value)
            if problem:
                place = f"{where}.{key}" if where else key
                raise ConfigFileError(path, place, f"{problem}.", "Correct the value, or tune the table again.")
            fields[field] = value
        return cls(**fields)

    def short(self) -> str:
        """One line for people: ``64x128x64 g16 w8 s3 tma``."""
        tma = " tma" if self.use_tma else ""
        return f"{self.block_m}x{self.block_n}x{self.block_k} g{self.group_m} w{self.warps} s{self.stages}{tma}"

    def slab_bytes(self, a_bytes: float, b_bytes: float) -> int:
        """Bytes of one pipeline stage: a [BM, BK] block of A and a [BK, BN] block of B."""
        return int(self.block_k * (self.block_m * a_bytes + self.block_n * b_bytes))

    def shared_bytes(self, element_bytes: float, *, wgmma: bool) -> int:
        """Bytes of shared memory the pipelined loop holds; `shared_law` says which architectures are wgmma."""
        return self.slab_bytes(element_bytes, element_bytes) * (self.stages if wgmma else self.stages - 1)


def _problem(field: str, value: object) -> str | None:
    """What is wrong with one value, or None. JSON's true is not the number 1."""
    if field == "use_tma":
        return None if isinstance(value, bool) else f"{_brief(value)} is neither true nor false"
    low, high = _POWERS.get(field) or _COUNTS[field]
    if not isinstance(value, int) or isinstance(value, bool):
        return f"{_brief(value)} is no integer"
    if not low <= value <= high:
        return f"{_brief(value)} is outside {low}..{high}"
    if field in _POWERS and value & (value - 1):
        return f"{value} is no power of two"
    return None


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
