"""router_gemm and topk: from hidden states to the experts of each token and their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..registry import Op, Tolerance, Work
from .sizes import ELEMENT_BYTES, rows_of, upper_sizes

if TYPE_CHECKING:
    from ..registry import Problem

SCORINGS = ("softmax", "sigmoid")

_SUM = "products of the given operands summed in fp32; only the order of summation"
_SCORES = "of the weights: fp32 throughout; exp differs in the last places. The ids are exact"
_HERE, _MATH = "kernelmux.contracts.router", "kernelmux.contracts.router_math"

ROUTER_GEMM = Op(
    name="router_gemm",
    summary="logits = x @ w.T, accumulated and returned in fp32 (N experts)",
    schema="router_gemm(Tensor x, Tensor w) -> Tensor",
    reference=f"{_MATH}:router_gemm_reference",
    meta=f"{_MATH}:router_gemm_meta",
    examples=f"{_MATH}:router_gemm_examples",
    problem=f"{_HERE}:router_gemm_problem",
    axes=("M", "N", "K"),
    token_axis="M",
    schemes=frozenset({"none"}),
    dtypes=("bfloat16", "float16", "float32"),
    tolerance={
        "bfloat16": Tolerance(rtol=1e-4, atol=0.0, why=_SUM),
        "float16": Tolerance(rtol=1e-4, atol=0.0, why=_SUM),
        "float32": Tolerance(rtol=1e-4, atol=0.0, why=_SUM),
    },
    work=f"{_HERE}:router_gemm_work",
    weights=("w",),
    check=f"{_MATH}:check_router_gemm",
)

TOPK = Op(
    name="topk",
    summary="the topk experts of each token and their weights, from router logits",
    schema=(
        "topk(Tensor logits, Tensor? bias=None, *, int topk, str scoring='softmax', bool renormalize=True, "
        "int n_group=1, int topk_group=1, float routed_scaling_factor=1.0) -> (Tensor, Tensor)"
    ),
    reference=f"{_MATH}:topk_reference",
    meta=f"{_MATH}:topk_meta",
    examples=f"{_MATH}:topk_examples",
    problem=f"{_HERE}:topk_problem",
    axes=("M", "E", "topk"),
    token_axis="M",
    schemes=frozenset({"none"}),
    dtypes=("float32", "bfloat16", "float16"),
    tolerance={dtype: Tolerance(rtol=1e-5, atol=0.0, why=_SCORES) for dtype in ("float32", "bfloat16", "float16")},
    work=f"{_HERE}:topk_work",
    check=f"{_MATH}:check_topk",
)

OPS = (ROUTER_GEMM, TOPK)


def router_gemm_problem(x: Any, weights: Any, **_: Any) -> dict[str, int]:
    """The shape of one call: x [M, K], w [N, K]."""
    sizes = {"M": x.shape[0], "K": x.shape[1]}
    return {**sizes, "N": weights.shape[0]} if hasattr(weights, "shape") else sizes


def topk_problem(x: Any, weights: Any = None, *, topk: int, **_: Any) -> dict[str, int]:
    """The shape of one call: logits [M, E]."""
    return {"M": rows_of(x), "E": x.shape[-1], "topk": topk}


def router_gemm_work(problem: Problem) -> Work:
    """Both operands read once, the fp32 logits written."""
    size = upper_sizes(problem)
    m, n, k = size["M"], size["N"], size["K"]
    element = ELEMENT_BYTES[problem.dtype or "bfloat16"]
    return Work(flops=2.0 * m * n * k, bytes=float(element * (m * k + n * k) + 4 * m * n))


def topk_work(problem: Problem) -> Work:
    """The logits read, an fp32 weight and an int32 id written for each choice; a score counts as four operations."""
    size = upper_sizes(problem)
    m, experts, chosen = size["M"], size["E"], size["topk"]
    element = ELEMENT_BYTES[problem.dtype or "float32"]
    return Work(flops=float(m * experts * (4 + chosen)), bytes=float(element * m * experts + 8 * m * chosen))
