"""The native NVFP4 GEMM, interpreted. The interpreter has no ``dot_scaled``: what it means is written down here."""

import numpy as np
import pytest
import torch

from kernelmux.backends.triton import nvfp4_native, nvfp4_quantize
from kernelmux.backends.triton.nvfp4_native_rules import NativeTile
from kernelmux.contracts.nvfp4_math import dequantize, gemm_reference, quantize_reference

_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def _operand(packed, scales):
    """fp32 [rows, K] of bytes [rows, K/2] and e4m3 bits [rows, K/16]."""
    codes = np.stack((packed & 15, packed >> 4), -1).reshape(packed.shape[0], -1)
    values = torch.from_numpy(np.ascontiguousarray(scales).view(np.uint8)).view(torch.float8_e4m3fn).float().numpy()
    return _E2M1[codes] * np.repeat(values, 16, axis=1)


@pytest.fixture(autouse=True)
def _dot_scaled(monkeypatch):
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    def dot_scaled(left, left_scale, left_format, right, right_scale, right_format, acc):
        assert left_format == right_format == "e2m1"
        a = _operand(left.handle.data, left_scale.handle.data)
        b = _operand(right.handle.data.T, right_scale.handle.data)
        return tl.tensor(TensorHandle(acc.handle.data + a @ b.T, tl.float32), acc.type)

    monkeypatch.setattr(tl, "dot_scaled", dot_scaled)


def draw(m, n, k, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(m, k, generator=generator) * torch.exp(torch.randn(m, 1, generator=generator))
    spread = torch.exp(torch.randn(n, k // 16, generator=generator)).repeat_interleave(16, 1)
    weight = torch.randn(n, k, generator=generator) * spread * k**-0.5
    factor, given = weight.abs().amax() / (448 * 6), (x.abs().amax() / (448 * 6)).reshape(1)
    w, w_scale = quantize_reference(weight, factor)
    return x.half(), dict(w=w, w_scale=w_scale, w_global_scale=factor.reshape(1), input_scale=given)


@pytest.mark.parametrize("use_tma", [False, True])
@pytest.mark.parametrize("m,n,k,split", [(5, 130, 256, 1), (129, 128, 320, 1), (3, 200, 512, 2)])
def test_the_product_of_the_quantized_operands_is_exact(m, n, k, split, use_tma):
    x, call = draw(m, n, k)
    tile = NativeTile(128, 128, 128, 8, split, 4, 2, use_tma)
    got = nvfp4_native.run(x, nvfp4_native.prepare(**call), config=tile, out_dtype=torch.float32)
    want = gemm_reference(x, **call)
    assert got.shape == (m, n)
    assert float((got - want).norm() / want.norm()) <= 1e-4


def test_operands_given_packed_multiply_too_in_either_layout():
    x, call = draw(20, 128, 256)
    weights = nvfp4_native.prepare(**call)
    values, scales = nvfp4_quantize.quantize(x, global_scale=call["input_scale"], layout="swizzled_128x4")
    how = dict(b=weights.w, alpha=weights.alpha, config=NativeTile(128, 128, 128, 8, 1, 4, 2, False))
    got = nvfp4_native.mm(values, a_sf=scales, b_sf=weights.w_scale, out_dtype=torch.float32, **how)
    left = dequantize(*quantize_reference(x, call["input_scale"]), call["input_scale"])
    want = left @ dequantize(call["w"], call["w_scale"], call["w_global_scale"]).T
    assert float((got - want).norm() / want.norm()) <= 1e-5
    linear = nvfp4_quantize.quantize(x, global_scale=call["input_scale"])[1]
    both = dict(a_sf=linear, b_sf=call["w_scale"], layout="linear", out_dtype=torch.float32)
    assert torch.equal(nvfp4_native.mm(values, **both, **how), got)
    with pytest.raises(Exception, match="a_sf must be"):
        nvfp4_native.mm(values, a_sf=linear, b_sf=weights.w_scale, **how)


def test_what_cannot_be_is_refused():
    _, call = draw(1, 64, 256)
    with pytest.raises(Exception, match="input_scale"):
        nvfp4_native.prepare(**{**call, "input_scale": None})
    _, odd = draw(1, 64, 272)
    with pytest.raises(Exception, match="multiple of 32"):
        nvfp4_native.prepare(**odd)
