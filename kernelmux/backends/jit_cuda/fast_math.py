"""Whether a CUDA kernel is compiled with fast math: data (fast_math.yaml), with a measured gain for every yes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import twin
from ...errors import ConfigFileError
from ...registry.value import Value

if TYPE_CHECKING:
    from ...device import Capability

FILE = Path(__file__).with_name("fast_math.yaml")
LEAST_GAIN = 3.0  # per cent
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "float": "float32"}  # as sources call them

_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "arch": str, "dtype": str, "source": str, "kernel": str,
    "gain_percent": (int, float), "evidence": str, "kernels": list,
}  # fmt: skip


class Entry(Value):
    """One measured gain."""

    arch: str
    dtype: str
    source: str
    kernel: str
    gain_percent: float
    evidence: str
    kernels: tuple[str, ...]


def wanted(source: str, kernel: str, defines: Mapping[str, str | int], capability: Capability) -> bool:
    """Whether the data says yes for this GPU, dtype and kernel; never from 10.0 on."""
    if capability.major >= 10:
        return False
    dtype = DTYPES.get(str(defines.get("DTYPE", "")), "")
    key = (capability.arch, dtype, source.removesuffix(".cu"), kernel)
    return any(key == (entry.arch, entry.dtype, entry.source, entry.kernel) for entry in entries())


@cache
def entries() -> tuple[Entry, ...]:
    return load(FILE)


def load(path: Path) -> tuple[Entry, ...]:
    """The entries of a file. Raises ConfigFileError for one that no policy allows."""
    data = twin.read(path, parse)
    rows = data.get("entries") if isinstance(data, dict) else None
    if not isinstance(rows, list):
        raise ConfigFileError(path, "", "must hold a list named entries.", "Write `entries: []` for none.")
    return tuple(_entry(path, i, row) for i, row in enumerate(rows))


def parse(path: Path) -> Any:
    from ...policies.strict_yaml import read_yaml

    return read_yaml(path)


def _entry(path: Path, index: int, row: Any) -> Entry:
    where = f"entries[{index}]"
    if not isinstance(row, dict) or set(row) != set(_FIELDS):
        raise ConfigFileError(path, where, f"must have exactly these keys: {', '.join(_FIELDS)}.")
    for name, kind in _FIELDS.items():
        if not isinstance(row[name], kind):
            raise ConfigFileError(path, f"{where}.{name}", f"is {row[name]!r}, which is of the wrong type.")
    if not row["arch"].startswith("sm_") or not row["arch"][3:].isdigit() or int(row["arch"][3:]) >= 100:
        raise ConfigFileError(path, f"{where}.arch", f"is {row['arch']}: fast math is for sm_80 to sm_90 only.")
    if row["gain_percent"] < LEAST_GAIN:
        said = f"is {row['gain_percent']:g}: below {LEAST_GAIN:g} the exact kernel is kept."
        raise ConfigFileError(path, f"{where}.gain_percent", said)
    return Entry(**{**row, "gain_percent": float(row["gain_percent"]), "kernels": tuple(row["kernels"])})
