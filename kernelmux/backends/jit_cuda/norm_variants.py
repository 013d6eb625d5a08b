"""Which kernels csrc/norms.cu is compiled to: an op with its roundings, and everything that is known when compiling."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ...errors import BadShape
from ...registry.value import Value
from ..compile_job import CompileJob
from . import norm_geometry
from .compiler import vector_bytes
from .norm_geometry import Geometry

if TYPE_CHECKING:
    from ...device import Capability, Device

Defines = tuple[tuple[str, "str | int"], ...]

SOURCE, ENTRY = "norms", "norm_rows"
MOST_PARTS = 2**30

_NORM = {"rms_norm": "RMS", "fused_add_rms_norm": "ADD", "gated_rms_norm": "GATED"}
_DTYPE = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


class Variant(Value):
    """An op with its roundings; ``residual``: residual_rounded or residual_fp32, of fused_add_rms_norm."""

    op: str
    order: str
    residual: str = "residual_rounded"

    @property
    def name(self) -> str:
        return f"{self.op}_{self.order}" + (f"_{self.residual}" if self.op == "fused_add_rms_norm" else "")


VARIANTS = tuple(
    Variant(op, order, residual)
    for op in _NORM
    for order in ("cast_before_mul", "fp32_mul")
    for residual in (("residual_rounded", "residual_fp32") if op == "fused_add_rms_norm" else ("residual_rounded",))
)


def defines(
    variant: Variant,
    dtype: str,
    length: int,
    n_groups: int,
    weight_bias: int,
    geometry: Geometry,
    capability: Capability,
    *,
    access: int | None = None,
    nested: bool = False,
) -> Defines:
    """What csrc/norms.cu is compiled with. ``access``: bytes that everything is aligned to (None: a full access)."""
    vector = vector_bytes(capability)
    given: dict[str, str | int] = {
        "NORM": _NORM[variant.op],
        "DTYPE": _DTYPE[dtype],
        "HIDDEN": length,
        "N_GROUPS": n_groups,
        "CAST_FIRST": int(variant.order == "cast_before_mul"),
        "RESIDUAL_FP32": int(variant.residual == "residual_fp32"),
        "WEIGHT_BIAS": weight_bias,
        "VEC_BYTES": vector,
        "ACCESS_BYTES": vector if access is None else access,
        "LANES": geometry.lanes,
        "ROWS": geometry.rows,
        "UNROLL": geometry.unroll,
        "PERSISTENT": int(geometry.blocks > 0),
        "PREFETCH": int(geometry.prefetch),
        "LOADS": geometry.loads.upper(),
        "STORES": {"keep": "KEEP", "stream": "STREAM"}[geometry.stores],
        "MIN_BLOCKS": geometry.least,
        "LONG": int(geometry.long),
        "NESTED": int(nested),
    }
    return tuple(sorted(given.items()))


def aligned_to(bits: int, most: int) -> int:
    """The largest power of two up to ``most`` that divides everything or-ed into ``bits``."""
    bits |= most
    return bits & -bits


def pick(
    op: str,
    length: int,
    dtype: str,
    parts: int,
    capability: Capability,
    sm_count: int,
    geometry: Geometry | str | None = None,
) -> Geometry:
    """The geometry that is asked for, or the rule's. Raises BadShape for one that cannot be built."""
    if geometry is None:
        return norm_geometry.choose(op, length, dtype, parts, capability, sm_count)
    wanted = Geometry.parse(geometry) if isinstance(geometry, str) else geometry
    item = norm_geometry.ITEM_BYTES[dtype]
    why = norm_geometry.fault(wanted, op, length, item, vector_bytes(capability))
    if why is not None:
        raise BadShape(f"{op}: geometry {wanted.name} does not fit rows of {length} {dtype}: {why}.")
    return wanted


COMMON_LENGTHS = (128, 512, 2048, 2688, 2880, 4096, 5120, 5376, 7168, 8192, 16384)
COMMON_ROWS = (1, 16, 64, 256, 1024, 4096, 16384)


def jobs_of(variant: Variant, device: Device, dtype: str, shape: Mapping[str, Any]) -> Iterator[CompileJob]:
    """What contiguous rows need, with the weight as stored, in one group."""
    from . import cache

    if device.capability is None:
        return
    lengths = (shape["H"],) if "H" in shape else COMMON_LENGTHS
    rows = shape.get("M", COMMON_ROWS)
    counts: Iterable[int] = (rows,) if isinstance(rows, int) else rows
    for length in lengths:
        access = aligned_to(length * norm_geometry.ITEM_BYTES[dtype], vector_bytes(device.capability))
        given_rows = {max(count, 1) for count in counts}
        chosen = (pick(variant.op, length, dtype, n, device.capability, device.sm_count) for n in sorted(given_rows))
        for geometry in dict.fromkeys(chosen):
            given = defines(variant, dtype, length, 1, 0, geometry, device.capability, access=access)
            yield cache.job(SOURCE, ENTRY, dict(given), device.capability)
