"""NVFP4: e2m1 values in blocks of 16 along K, an e4m3 scale for each block, one fp32 scale for the tensor.

``value = e2m1 * block_scale * global_scale``: the global scale is the factor that dequantizes (ModelOpt's
``weight_scale_2`` and ``input_scale``), usually amax / (448 * 6). A checkpoint that stores its inverse
(compressed-tensors) is turned round before it gets here. Two values share a byte, the first in the low four bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..registry import Op, Tolerance, Work
from .sizes import ELEMENT_BYTES, rows_of, upper_sizes

if TYPE_CHECKING:
    from ..registry import Problem

GROUP = 16
LAYOUTS = ("linear",)

_HERE, _MATH = "kernelmux.contracts.nvfp4", "kernelmux.contracts.nvfp4_math"
_EXACT = Tolerance(rtol=0.0, atol=0.0, why="the bytes are specified: fp32 operations in a stated order, then rounding")
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
    examples=f"{_MATH}:quantize_examples",
    problem=f"{_HERE}:quantize_problem",
    axes=("M", "K"),
    token_axis="M",
    schemes=frozenset({"none"}),
    dtypes=("bfloat16", "float16", "float32"),
    tolerance=dict.fromkeys(("bfloat16", "float16", "float32"), _EXACT),
    work=f"{_HERE}:quantize_work",
    check=f"{_MATH}:check_quantize",
    check_values=f"{_MATH}:check_quantize_values",
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
    check=f"{_MATH}:check_gemm",
)

OPS = (QUANTIZE, GEMM)


def scheme_of(*, input_scale: Any = None, **_: Any) -> str:
    """``nvfp4`` (W4A4) with an input scale, else ``nvfp4_w4a16``."""
    return "nvfp4_w4a16" if input_scale is None else "nvfp4"


def quantize_problem(x: Any, weights: Any = None, **_: Any) -> dict[str, int]:
    """The shape of one call: x [M, K]."""
    return {"M": rows_of(x), "K": x.shape[-1]}


def gemm_problem(x: Any, weights: Any, **_: Any) -> dict[str, int]:
    """The shape of one call: x [..., K], weights (w [N, K/2], ...) or a kernel's own layout, whose N is not read."""
    sizes = {"M": rows_of(x), "K": x.shape[-1]}
    return {**sizes, "N": weights[0].shape[0]} if isinstance(weights, tuple) else sizes


def quantize_work(problem: Problem) -> Work:
    """x read, half a byte a value and a scale for every 16 written; four operations a value."""
    size = upper_sizes(problem)
    values = size["M"] * size["K"]
    return Work(flops=4.0 * values, bytes=values * (ELEMENT_BYTES[problem.dtype or "bfloat16"] + 0.5 + 1 / GROUP))


def gemm_work(problem: Problem) -> Work:
    """x and the packed weights with their scales read once, the output written in x's dtype."""
    size = upper_sizes(problem)
    m, n, k = size["M"], size["N"], size["K"]
    element = ELEMENT_BYTES[problem.dtype or "bfloat16"]
    return Work(flops=2.0 * m * n * k, bytes=element * float(m * k + m * n) + n * k * (0.5 + 1 / GROUP))
