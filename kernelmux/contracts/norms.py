"""rms_norm, fused_add_rms_norm, gated_rms_norm, rms_norm_fp8: rows divided by their root mean square.

Two roundings are allowed, and every kernel declares which one it does:

- ``cast_before_mul``: the normalised row is rounded to x's dtype, multiplied by the weight and rounded again, as
  Hugging Face's modelling code does;
- ``fp32_mul``: the product with the weight is formed in fp32 and rounded once.

The weight of the product is fp32(weight) + weight_bias, added in fp32: 0 as it is stored, 1 as Gemma stores it.

fused_add_rms_norm returns the sum rounded to x's dtype as the new residual. ``residual_rounded`` normalises that
(Hugging Face), ``residual_fp32`` the sum before it was rounded.

rms_norm_fp8 divides the fp32 product by its scale and rounds once, to e4m3, nearest even, saturating. Its second result
is the scale it used, in memory of its own: of a given one a copy, written by the kernel itself.

``out`` may be x, and ``residual_out`` the residual: a kernel reads a whole row before it writes any of it. No out may
overlap an argument in any other way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..registry import Op, Tolerance, Work
from .fp8_outputs import TOLERANCE as FP8_TOLERANCE
from .sizes import ELEMENT_BYTES, rows_of, upper_sizes

if TYPE_CHECKING:
    from ..registry import Problem

ROUNDINGS = ("cast_before_mul", "fp32_mul")
RESIDUAL_ROUNDINGS = ("residual_rounded", "residual_fp32")
WEIGHT_BIASES = (0.0, 1.0)

_WHY = "three roundings at most (the residual, the normalised row, the product), each half a unit in the last place: "
TOLERANCE = {
    "bfloat16": Tolerance(rtol=1.2e-2, atol=0.0, why=f"{_WHY}2**-8 of a value with 8 significant bits"),
    "float16": Tolerance(
        rtol=1.5e-3, atol=1e-7, why=f"{_WHY}2**-11 of a value with 11 significant bits, 2**-25 of a subnormal"
    ),
    "float32": Tolerance(rtol=1e-5, atol=0.0, why="fp32 throughout; only the order of summation differs"),
}
DTYPES = ("bfloat16", "float16", "float32")
_MATH = "kernelmux.contracts.norms_math"
_HERE = "kernelmux.contracts.norms"

RMS_NORM = Op(
    name="rms_norm",
    summary="x / sqrt(mean(x^2) + eps) * (weight + weight_bias), over the last dimension",
    schema="rms_norm(Tensor x, Tensor weight, float eps=1e-06, float weight_bias=0.0) -> Tensor",
    reference=f"{_MATH}:rms_norm_reference",
    meta=f"{_MATH}:rms_norm_meta",
    examples=f"{_MATH}:rms_norm_examples",
    problem=f"{_HERE}:problem_of_call",
    axes=("M", "H"),
    token_axis="M",
    schemes=frozenset({"none"}),
    dtypes=DTYPES,
    tolerance=TOLERANCE,
    work=f"{_HERE}:rms_norm_work",
    weights=("weight",),
    check=f"{_MATH}:check_rms_norm",
    outs=("out",),
    inplace=(("out", "x"),),
)

FUSED_ADD_RMS_NORM = Op(
    name="fused_add_rms_norm",
    summary="rms_norm of x + residual; returns it and the sum, which is the new residual",
    schema=(
        "fused_add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps=1e-06, float weight_bias=0.0) "
        "-> (Tensor, Tensor)"
    ),
    reference=f"{_MATH}:fused_add_rms_norm_reference",
    meta=f"{_MATH}:fused_add_rms_norm_meta",
    examples=f"{_MATH}:fused_add_rms_norm_examples",
    problem=f"{_HERE}:problem_of_call",
    axes=("M", "H"),
    token_axis="M",
    schemes=frozenset({"none"}),
    dtypes=DTYPES,
    tolerance=TOLERANCE,
    work=f"{_HERE}:fused_add_rms_norm_work",
    weights=("weight",),
    check=f"{_MATH}:check_fused_add_rms_norm",
    outs=("out", "residual_out"),
    inplace=(("out", "x"), ("residual_out", "residual")),
)

GATED_RMS_NORM = Op(
    name="gated_rms_norm",
    summary="Mamba2's output norm: rms_norm of x * silu(z), over each of n_groups equal parts of the last dimension",
    schema="gated_rms_norm(Tensor x, Tensor z, Tensor weight, float eps=1e-06, int n_groups=1) -> Tensor",
    reference=f"{_MATH}:gated_rms_norm_reference",
    meta=f"{_MATH}:gated_rms_norm_meta",
    examples=f"{_MATH}:gated_rms_norm_examples",
    problem=f"{_HERE}:problem_of_call",
    axes=("M", "H"),
    token_axis="M",
    schemes=frozenset({"none"}),
    dtypes=DTYPES,
    tolerance=TOLERANCE,
    work=f"{_HERE}:gated_rms_norm_work",
    weights=("weight",),
    check=f"{_MATH}:check_gated_rms_norm",
    outs=("out",),
    inplace=(("out", "x"),),
)

RMS_NORM_FP8 = Op(
    name="rms_norm_fp8",
    summary="rms_norm to e4m3 and its fp32 scale: the one that is given, or one a token from its largest value",
    schema=(
        "rms_norm_fp8(Tensor x, Tensor weight, Tensor? scale=None, float eps=1e-06, float weight_bias=0.0) "
        "-> (Tensor, Tensor)"
    ),
    reference=f"{_MATH}:rms_norm_fp8_reference",
    meta=f"{_MATH}:rms_norm_fp8_meta",
    examples=f"{_MATH}:rms_norm_fp8_examples",
    problem=f"{_HERE}:problem_of_call",
    axes=("M", "H"),
    token_axis="M",
    schemes=frozenset({"none"}),
    dtypes=DTYPES,
    tolerance=dict.fromkeys(DTYPES, FP8_TOLERANCE),
    work=f"{_HERE}:rms_norm_fp8_work",
    weights=("weight",),
    check=f"{_MATH}:check_rms_norm_fp8",
    outs=("out", "scale_out"),
)

OPS = (RMS_NORM, FUSED_ADD_RMS_NORM, GATED_RMS_NORM, RMS_NORM_FP8)


def problem_of_call(x: Any, weights: Any = None, **_: Any) -> dict[str, int]:
    """The shape of one call: x [..., H], M rows of it."""
    return {"M": rows_of(x), "H": x.shape[-1]}


def rms_norm_work(problem: Problem) -> Work:
    """x read, the output written, the weight read once; square, add, scale, weigh."""
    return _work(problem, tensors=2, flops=4)


def fused_add_rms_norm_work(problem: Problem) -> Work:
    """x and the residual read, both outputs written, the weight read once."""
    return _work(problem, tensors=4, flops=5)


def gated_rms_norm_work(problem: Problem) -> Work:
    """x and z read, the output written, the weight read once; a sigmoid counts as four operations."""
    return _work(problem, tensors=3, flops=10)


def rms_norm_fp8_work(problem: Problem) -> Work:
    """x read, one byte a value and one scale a row written, the weight read once; largest, divide besides the norm."""
    size = upper_sizes(problem)
    read = _work(problem, tensors=1, flops=6)
    return Work(flops=read.flops, bytes=read.bytes + size["M"] * (size["H"] + 4))


def _work(problem: Problem, *, tensors: int, flops: int) -> Work:
    size = upper_sizes(problem)
    rows, hidden = size["M"], size["H"]
    element = ELEMENT_BYTES[problem.dtype or "bfloat16"]
    return Work(flops=float(flops * rows * hidden), bytes=float(element * (tensors * rows + 1) * hidden))
