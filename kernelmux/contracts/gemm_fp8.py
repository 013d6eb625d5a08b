"""fp8_gemm: x @ w.T where both are e4m3, with scales per tensor, per channel or per block.

The weight w [N, K] e4m3 has fp32 scales of shape [] (tensor), [N] or [N, 1] (channel) or [ceil(N/128), ceil(K/128)]
(block); value = stored * scale. x comes as e4m3 with its scale, or in a wider dtype and is quantized inside: with
the one given ``x_scale``, else with scales of its own, amax / 448: one for the whole of x (tensor), one a row
(channel), or one for each row and 128 columns (block).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..registry import Op, Tolerance, Work
from .sizes import ELEMENT_BYTES, rows_of, upper_sizes

if TYPE_CHECKING:
    from ..registry import Problem

BLOCK = 128

_WHY = (
    "against fp32 on the same quantized operands: the output is rounded once; a value of x next "
    "to a rounding boundary of e4m3 may fall on either side, 1/16 to 1/8 of it apart; 9.0 adds products up with 14 "
    "bits; a kernel that leaves x unquantized lies 2.6% away"
)
_HERE, _MATH = "kernelmux.contracts.gemm_fp8", "kernelmux.contracts.gemm_fp8_math"

OP = Op(
    name="fp8_gemm",
    summary="x @ w.T with e4m3 weights and activations, scaled per tensor, per channel or per block of 128 x 128",
    schema=(
        "fp8_gemm(Tensor x, Tensor w, Tensor w_scale, Tensor? x_scale=None, *, ScalarType? out_dtype=None) -> Tensor"
    ),
    reference=f"{_MATH}:reference",
    meta=f"{_MATH}:meta",
    examples=f"{_MATH}:examples",
    problem=f"{_HERE}:problem_of_call",
    axes=("M", "N", "K"),
    token_axis="M",
    schemes=frozenset({"fp8_tensor", "fp8_channel", "fp8_block"}),
    dtypes=("bfloat16", "float16", "float8_e4m3fn"),
    tolerance={dtype: Tolerance(rtol=4e-2, atol=0.0, why=_WHY) for dtype in ("bfloat16", "float16", "float8_e4m3fn")},
    work=f"{_HERE}:work",
    weights=("w", "w_scale"),
    scheme_of=f"{_HERE}:scheme_of",
    check=f"{_MATH}:check_arguments",
)


def scheme_of(*, w: Any, w_scale: Any, **_: Any) -> str:
    """The scheme whose scales have this shape; a single scale is the tensor's."""
    if w_scale.numel() == 1:
        return "fp8_tensor"
    return "fp8_channel" if w_scale.dim() == 1 or tuple(w_scale.shape) == (w.shape[0], 1) else "fp8_block"


def problem_of_call(x: Any, weights: Any, **_: Any) -> dict[str, int]:
    """The shape of one call: x [..., K], weights (w [N, K], ...) or a kernel's own layout, whose N is not read."""
    sizes = {"M": rows_of(x), "K": x.shape[-1]}
    return {**sizes, "N": weights[0].shape[0]} if isinstance(weights, tuple) else sizes


def work(problem: Problem) -> Work:
    """x and w read once, a 16-bit output written; scales are left out (at most 1 byte in 32)."""
    size = upper_sizes(problem)
    m, n, k = size["M"], size["N"], size["K"]
    return Work(
        flops=2.0 * m * n * k, bytes=float(ELEMENT_BYTES[problem.dtype or "bfloat16"] * m * k + n * k + 2 * m * n)
    )
