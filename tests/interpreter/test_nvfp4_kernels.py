"""The weight-only NVFP4 kernels, interpreted, their inline PTX included: numbers against the reference."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from kernelmux.backends.triton import nvfp4_asm, nvfp4_planes, nvfp4_weight_only
from kernelmux.backends.triton.nvfp4_rules import Nvfp4Tile
from kernelmux.contracts.nvfp4 import GEMM
from kernelmux.contracts.nvfp4_math import dequantize, gemm_reference, quantize_reference
from tests.interpreter import inline_ptx

LIMIT = GEMM.tolerance["float16"].rtol


@pytest.fixture(autouse=True)
def _inline_ptx(monkeypatch):
    inline_ptx.install(monkeypatch)


def draw(m, n, k, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(m, k, generator=generator).half()
    spread = torch.exp(torch.randn(n, k // 16, generator=generator)).repeat_interleave(16, 1)
    weight = torch.randn(n, k, generator=generator) * spread
    factor = weight.abs().amax() / (448 * 6)
    w, w_scale = quantize_reference(weight * k**-0.5, factor)
    return x, dict(w=w, w_scale=w_scale, w_global_scale=factor.reshape(1))


def worst_row(got, want):
    return float(((got.float() - want).norm(dim=1) / want.norm(dim=1).clamp_min(1e-12)).max())


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_every_code_under_every_scale_decodes_exactly_in_every_place(dtype):
    codes = torch.arange(16, dtype=torch.uint8)
    for bits in range(127):
        place = torch.randint(0, 16, (4, 64), generator=torch.Generator().manual_seed(bits), dtype=torch.uint8)
        place[:, :16] = codes  # every code in every plane
        place[:, 17:33] = codes  # and in the other half of a register
        scales = torch.full((4, 4), bits, dtype=torch.uint8)
        scales[1] = (bits + 31) % 127
        scales[2] = (bits + 5) % 127
        words = nvfp4_planes.pack_words(place * (scales != 0).repeat_interleave(16, 1)).numpy().view(np.uint32)
        packed = nvfp4_planes.pack_scales(scales).numpy().view(np.uint32)
        for plane in range(4):
            text = (nvfp4_asm.BF16 if dtype == "bf16" else nvfp4_asm.FP16)[plane]
            pairs = inline_ptx.run(text, words, np.repeat(packed, 8))
            halves = np.stack((pairs & 0xFFFF, pairs >> 16), -1).reshape(-1).astype(np.uint32)
            got = inline_ptx._bf16(halves) if dtype == "bf16" else inline_ptx._fp16(halves)
            scale = scales[plane].view(torch.float8_e4m3fn).float().repeat_interleave(16)
            table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
            want = table[(place[plane] & 7).long()] * torch.where(place[plane] > 7, -1.0, 1.0) * scale
            assert np.array_equal(got * 128, want.numpy()), (bits, plane)


@pytest.mark.parametrize("block_j", [16, 32, 64])
@pytest.mark.parametrize("m,n,k,split", [(5, 80, 256, 1), (17, 64, 512, 2), (3, 40, 272, 1), (40, 130, 768, 3)])
def test_the_product_matches_the_reference(m, n, k, split, block_j):
    x, call = draw(m, n, k)
    weights = nvfp4_planes.prepare(**call)
    tile = Nvfp4Tile(64, 16 if m <= 16 else 64, block_j, 8 if split == 3 else 0, split, 4, 2)
    got = nvfp4_weight_only.run(x, weights, config=tile)
    assert got.shape == (m, n) and got.dtype == torch.float16
    assert worst_row(got, gemm_reference(x, **call)) <= LIMIT / 8


def test_signed_zero_and_nan_scales_are_kept():
    x, call = draw(3, 64, 256)
    scale = call["w_scale"].view(torch.uint8).clone()
    scale[::2, 3] |= 0x80
    scale[5, :] = 0
    call["w_scale"] = scale.view(torch.float8_e4m3fn)
    tile = Nvfp4Tile(64, 16, 64, 0, 1, 4, 2)
    got = nvfp4_weight_only.run(x, nvfp4_planes.prepare(**call), config=tile)
    assert worst_row(got, gemm_reference(x, **call)) <= LIMIT / 8
    scale[7, 2] = 0x7F
    got = nvfp4_weight_only.run(x, nvfp4_planes.prepare(**call), config=tile)
    assert got[:, 7].isnan().all() and not got[:, :7].isnan().any() and not got[:, 8:].isnan().any()


def test_a_decoded_weight_is_the_contracts():
    _, call = draw(1, 100, 512)
    weights = nvfp4_planes.prepare(**call)
    out = torch.full((36, 512), float("nan"), dtype=torch.float16)
    nvfp4_weight_only.decode_rows(weights, out, 64)
    assert torch.equal(
        out, dequantize(packed=call["w"], scale=call["w_scale"], global_scale=call["w_global_scale"])[64:].half()
    )


def test_rows_that_kernels_cannot_read_in_16_bytes_are_copied_and_other_shapes_refused():
    x, call = draw(4, 64, 256)
    weights = nvfp4_planes.prepare(**call)
    tile = replace(Nvfp4Tile(64, 16, 64, 0, 1, 4, 2))
    wide = torch.empty(4, 257, dtype=torch.float16)
    wide[:, 1:] = x
    want = nvfp4_weight_only.run(x, weights, config=tile)
    assert torch.equal(nvfp4_weight_only.run(wide[:, 1:], weights, config=tile), want)
    assert torch.equal(nvfp4_weight_only.run(x.view(2, 2, 256), weights, config=tile), want.view(2, 2, 64))
    assert nvfp4_weight_only.run(x[:0], weights, config=tile).shape == (0, 64)
    with pytest.raises(Exception, match="256"):
        nvfp4_weight_only.run(x[:, :128], weights, config=tile)
