"""The NVFP4 quantize kernels, interpreted: the same bytes as the reference."""

import numpy as np
import pytest
import torch

from kernelmux.backends.flashinfer.layouts import swizzle_128x4
from kernelmux.backends.triton import nvfp4_quantize
from kernelmux.contracts.nvfp4 import QUANTIZE
from kernelmux.contracts.nvfp4_math import quantize_reference
from kernelmux.registry.lazy import load


@pytest.fixture(autouse=True)
def _fused_multiply_add(monkeypatch):
    """The interpreter rounds the product of a fused multiply-add; a GPU does not."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def fma(self, x, y, z):
        with np.errstate(all="ignore"):
            exact = x.data.astype(np.longdouble) * y.data.astype(np.longdouble) + z.data.astype(np.longdouble)
            return TensorHandle(exact.astype(x.data.dtype), x.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_fma", fma)


def same(got, want):
    return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(got, want, strict=True))


# The last two leave the range in which the fast quotient is exact.
FACTORS = (1.0, 2.0**-9, 0.0123, 3.3e-4, 77.0, 1e-20, 1e-30, 3e37)


def every_half():
    """All fp16 bit patterns, each in a block of values near its own size and one of mixed sizes."""
    bits = torch.arange(1 << 16).to(torch.int32)
    mixed = bits[torch.randperm(1 << 16, generator=torch.Generator().manual_seed(0))]
    return torch.cat((bits, mixed)).to(torch.uint16).view(torch.float16).view(-1, 1024)


@pytest.mark.parametrize("factor", FACTORS)
def test_every_fp16_value_has_the_references_bytes(factor):
    x, scale = every_half(), torch.tensor([factor])
    x = x if factor in (0.0123, 1e-30) else x[FACTORS.index(factor) :: 5]
    assert same(nvfp4_quantize.quantize(x, global_scale=scale), quantize_reference(x, scale))


@pytest.mark.parametrize("factor", FACTORS)
def test_fp32_values_at_and_beside_every_boundary(factor):
    # Values t * unit and their neighbours for every threshold t of e2m1, under every scale that amax can give.
    scale = torch.tensor([factor])
    unit = torch.arange(1, 127, dtype=torch.uint8).view(torch.float8_e4m3fn).float() * factor
    at = torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]) * unit[:, None]
    x = torch.cat((torch.nextafter(at, at + torch.inf), torch.nextafter(at, -at), -at[:, 1:], 6.0 * unit[:, None]), 1)
    x = torch.nn.functional.pad(x, (0, 32 - x.shape[1])).clamp(-3e38, 3e38)
    assert same(nvfp4_quantize.quantize(x.view(-1, 64), global_scale=scale), quantize_reference(x.view(-1, 64), scale))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_every_example_of_the_contract(dtype):
    for call in load(QUANTIZE.examples)(dtype=dtype):
        assert same(nvfp4_quantize.quantize(**call), quantize_reference(**call))


@pytest.mark.parametrize("m,k", [(1, 16), (3, 80), (130, 48), (257, 1088)])
def test_swizzled_scales_lie_where_tensor_cores_look_and_padding_is_zero(m, k):
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(m)).half()
    values, scales = nvfp4_quantize.quantize(x, global_scale=torch.tensor(0.01), layout="swizzled_128x4")
    want_values, want = quantize_reference(x, torch.tensor(0.01))
    assert torch.equal(values, want_values)
    assert torch.equal(scales.view(torch.uint8), swizzle_128x4(want).view(torch.uint8))


def test_results_go_where_they_are_told():
    x, factor = torch.randn(6, 96, generator=torch.Generator().manual_seed(1)).half().view(2, 3, 96), torch.tensor(0.01)
    want = quantize_reference(x, factor)
    values = torch.zeros(2, 3, 64, dtype=torch.uint8)[..., :48]
    scales = torch.zeros(2, 3, 32, dtype=torch.uint8)[..., :6].view(torch.float8_e4m3fn)
    got = nvfp4_quantize.quantize(x, global_scale=factor, out=values, scale_out=scales)
    assert got[0] is values and got[1] is scales and same(got, want)
    wide = torch.randn(6, 200).half()[:, :96].copy_(x.view(6, 96))
    assert same(nvfp4_quantize.quantize(wide, global_scale=factor), [part.flatten(0, 1) for part in want])


def close(got, want, factor):
    """As what is quantized is a sum or an exponential, a value next to a boundary may fall on its other side."""
    from kernelmux.contracts.nvfp4_math import dequantize

    a, b = dequantize(*got, factor), dequantize(*want, factor)
    return float((a - b).norm() / b.norm()) <= 5e-3 and float((got[1].float() != want[1].float()).float().mean()) < 0.03


def test_an_activation_and_a_norm_quantize_what_they_compute_in_fp32():
    generator = torch.Generator().manual_seed(5)
    x, weight, factor = (
        torch.randn(7, 192, generator=generator).half(),
        torch.rand(192, generator=generator).half(),
        torch.tensor([2e-3]),
    )
    gate, up = x.float().chunk(2, dim=-1)
    want = quantize_reference(torch.nn.functional.silu(gate) * up, factor)
    assert close(nvfp4_quantize.silu_and_mul(x, global_scale=factor), want, factor)
    normed = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-5) * (weight.float() + 1.0)
    got = nvfp4_quantize.rms_norm(x, weight, global_scale=factor, eps=1e-5, weight_bias=1.0)
    assert close(got, quantize_reference(normed, factor), factor)


def test_arguments_that_do_not_fit_are_named():
    x, factor = torch.zeros(2, 64).half(), torch.tensor(1.0)
    with pytest.raises(Exception, match="layout"):
        nvfp4_quantize.quantize(x, global_scale=factor, layout="8x4")
    with pytest.raises(Exception, match="16"):
        nvfp4_quantize.quantize(x[:, :40], global_scale=factor)
    with pytest.raises(Exception, match="weight"):
        nvfp4_quantize.rms_norm(x, torch.ones(32).half(), global_scale=factor)
    values, scales = nvfp4_quantize.quantize(x[:0], global_scale=factor)
    assert values.shape == (0, 32) and scales.shape == (0, 4)
