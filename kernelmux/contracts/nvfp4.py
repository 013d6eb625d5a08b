"""NVFP4: e2m1 values in blocks of 16 along K, an e4m3 scale for each block, one fp32 scale for the tensor.

``value = e2m1 * block_scale * global_scale``: the global scale is the factor that dequantizes (ModelOpt's
``weight_scale_2`` and ``input_scale``), usually amax / (448 * 6). A checkpoint that stores its inverse
(compressed-tensors) is turned round before it gets here (nvfp4_checkpoint). Two values share a byte, the first in the
low four bits. Block scales lie in one of two layouts (nvfp4_layouts).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..registry import Op, Tolerance, Work
from .sizes import ELEMENT_BYTES, rows_of, upper_sizes

if TYPE_CHECKING:
    from ..registry import Problem

GROUP = 16
LAYOUTS = ("linear", "swizzled_128x4")
BIT_EXACT = "bit_exact"  # the promise of a kernel whose bytes are the reference's

_HERE, _MATH = "kernelmux.contracts.nvfp4", "kernelmux.contracts.nvfp4_math"
_CHECKS, _EXAMPLES = "kernelmux.contracts.nvfp4_checks", "kernelmux.contracts.nvfp4_examples"
_FLOATS = ("bfloat16", "float16", "float32")
_PACKED = Tolerance(
    rtol=0.15,
    atol=0.0,
    why=(
        "of what is dequantized, for kernels that do not promise bit_exact (with the promise the bytes are equal): "
        "behind an approximate quotient or an exponential a value next to a boundary may fall on its other side"
    ),
)
_GEMM = (
    "against fp32 on the same quantized operands: dequantized operands and the output are each "
    "rounded once; with an input scale, a kernel that divides approximately may put a value of x that lies next to "
    "a boundary of e2m1 on its other side"
)

QUANTIZE = Op(
    name="nvfp4_quantize",
    summary="x to packed e2m1 and e4m3 block scales, under a given global scale",
    schema="nvfp4_quantize(Tensor x, Tensor global_scale, str layout='linear') -> (Tensor, Tensor)",
    reference=f"{_MATH}:quantize_reference",
    meta=f"{_MATH}:quantize_meta",
    examples=f"{_EXAMPLES}:quantize_examples",
    problem=f"{_HERE}:quantize_problem",
    axes=("M", "K"),
    token_axis="M",
    schemes=frozenset({"none"}),
    dtypes=_FLOATS,
    tolerance=dict.fromkeys(_FLOATS, _PACKED),
    work=f"{_HERE}:quantize_work",
    check=f"{_CHECKS}:check_quantize",
    check_values=f"{_CHECKS}:check_factor_values",
    decoded=f"{_MATH}:decoded",
    outs=("out", "scale_out"),
)

DEQUANTIZE = Op(
    name="nvfp4_dequantize",
    summary="packed e2m1 and its scales back to fp32 or bf16",
    schema=(
        "nvfp4_dequantize(Tensor x, Tensor scale, Tensor global_scale, str layout='linear', *, "
        "ScalarType? out_dtype=None) -> Tensor"
    ),
    reference=f"{_MATH}:dequantize_reference",
    meta=f"{_MATH}:dequantize_meta",
    examples=f"{_EXAMPLES}:dequantize_examples",
    problem=f"{_HERE}:packed_problem",
    axes=("M", "K"),
    token_axis="M",
    schemes=frozenset({"none"}),
    dtypes=("uint8",),
    tolerance={
        "uint8": Tolerance(rtol=2**-8, atol=0.0, why="a product of three numbers in fp32, rounded once more to bf16")
    },
    work=f"{_HERE}:dequantize_work",
    check=f"{_CHECKS}:check_dequantize",
    check_values=f"{_CHECKS}:check_factor_values",
)

MM = Op(
    name="nvfp4_mm",
    summary="a @ b.T of two NVFP4 matrices, W4A4: the dequantized blocks' product times alpha",
    schema=(
        "nvfp4_mm(Tensor a, Tensor a_sf, Tensor b, Tensor b_sf, Tensor alpha, *, str layout='swizzled_128x4', "
        "ScalarType? out_dtype=None) -> Tensor"
    ),
    reference=f"{_MATH}:mm_reference",
    meta=f"{_MATH}:mm_meta",
    examples=f"{_EXAMPLES}:mm_examples",
    problem=f"{_HERE}:mm_problem",
    axes=("M", "N", "K"),
    token_axis="M",
    schemes=frozenset({"none"}),
    dtypes=("uint8",),
    tolerance={
        "uint8": Tolerance(
            rtol=2**-8, atol=0.0, why="products of e2m1 and e4m3 are exact, the sum is fp32, the output rounded to bf16"
        )
    },
    work=f"{_HERE}:mm_work",
    check=f"{_CHECKS}:check_mm",
    check_values=f"{_CHECKS}:check_mm_values",
)

GEMM = Op(
    name="nvfp4_gemm",
    summary="x @ w.T with NVFP4 weights; x is quantized too where an input scale is given (W4A4), else not (W4A16)",
    schema=(
        "nvfp4_gemm(Tensor x, Tensor w, Tensor w_scale, Tensor w_global_scale, Tensor? input_scale=None, *, "
        "ScalarType? out_dtype=None) -> Tensor"
    ),
    reference=f"{_MATH}:gemm_reference",
    meta=f"{_MATH}:gemm_meta",
    examples=f"{_MATH}:gemm_examples",
    problem=f"{_HERE}:gemm_problem",
    axes=("M", "N", "K"),
    token_axis="M",
    schemes=frozenset({"nvfp4", "nvfp4_w4a16"}),
    dtypes=("bfloat16", "float16"),
    tolerance={
        "bfloat16": Tolerance(rtol=4e-2, atol=0.0, why=f"{_GEMM} (8 significant bits)"),
        "float16": Tolerance(rtol=4e-2, atol=0.0, why=f"{_GEMM} (11 significant bits)"),
    },
    work=f"{_HERE}:gemm_work",
    weights=("w", "w_scale", "w_global_scale"),
    optional_weights=("input_scale",),
    scheme_of=f"{_HERE}:scheme_of",
    check=f"{_CHECKS}:check_gemm",
)

SILU_AND_MUL = Op(
    name="silu_and_mul_nvfp4",
    summary="silu(gate) * up to NVFP4 under a given global scale, for x [..., 2H] = [gate, up]",
    schema="silu_and_mul_nvfp4(Tensor x, Tensor global_scale, str layout='linear') -> (Tensor, Tensor)",
    reference=f"{_MATH}:silu_and_mul_reference",
    meta=f"{_MATH}:silu_and_mul_meta",
    examples=f"{_EXAMPLES}:silu_and_mul_examples",
    problem=f"{_HERE}:gated_problem",
    axes=("M", "H"),
    token_axis="M",
    schemes=frozenset({"none"}),
    dtypes=_FLOATS,
    tolerance=dict.fromkeys(_FLOATS, _PACKED),
    work=f"{_HERE}:silu_and_mul_work",
    check=f"{_CHECKS}:check_silu_and_mul",
    check_values=f"{_CHECKS}:check_factor_values",
    decoded=f"{_MATH}:decoded",
    outs=("out", "scale_out"),
)

RMS_NORM = Op(
    name="rms_norm_nvfp4",
    summary="rms_norm to NVFP4 under a given global scale",
    schema=(
        "rms_norm_nvfp4(Tensor x, Tensor weight, Tensor global_scale, float eps=1e-06, float weight_bias=0.0, "
        "str layout='linear') -> (Tensor, Tensor)"
    ),
    reference=f"{_MATH}:rms_norm_reference",
    meta=f"{_MATH}:rms_norm_meta",
    examples=f"{_EXAMPLES}:rms_norm_examples",
    problem=f"{_HERE}:norm_problem",
    axes=("M", "H"),
    token_axis="M",
    schemes=frozenset({"none"}),
    dtypes=_FLOATS,
    tolerance=dict.fromkeys(_FLOATS, _PACKED),
    work=f"{_HERE}:rms_norm_work",
    weights=("weight",),
    check=f"{_CHECKS}:check_rms_norm",
    check_values=f"{_CHECKS}:check_factor_values",
    decoded=f"{_MATH}:decoded",
    outs=("out", "scale_out"),
)

OPS = (QUANTIZE, DEQUANTIZE, MM, GEMM, SILU_AND_MUL, RMS_NORM)


def scheme_of(*, input_scale: Any = None, **_: Any) -> str:
    """``nvfp4`` (W4A4) with an input scale, else ``nvfp4_w4a16``."""
    return "nvfp4_w4a16" if input_scale is None else "nvfp4"


def quantize_problem(x: Any, weights: Any = None, **_: Any) -> dict[str, int]:
    """The shape of one call: x [M, K]."""
    return {"M": rows_of(x), "K": x.shape[-1]}


def packed_problem(x: Any, weights: Any = None, **_: Any) -> dict[str, int]:
    """The shape of one call: x [..., K/2] of two values a byte."""
    return {"M": rows_of(x), "K": 2 * x.shape[-1]}


def mm_problem(a: Any, weights: Any = None, *, b: Any = None, **_: Any) -> dict[str, int]:
    """The shape of one call: a [M, K/2], b [N, K/2]."""
    sizes = packed_problem(a)
    return {**sizes, "N": b.shape[0]} if b is not None else sizes


def gemm_problem(x: Any, weights: Any, **_: Any) -> dict[str, int]:
    """The shape of one call: x [..., K], weights (w [N, K/2], ...) or a kernel's own layout, whose N is not read."""
    sizes = {"M": rows_of(x), "K": x.shape[-1]}
    return {**sizes, "N": weights[0].shape[0]} if isinstance(weights, tuple) else sizes


def gated_problem(x: Any, weights: Any = None, **_: Any) -> dict[str, int]:
    """The shape of one call: x [..., 2H]."""
    return {"M": rows_of(x), "H": x.shape[-1] // 2}


def norm_problem(x: Any, weights: Any = None, **_: Any) -> dict[str, int]:
    """The shape of one call: x [..., H]."""
    return {"M": rows_of(x), "H": x.shape[-1]}


PACKED_BYTES = 0.5 + 1 / GROUP  # of a value with its share of a block scale


def quantize_work(problem: Problem) -> Work:
    """x read, half a byte a value and a scale for every 16 written; four operations a value."""
    return _quantized(problem, "K", read=1, flops=4)


def silu_and_mul_work(problem: Problem) -> Work:
    """Both halves read, packed values and scales written; the activation counts as four operations."""
    return _quantized(problem, "H", read=2, flops=9)


def rms_norm_work(problem: Problem) -> Work:
    """x read, packed values and scales written, the weight read once; four operations for the norm."""
    found = _quantized(problem, "H", read=1, flops=8)
    weight = upper_sizes(problem)["H"] * ELEMENT_BYTES[problem.dtype or "bfloat16"]
    return Work(flops=found.flops, bytes=found.bytes + weight)


def _quantized(problem: Problem, axis: str, *, read: int, flops: int) -> Work:
    size = upper_sizes(problem)
    values = size["M"] * size[axis]
    element = ELEMENT_BYTES[problem.dtype or "bfloat16"]
    return Work(flops=float(flops * values), bytes=values * (read * element + PACKED_BYTES))


def dequantize_work(problem: Problem) -> Work:
    """Packed values and scales read, fp32 written; two operations a value."""
    size = upper_sizes(problem)
    values = size["M"] * size["K"]
    return Work(flops=2.0 * values, bytes=values * (PACKED_BYTES + 4))


def mm_work(problem: Problem) -> Work:
    """Both packed matrices with their scales read once, the output written in bf16."""
    size = upper_sizes(problem)
    m, n, k = size["M"], size["N"], size["K"]
    return Work(flops=2.0 * m * n * k, bytes=(m + n) * k * PACKED_BYTES + 2.0 * m * n)


def gemm_work(problem: Problem) -> Work:
    """x and the packed weights with their scales read once, the output written in x's dtype."""
    size = upper_sizes(problem)
    m, n, k = size["M"], size["N"], size["K"]
    element = ELEMENT_BYTES[problem.dtype or "bfloat16"]
    return Work(flops=2.0 * m * n * k, bytes=element * float(m * k + m * n) + n * k * PACKED_BYTES)
