"""Where a 16-bit result was rounded, told from its bits: exact rounding, distances, what a test asks for.

Imported only where torch is about to be used.
"""

from __future__ import annotations

import torch
from torch import Tensor

# A kernel is on the side it declares when this share of its elements equals the specification's to the bit, and the
# sum of its distances to that specification is below that to the other. fp32 holds both orders in 4 units.
EXACT_SHARE = {torch.bfloat16: 0.999, torch.float16: 0.995, torch.float8_e4m3fn: 0.995}
FP32_ULPS = 4

_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
_BITS[torch.float8_e4m3fn] = torch.int8


def round_to(values: Tensor, dtype: torch.dtype) -> Tensor:
    """fp64 values in that dtype, nearest even, rounded once; a cast by torch goes through fp32 and may round twice."""
    if dtype in (torch.float32, torch.float64):
        return values.to(dtype)
    single = values.float()
    # What fp32 rounded away decides only where fp32 lies between two neighbours: an odd last bit keeps it from there.
    bits = single.view(torch.int32)
    exact = single.double() == values
    away = (single.double().abs() > values.abs()).int()
    odd = torch.where(exact | ~single.isfinite(), bits, (bits - away) | 1)
    return odd.view(torch.float32).to(dtype)


def ulps(got: Tensor, want: Tensor) -> Tensor:
    """How many representable values lie between the two, of one dtype: 0 for equal ones and for +0 and -0."""
    if got.dtype != want.dtype:
        raise TypeError(f"ulps of {got.dtype} against {want.dtype}")
    places = []
    for tensor in (got, want):
        bits = tensor.contiguous().view(_BITS[tensor.dtype]).long()
        least = torch.iinfo(_BITS[tensor.dtype]).min
        places.append(torch.where(bits < 0, least - bits, bits))
    return (places[0] - places[1]).abs()


def exact_share(got: Tensor, want: Tensor) -> float:
    """Which share of the elements is the same value."""
    return float((ulps(got, want) == 0).double().mean()) if want.numel() else 1.0


def total_distance(got: Tensor, want: Tensor) -> float:
    """The sum of all distances, in the values' own unit."""
    return float((got.double() - want.double()).abs().sum())
