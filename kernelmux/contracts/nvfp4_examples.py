"""Example inputs of the NVFP4 ops, in both layouts of the block scales. Imported where torch is about to be used."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .norms_math import rms_norm_examples as norm_examples
from .norms_math import rms_norm_reference
from .nvfp4 import LAYOUTS
from .nvfp4_math import quantize_examples as linear_examples
from .nvfp4_math import quantize_reference, usual_factor

__all__ = [
    "dequantize_examples", "mm_examples", "quantize_examples", "rms_norm_examples", "silu_and_mul_examples",
]  # fmt: skip

_ROWS = ((5, 128), (2, 3, 96), (1, 2688), (16,), (130, 80), (0, 64))
SWIZZLED = LAYOUTS[1]


def _draw(device: str, dtype: torch.dtype, seed: int, *sizes: int) -> Tensor:
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return (2 * torch.randn(*sizes, generator=generator)).to(dtype).to(device)


def quantize_examples(device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Iterator[dict[str, object]]:
    """Linear ones of mixed sizes, then swizzled scales: padded rows and columns, whole tiles, leading dimensions."""
    yield from linear_examples(device, dtype)
    for seed, shape in enumerate(((3, 80), (128, 64), (2, 65, 48), (0, 32))):
        x = _draw(device, dtype, seed, *shape)
        yield dict(x=x, global_scale=usual_factor(x), layout=SWIZZLED)


def silu_and_mul_examples(device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Iterator[dict[str, object]]:
    """Both layouts: several sizes, one row, leading dimensions, no row."""
    for seed, shape in enumerate(_ROWS):
        x = _draw(device, dtype, seed, *shape[:-1], 2 * shape[-1])
        gate, up = x.float().chunk(2, dim=-1)
        factor = usual_factor(torch.nn.functional.silu(gate) * up)
        yield dict(x=x, global_scale=factor, layout=LAYOUTS[seed % 2])


def rms_norm_examples(device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Iterator[dict[str, object]]:
    """As for rms_norm where rows are whole blocks, in both layouts."""
    for seed, call in enumerate(norm_examples(device, dtype)):
        x = call["x"]
        assert isinstance(x, Tensor)
        if x.shape[-1] % 16:
            continue
        factor = usual_factor(rms_norm_reference(**call))  # type: ignore[arg-type]
        given = dict(eps=call["eps"], weight_bias=call.get("weight_bias", 0.0), layout=LAYOUTS[seed % 2])
        yield dict(x=x, weight=call["weight"], global_scale=factor, **given)


def dequantize_examples(device: str = "cpu", dtype: torch.dtype = torch.uint8) -> Iterator[dict[str, object]]:
    """Both layouts, both output types."""
    for seed, shape in enumerate(_ROWS):
        x = _draw(device, torch.float32, seed, *shape)
        factor, layout = usual_factor(x), LAYOUTS[seed % 2]
        packed, scale = quantize_reference(x, factor, layout)
        out = {"out_dtype": torch.bfloat16} if seed in (2, 3) else {}
        yield dict(x=packed, scale=scale, global_scale=factor, layout=layout, **out)


def mm_examples(device: str = "cpu", dtype: torch.dtype = torch.uint8) -> Iterator[dict[str, object]]:
    """Both layouts: one row, sizes that are and are not whole tiles of scales, another output type, no row."""
    for seed, (m, n, k) in enumerate(((5, 32, 128), (1, 64, 96), (130, 48, 256), (128, 128, 64), (0, 32, 64))):
        layout = LAYOUTS[1 - seed % 2]
        a, b = _draw(device, torch.float32, seed, m, k), _draw(device, torch.float32, seed + 50, n, k)
        one, two = usual_factor(a), usual_factor(b)
        (left, left_scale), (right, right_scale) = (quantize_reference(v, g, layout) for v, g in ((a, one), (b, two)))
        out = {"out_dtype": torch.float32} if seed == 2 else {}
        yield dict(a=left, a_sf=left_scale, b=right, b_sf=right_scale, alpha=one * two, layout=layout, **out)
