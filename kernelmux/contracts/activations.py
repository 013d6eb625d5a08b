"""The activations between the two GEMMs of an MLP, and silu_and_mul_fp8.

The gated ones take gate and up as the two halves of the last dimension, gate first. Two roundings are allowed, and
every kernel declares which one it does: ``cast_before_mul`` rounds the activated gate to x's dtype before the product
(Hugging Face's ``act(gate) * up``), ``fp32_mul`` forms the product in fp32 and rounds once.

To add one: its line in activation_table.py, its row in registry/discovery.py, its formula in the table of each backend
that runs it (activations_math holds the reference's).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..registry import Op, Tolerance, Work
from .activation_table import ACTIVATIONS, Activation
from .fp8_outputs import BLOCK
from .fp8_outputs import TOLERANCE as FP8_TOLERANCE
from .sizes import ELEMENT_BYTES, rows_of, upper_sizes

if TYPE_CHECKING:
    from ..registry import Problem


DTYPES = ("bfloat16", "float16", "float32")
_WHY = "two roundings at most (the activated gate, the product), each half a unit in the last place, "
_CANCEL = "; 1 + erf and 1 + tanh of a very negative gate keep 6e-8 at best, times gate and up"
TOLERANCE = {
    "bfloat16": Tolerance(rtol=8e-3, atol=1e-6, why=f"{_WHY}2**-8 of a value with 8 significant bits{_CANCEL}"),
    "float16": Tolerance(rtol=1e-3, atol=1e-6, why=f"{_WHY}2**-11 of a value with 11 significant bits{_CANCEL}"),
    "float32": Tolerance(rtol=1e-5, atol=1e-6, why=f"fp32 throughout; exp differs in the last places{_CANCEL}"),
}
_HERE, _MATH = "kernelmux.contracts.activations", "kernelmux.contracts.activations_math"


def _op(activation: Activation) -> Op:
    name, kind = activation.name, "gated" if activation.gated else "unary"
    return Op(
        name=name,
        summary=f"{activation.formula}, for x [..., {'2H] = [gate, up]' if activation.gated else 'H]'}",
        schema=f"{name}(Tensor x) -> Tensor",
        reference=f"{_MATH}:{name}_reference",
        meta=f"{_MATH}:{name}_meta",
        examples=f"{_MATH}:{kind}_examples",
        problem=f"{_HERE}:{kind}_problem",
        axes=("M", "H"),
        token_axis="M",
        schemes=frozenset({"none"}),
        dtypes=DTYPES,
        tolerance=TOLERANCE,
        work=f"{_HERE}:{kind}_work",
        check=f"{_MATH}:check_{name}",
        outs=("out",),
        inplace=() if activation.gated else (("out", "x"),),
    )


SILU_AND_MUL_FP8 = Op(
    name="silu_and_mul_fp8",
    summary=f"silu(gate) * up to e4m3 with an fp32 scale every {BLOCK} values, for x [..., 2H] = [gate, up]",
    schema="silu_and_mul_fp8(Tensor x) -> (Tensor, Tensor)",
    reference=f"{_MATH}:silu_and_mul_fp8_reference",
    meta=f"{_MATH}:silu_and_mul_fp8_meta",
    examples=f"{_MATH}:silu_and_mul_fp8_examples",
    problem=f"{_HERE}:gated_problem",
    axes=("M", "H"),
    token_axis="M",
    schemes=frozenset({"none"}),
    dtypes=DTYPES,
    tolerance=dict.fromkeys(DTYPES, FP8_TOLERANCE),
    work=f"{_HERE}:silu_and_mul_fp8_work",
    check=f"{_MATH}:check_silu_and_mul_fp8",
    outs=("out", "scale_out"),
)

OPS = (*map(_op, ACTIVATIONS), SILU_AND_MUL_FP8)


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


def silu_and_mul_fp8_work(problem: Problem) -> Work:
    """Both halves read, one byte a value and one scale a block written; largest, divide besides the product."""
    size = upper_sizes(problem)
    read = _work(problem, tensors=2, flops=7)
    return Work(flops=read.flops, bytes=read.bytes + size["M"] * (size["H"] + 4 * (size["H"] / BLOCK)))


def _work(problem: Problem, *, tensors: int, flops: int) -> Work:
    size = upper_sizes(problem)
    elements = size["M"] * size["H"]
    return Work(
        flops=float(flops * elements), bytes=float(ELEMENT_BYTES[problem.dtype or "bfloat16"] * tensors * elements)
    )
