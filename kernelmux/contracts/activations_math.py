"""The activations in torch: references, the roundings as specified, meta functions, checks, example inputs.

Imported only where torch is about to be used.

An op of ACTIVATIONS has ``<op>_reference`` (fp32, nothing rounded), ``<op>_meta`` and ``check_<op>`` here, all made
from its formula. ``gated_rounded`` and ``unary_rounded`` round where a declared order says so and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BadShape
from .activation_table import ACTIVATIONS
from .fp8_outputs import BLOCK
from .gemm_fp8_math import FP8, LARGEST, LEAST
from .norms import ROUNDINGS
from .rounding import round_to
from .tensor_checks import FLOATS, require_dtype, require_out, require_rows


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its tanh approximation."""
    return F.gelu(x, approximate="tanh")


# Op -> what is done to the gate, or to x where there is no gate.
FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu_and_mul": F.silu,
    "gelu_and_mul": F.gelu,
    "gelu_tanh_and_mul": gelu_tanh,
    "relu2": lambda x: F.relu(x).square(),
}
IS_GATED = {activation.name: activation.gated for activation in ACTIVATIONS}


def __getattr__(name: str) -> Callable[..., Any]:
    """``<op>_reference``, ``<op>_meta`` and ``check_<op>`` of the ops in FORMULAS."""
    for suffix, make in (("_reference", reference_of), ("_meta", meta_of)):
        if (op := name.removesuffix(suffix)) != name and op in FORMULAS:
            return make(op)
    if (op := name.removeprefix("check_")) != name and op in FORMULAS:
        return check_of(op)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# references


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """(gate, up), both fp32 [..., H], of x [..., 2H]."""
    gate, up = x.float().chunk(2, dim=-1)
    return gate, up


def apply(op: str, x: Tensor) -> Tensor:
    """act(gate) * up, or act(x), in the precision of x; [..., H]."""
    if not IS_GATED[op]:
        return FORMULAS[op](x)
    gate, up = x.chunk(2, dim=-1)
    return FORMULAS[op](gate) * up


def reference_of(op: str) -> Callable[[Tensor], Tensor]:
    """x -> act(gate) * up, or act(x), [..., H] fp32."""
    return lambda x: apply(op, x.float())


def block_scale(product: Tensor) -> Tensor:
    """fp32 [..., H/128]: what each block of 128 fp32 products is divided by to lie within e4m3; never 0."""
    return product.unflatten(-1, (-1, BLOCK)).abs().amax(dim=-1).clamp_min(LEAST) / LARGEST


def silu_and_mul_fp8_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return (product / scale, not yet rounded to e4m3, [..., H]; scale [..., H/128]), both fp32."""
    product = apply("silu_and_mul", x.float())
    scale = block_scale(product)
    return (product / scale.repeat_interleave(BLOCK, dim=-1)).clamp(-LARGEST, LARGEST), scale


# the roundings as specified


def gated_rounded(op: str, x: Tensor, order: str) -> Tensor:
    """act(gate) * up, [..., H] of x's dtype, rounded as that order says, fp64 between."""
    if order not in ROUNDINGS:
        raise ValueError(f"{order!r} is no rounding order: {', '.join(ROUNDINGS)}")
    gate, up = x.double().chunk(2, dim=-1)
    active = FORMULAS[op](gate)
    if order == "cast_before_mul":
        active = round_to(active, x.dtype).double()
    return round_to(active * up, x.dtype)


def unary_rounded(op: str, x: Tensor) -> Tensor:
    """act(x), [..., H] of x's dtype, rounded once, fp64 before."""
    return round_to(FORMULAS[op](x.double()), x.dtype)


def silu_and_mul_fp8_rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """(e4m3 [..., H], fp32 scales [..., H/128]): the product in fp32, divided by the scale, rounded once."""
    product = apply("silu_and_mul", x.double()).float()
    scale = block_scale(product)
    values = product.double() / scale.double().repeat_interleave(BLOCK, dim=-1)
    return round_to(values.clamp(-LARGEST, LARGEST), FP8), scale


# meta functions and checks


def meta_of(op: str) -> Callable[[Tensor], Tensor]:
    """x -> [..., H] of x's dtype and device, contiguous, unwritten. Checks x as a call does."""

    def meta(x: Tensor) -> Tensor:
        check_of(op)(x)
        return x.new_empty(out_shape(op, x))

    return meta


def silu_and_mul_fp8_meta(x: Tensor) -> tuple[Tensor, Tensor]:
    """(e4m3 [..., H], fp32 scales [..., H/128]), contiguous, unwritten. Checks x as a call does."""
    check_silu_and_mul_fp8(x)
    hidden = x.shape[-1] // 2
    return (
        x.new_empty((*x.shape[:-1], hidden), dtype=FP8),
        x.new_empty((*x.shape[:-1], hidden // BLOCK), dtype=torch.float32),
    )


def out_shape(op: str, x: Tensor) -> tuple[int, ...]:
    """[..., H] of x [..., 2H] or [..., H]."""
    return (*x.shape[:-1], x.shape[-1] // 2) if IS_GATED[op] else tuple(x.shape)


def check_of(op: str) -> Callable[..., None]:
    """(x, out=None) -> raise BadShape naming what does not fit."""
    check = check_gated if IS_GATED[op] else check_unary
    return lambda x, out=None: check(x, out, op=op)


def check_gated(x: Tensor, out: Tensor | None = None, *, op: str) -> None:
    """Raise BadShape unless x is [..., 2H], bf16, fp16 or fp32, contiguous in its last dimension, and out fits."""
    require_rows(op, "x", x, "2H")
    require_dtype(op, "x", x, FLOATS)
    if x.shape[-1] % 2:
        raise BadShape(f"{op} takes x [..., 2H], gate and up side by side; {list(x.shape)} has an odd last size.")
    require_out(op, "out", out, (*x.shape[:-1], x.shape[-1] // 2), x.dtype, x.device)


def check_unary(x: Tensor, out: Tensor | None = None, *, op: str) -> None:
    """Raise BadShape unless x is [..., H], bf16, fp16 or fp32, contiguous in its last dimension, and out fits."""
    require_rows(op, "x", x)
    require_dtype(op, "x", x, FLOATS)
    require_out(op, "out", out, tuple(x.shape), x.dtype, x.device)


def check_silu_and_mul_fp8(x: Tensor, out: Tensor | None = None, scale_out: Tensor | None = None) -> None:
    """Raise BadShape unless x is as for silu_and_mul with H a multiple of 128, and the outs fit."""
    op = "silu_and_mul_fp8"
    check_gated(x, op=op)
    hidden = x.shape[-1] // 2
    if hidden % BLOCK:
        raise BadShape(f"{op}: H={hidden}, half the last size of x, must be a multiple of {BLOCK}, the scales' block.")
    require_out(op, "out", out, (*x.shape[:-1], hidden), FP8, x.device)
    require_out(op, "scale_out", scale_out, (*x.shape[:-1], hidden // BLOCK), torch.float32, x.device)


# example inputs


def _draw(device: str, dtype: torch.dtype, seed: int, *sizes: int) -> Tensor:
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return (2 * torch.randn(*sizes, generator=generator)).to(dtype).to(device)


def gated_examples(device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Iterator[dict[str, object]]:
    """Small calls that cover the contract: odd sizes, one row, leading dimensions, no row."""
    for seed, shape in enumerate(((5, 128), (2, 3, 90), (1, 5376), (14,), (33, 2), (0, 64))):
        yield dict(x=_draw(device, dtype, seed, *shape))


def unary_examples(device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Iterator[dict[str, object]]:
    """Small calls that cover the contract: odd sizes, one row, leading dimensions, no row."""
    for seed, shape in enumerate(((5, 128), (2, 3, 45), (1, 2688), (7,), (33, 1), (0, 64))):
        yield dict(x=_draw(device, dtype, seed, *shape))


def silu_and_mul_fp8_examples(device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Iterator[dict[str, object]]:
    """Small calls that cover the contract: one block and several, one row, leading dimensions, zeros, no row."""
    for seed, shape in enumerate(((5, 256), (2, 3, 768), (1, 5376), (256,), (0, 256))):
        x = _draw(device, dtype, seed, *shape)
        if seed == 1:
            x[0, 0] = 0
        yield dict(x=x)
