"""The activations in torch: references, meta functions, checks, example inputs.

Imported only where torch is about to be used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BadShape
from .tensor_checks import FLOATS, require_dtype, require_rows


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its tanh approximation."""
    return F.gelu(x, approximate="tanh")


ACT_OF_OP: dict[str, Callable[[Tensor], Tensor]] = {
    "silu_and_mul": F.silu,
    "gelu_and_mul": F.gelu,
    "gelu_tanh_and_mul": gelu_tanh,
}


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """(gate, up), both fp32 [..., H], of x [..., 2H]."""
    gate, up = x.float().chunk(2, dim=-1)
    return gate, up


def silu_and_mul_reference(x: Tensor) -> Tensor:
    """Return silu(gate) * up, [..., H] fp32, of x [..., 2H]."""
    gate, up = halves(x)
    return F.silu(gate) * up


def gelu_and_mul_reference(x: Tensor) -> Tensor:
    """Return gelu(gate) * up, [..., H] fp32, of x [..., 2H]."""
    gate, up = halves(x)
    return F.gelu(gate) * up


def gelu_tanh_and_mul_reference(x: Tensor) -> Tensor:
    """Return the tanh-approximated gelu(gate) * up, [..., H] fp32, of x [..., 2H]."""
    gate, up = halves(x)
    return gelu_tanh(gate) * up


def relu2_reference(x: Tensor) -> Tensor:
    """Return max(x, 0)^2, [..., H] fp32."""
    return F.relu(x.float()).square()


def gated_meta(x: Tensor) -> Tensor:
    """[..., H] of x's dtype and device for x [..., 2H], unwritten. Checks x as a call does."""
    check_gated(x)
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


def unary_meta(x: Tensor) -> Tensor:
    """Like x, contiguous, unwritten. Checks x as a call does."""
    check_unary(x)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def check_gated(x: Tensor, *, op: str = "the gated activation") -> None:
    """Raise BadShape unless x is [..., 2H], bf16, fp16 or fp32, contiguous in its last dimension."""
    require_rows(op, "x", x, "2H")
    require_dtype(op, "x", x, FLOATS)
    if x.shape[-1] % 2:
        raise BadShape(f"{op} takes x [..., 2H], gate and up side by side; {list(x.shape)} has an odd last size.")


def check_unary(x: Tensor, *, op: str = "relu2") -> None:
    """Raise BadShape unless x is [..., H], bf16, fp16 or fp32, contiguous in its last dimension."""
    require_rows(op, "x", x)
    require_dtype(op, "x", x, FLOATS)


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
