"""What a GPU could do at best, and how long a piece of work takes at that rate: the roofline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernelmux.contracts.moe_quant import UNQUANTIZED, MoeQuant
from kernelmux.errors import ConfigFileError
from kernelmux.tuning_configs.document import FileFault, parse_json, read_bytes

if TYPE_CHECKING:
    from kernelmux.contracts.moe_shape import MoeShape
    from kernelmux.device import Device

_FORM = '{"device": "NVIDIA H200", "ceilings": {"bf16_tflops": 781.0, "copy_gbs": 4245.2}}'


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Matrix product rate in TFLOP/s and memory rate in GB/s (1e9 bytes), and whether anybody measured them."""

    tflops: float
    bandwidth_gbs: float
    source: str  # "datasheet" or "measured"
    words: str

    @classmethod
    def of(cls, device: Device, dtype: str) -> Ceilings | None:
        """The vendor's figures from the catalog for a dtype or rate name; None where the device has no such units."""
        tflops = device.peak(dtype)
        if tflops <= 0 or device.bandwidth_gbs <= 0:
            return None
        return cls(tflops, device.bandwidth_gbs, "datasheet", f"the data sheet of {device.torch_name}: dense {dtype}")

    def floor(self, shape: MoeShape, m: int, quant: MoeQuant = UNQUANTIZED) -> tuple[float, str]:
        """(microseconds, "compute" or "memory"): the least one call with ``m`` tokens takes at these rates.

        The work is `contracts.fused_moe.work`: both GEMMs, each expert that uniform routing visits read once; weights
        of ``quant`` count with their own width.
        """
        from kernelmux.contracts.fused_moe import experts_hit, work
        from kernelmux.quant import Scheme
        from kernelmux.registry.problem import Problem

        todo = work(
            Problem("fused_moe", Scheme.of(None), shape.dtype, {**shape.axes(), "M": m}, activation=shape.activation)
        )
        weights = experts_hit(shape.E, m * shape.topk) * (shape.up_n + shape.N) * shape.K
        narrower = 0 if quant == UNQUANTIZED else shape.element_bytes - quant.element_bytes_b
        compute_us = todo.flops / self.tflops * 1e-6
        memory_us = (todo.bytes - narrower * weights) / self.bandwidth_gbs * 1e-3
        return (compute_us, "compute") if compute_us >= memory_us else (memory_us, "memory")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read(path: Path | str, torch_name: str | None, dtype: str) -> Ceilings:
    """Measured ceilings from a JSON file with ``device`` and ``ceilings`` (a benchmark's result has both).

    Raises ConfigFileError for a file without them, or measured on another GPU than ``torch_name``.
    """
    path = Path(path)
    try:
        raw, _ = parse_json(read_bytes(path))
    except FileFault as faulty:
        raise ConfigFileError(path, faulty.fault.where, faulty.fault.message, f"It must hold {_FORM}.") from faulty
    return from_json(raw, path, torch_name, dtype)


def from_json(raw: object, path: Path | str, torch_name: str | None, dtype: str) -> Ceilings:
    """As `read`, of parsed JSON."""
    found = raw.get("ceilings") if isinstance(raw, Mapping) else None
    rate = "fp16_tflops" if dtype == "float16" else "bf16_tflops"
    if not isinstance(raw, Mapping) or not isinstance(found, Mapping):
        raise ConfigFileError(path, "ceilings", "this object is missing.", f"It must hold {_FORM}.")
    # bf16 and fp16 run at the same rate on every GPU of the catalog, so one may stand in for the other.
    tflops = found.get(rate, found.get("bf16_tflops"))
    gbs = found.get("copy_gbs")
    for key, value in ((rate, tflops), ("copy_gbs", gbs)):
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
            problem = f"{value!r} is no rate above zero."
            raise ConfigFileError(path, f"ceilings.{key}", problem, f"It must hold {_FORM}.")
    measured_on = raw.get("device")
    if torch_name and measured_on and measured_on != torch_name:
        problem = f"these ceilings were measured on {measured_on}, the tiles are for {torch_name}."
        raise ConfigFileError(path, "device", problem, "Leave them out to use the data sheet's.")
    words = "measured on this kind of GPU: a large bf16 matrix product, and a large copy (bytes read and written)"
    return Ceilings(float(tflops), float(gbs), "measured", words)  # type: ignore[arg-type]
