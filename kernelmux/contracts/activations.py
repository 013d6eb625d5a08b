"""silu_and_mul, gelu_and_mul, gelu_tanh_and_mul, relu2: the activations between the two GEMMs of an MLP.

The gated ones take gate and up as the two halves of the last dimension, gate first. Two roundings are allowed, and
every kernel declares which one it does: ``cast_before_mul`` rounds the activated gate to x's dtype before the product
(Hugging Face's ``act(gate) * up``), ``fp32_mul`` forms the product in fp32 and rounds once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..registry import Op, Tolerance, Work
from .sizes import ELEMENT_BYTES, rows_of, upper_sizes

if TYPE_CHECKING:
    from ..registry import Problem

_WHY = "two roundings at most (the activated gate, the product), each half a unit in the last place, "
_CANCEL = "; 1 + erf and 1 + tanh of a very negative gate keep 6e-8 at best, times gate and up"
TOLERANCE = {
    "bfloat16": Tolerance(rtol=8e-3, atol=1e-6, why=f"{_WHY}2**-8 of a value with 8 significant bits{_CANCEL}"),
    "float16": Tolerance(rtol=1e-3, atol=1e-6, why=f"{_WHY}2**-11 of a value with 11 significant bits{_CANCEL}"),
    "float32": Tolerance(rtol=1e-5, atol=1e-6, why=f"fp32 throughout; exp differs in the last places{_CANCEL}"),
}
_HERE, _MATH = "kernelmux.contracts.activations", "kernelmux.contracts.activations_math"

GATED = {
    "silu_and_mul": "silu(gate)",
    "gelu_and_mul": "gelu(gate)",
    "gelu_tanh_and_mul": "tanh-approximated gelu(gate)",
}


def _op(name: str, summary: str, gated: bool) -> Op:
    return Op(
        name=name,
        summary=summary,
        schema=f"{name}(Tensor x) -> Tensor",
        reference=f"{_MATH}:{name}_reference",
        meta=f"{_MATH}:{'gated' if gated else 'unary'}_meta",
        examples=f"{_MATH}:{'gated' if gated else 'unary'}_examples",
        problem=f"{_HERE}:{'gated' if gated else 'unary'}_problem",
        axes=("M", "H"),
        token_axis="M",
        schemes=frozenset({"none"}),
        dtypes=("bfloat16", "float16", "float32"),
        tolerance=TOLERANCE,
        work=f"{_HERE}:{'gated' if gated else 'unary'}_work",
        check=f"{_MATH}:check_{'gated' if gated else 'unary'}",
    )


OPS = (
    *(_op(name, f"{words} * up, for x [..., 2H] = [gate, up]", True) for name, words in GATED.items()),
    _op("relu2", "max(x, 0)^2, for x [..., H]", False),
)


def gated_problem(x: Any, weights: Any = None, **_: Any) -> dict[str, int]:
    """The shape of one call: x [..., 2H], M rows of it."""
    return {"M": rows_of(x), "H": x.shape[-1] // 2}


def unary_problem(x: Any, weights: Any = None, **_: Any) -> dict[str, int]:
    """The shape of one call: x [..., H], M rows of it."""
    return {"M": rows_of(x), "H": x.shape[-1]}


def gated_work(problem: Problem) -> Work:
    """Both halves read, the product written; the activation counts as four operations, the product as one."""
    return _work(problem, tensors=3, flops=5)


def unary_work(problem: Problem) -> Work:
    """x read, the output written."""
    return _work(problem, tensors=2, flops=2)


def _work(problem: Problem, *, tensors: int, flops: int) -> Work:
    size = upper_sizes(problem)
    elements = size["M"] * size["H"]
    return Work(
        flops=float(flops * elements), bytes=float(ELEMENT_BYTES[problem.dtype or "bfloat16"] * tensors * elements)
    )
