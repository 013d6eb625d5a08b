"""How a fused MoE layer is quantized, in the words that vLLM's and SGLang's tables and kernels use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import UnknownScheme, UsageError
from ..registry import Tolerance

if TYPE_CHECKING:
    from ..quant import Scheme
    from .moe_shape import MoeShape

ENGINE_DTYPES = ("fp8_w8a8", "int8_w8a8", "int8_w8a16")
"""The words after ``dtype=`` in a table's name that a Triton MoE kernel of one plain form serves."""

SCHEMES = ("none", "fp8_tensor", "fp8_channel", "fp8_block", "int8_w8a8", "int8_w8a16")

DEFAULT_BLOCK = (128, 128)

_OF_SCHEME: Mapping[str, tuple[str | None, bool]] = {
    "none": (None, False),
    "fp8_tensor": ("fp8_w8a8", False),
    "fp8_channel": ("fp8_w8a8", True),
    "fp8_block": ("fp8_w8a8", False),
    "int8_w8a8": ("int8_w8a8", True),
    "int8_w8a16": ("int8_w8a16", True),
}

_ROUNDINGS = "rounded to the dtype after each product and after the activation"
_FLIPS = "an inner value next to a rounding boundary of its 8-bit type may fall on either side of it, "
_WIDE = {
    "bfloat16": Tolerance(rtol=1e-2, atol=0.0, why=f"{_ROUNDINGS}: 8 significant bits, 2**-9 a rounding"),
    "float16": Tolerance(rtol=1.5e-3, atol=0.0, why=f"{_ROUNDINGS}: 11 significant bits, 2**-12 a rounding"),
}
_FP8 = Tolerance(
    rtol=5e-2, atol=0.0, why=_FLIPS + "1/16 to 1/8 of it apart; tensor cores of 9.0 add e4m3 products up with 14 bits"
)
_FP8_TENSOR = Tolerance(
    rtol=8e-2, atol=0.0, why=_FP8.why + "; under one scale for all rows the small rows lie among e4m3's subnormals"
)
_INT8 = Tolerance(rtol=2e-2, atol=0.0, why=_FLIPS + "1/127 of its row's largest apart")


@dataclass(frozen=True, slots=True, order=True)
class MoeQuant:
    """Element types of a MoE GEMM's operands and where their scales lie.

    ===============================  =========================  =============================================
    scheme                           weights [E, rows, depth]   activations [rows, depth]
    ===============================  =========================  =============================================
    ``none``                         bf16/fp16                  bf16/fp16
    ``fp8_tensor``                   e4m3, one scale [E]        e4m3, one scale, static or dynamic
    ``fp8_channel`` (per_channel)    e4m3, [E, rows]            e4m3, one scale a row, dynamic
    ``fp8_block`` (block_shape n,k)  e4m3, [E, rows/n, depth/k] e4m3, one scale a row and k columns, dynamic
    ``int8_w8a8`` (per_channel)      int8, [E, rows]            int8, one scale a row, dynamic
    ``int8_w8a16`` (per_channel)     int8, [E, rows]            bf16/fp16
    ===============================  =========================  =============================================

    Weights and activations of 8 bits are symmetric: value = scale * stored, scale fp32.
    """

    dtype: str | None = None
    block_shape: tuple[int, int] | None = None
    per_channel: bool = False

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in ENGINE_DTYPES:
            raise UsageError(f"unknown MoE dtype {self.dtype!r}: use one of {', '.join(ENGINE_DTYPES)}, or none.")
        if self.block_shape is not None:
            if self.dtype != "fp8_w8a8":
                raise UsageError(f"block_shape belongs to fp8_w8a8, not to {self.dtype or 'unquantized weights'}.")
            if len(self.block_shape) != 2 or any(size < 1 for size in self.block_shape):
                raise UsageError(f"block_shape {self.block_shape!r} must be two positive numbers (n, k).")
            if self.per_channel:
                raise UsageError("weights have scales per channel or per block, not both.")
        if self.dtype is None and self.per_channel:
            raise UsageError("unquantized weights have no scales per channel.")
        if self.dtype in ("int8_w8a8", "int8_w8a16") and not self.per_channel:
            raise UsageError(f"{self.dtype} has one scale a channel: set per_channel.")

    @property
    def scheme(self) -> str:
        """The scheme's name in `kernelmux.quant`."""
        if self.dtype != "fp8_w8a8":
            return self.dtype or "none"
        return "fp8_block" if self.block_shape else "fp8_channel" if self.per_channel else "fp8_tensor"

    @property
    def fp8(self) -> bool:
        return self.dtype == "fp8_w8a8"

    @property
    def quantizes_activations(self) -> bool:
        """Whether both operands are 8 bits wide, so that activations are quantized before each GEMM."""
        return self.dtype in ("fp8_w8a8", "int8_w8a8")

    @property
    def element_bytes_a(self) -> int:
        """Bytes of one activation element as the GEMM loads it."""
        return 1 if self.quantizes_activations else 2

    @property
    def element_bytes_b(self) -> int:
        """Bytes of one weight element."""
        return 2 if self.dtype is None else 1

    @property
    def peak_dtype(self) -> str | None:
        """The key of `Device.peak` that the GEMM's MMA runs at; None: the layer's own dtype."""
        return {"fp8_w8a8": "fp8", "int8_w8a8": "int8"}.get(self.dtype or "")

    def clamped_k(self, block_k: int) -> int:
        """BLOCK_SIZE_K as it runs: one step of the loop must not pass a block's scale."""
        return block_k if self.block_shape is None else min(block_k, *self.block_shape)

    def scale_shape(self, experts: int, rows: int, depth: int) -> tuple[int, ...] | None:
        """Shape of the fp32 scales of weights [experts, rows, depth], None without scales."""
        if self.dtype is None:
            return None
        if self.block_shape is not None:
            n, k = self.block_shape
            return (experts, -(-rows // n), -(-depth // k))
        return (experts, rows) if self.per_channel else (experts,)

    def tolerance(self, dtype: str) -> Tolerance:
        """How far a row of a plain kernel's output may lie from `moe_quant_math.reference_quantized` (relative L2)."""
        if not self.quantizes_activations:
            return _WIDE[dtype]
        if not self.fp8:
            return _INT8
        return _FP8 if self.per_channel or self.block_shape is not None else _FP8_TENSOR

    def refusal(self, shape: MoeShape) -> str | None:
        """Why no plain kernel runs this shape, or None if one does."""
        if self.block_shape is not None:
            _, k = self.block_shape
            if shape.K % k or shape.N % k:
                return f"K={shape.K} and N={shape.N} must be multiples of the scale block's {k} columns"
        return None

    def brief(self) -> str:
        """One word for people and keys: ``none``, ``fp8_block[128,128]``, ``int8_w8a8``."""
        block = "" if self.block_shape is None else f"[{self.block_shape[0]},{self.block_shape[1]}]"
        return self.scheme + block

    @classmethod
    def of(cls, scheme: str | Scheme, block: tuple[int, int] | None = None) -> MoeQuant:
        """From a scheme's name, or a Scheme; ``block`` (n, k) is read for ``fp8_block`` (default 128 x 128).

        Raises UnknownScheme for a scheme whose MoE GEMMs are of another form (int4, FP4, MX).
        """
        name = scheme if isinstance(scheme, str) else scheme.name
        if block is None and not isinstance(scheme, str):
            block = scheme.block
        if name not in _OF_SCHEME:
            raise UnknownScheme(name, SCHEMES)
        dtype, per_channel = _OF_SCHEME[name]
        if name == "fp8_block":
            return cls(dtype, block or DEFAULT_BLOCK)
        return cls(dtype, None, per_channel)


UNQUANTIZED = MoeQuant()
