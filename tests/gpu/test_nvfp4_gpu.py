"""The NVFP4 kernels on a live GPU: weight-only GEMM at every kind of launch, capture, repeatability, decoding."""

import pytest

torch = pytest.importorskip("torch")

from kernelmux.backends.triton import nvfp4_planes, nvfp4_weight_only  # noqa: E402
from kernelmux.backends.triton.nvfp4_rules import DECODE, Nvfp4Tile, candidates  # noqa: E402
from kernelmux.contracts.nvfp4 import GEMM  # noqa: E402
from kernelmux.contracts.nvfp4_math import dequantize, gemm_reference, quantize_reference  # noqa: E402
from kernelmux.registry.lazy import load  # noqa: E402

pytestmark = pytest.mark.gpu

LIMIT = {torch.bfloat16: 4e-3, torch.float16: 6e-4}  # the rounding of the output, and an fp32 sum in another order


def draw(m, n, k, dtype=torch.bfloat16, seed=0):
    generator = torch.Generator(device="cuda").manual_seed(seed)
    x = torch.randn(m, k, device="cuda", generator=generator).to(dtype)
    spread = torch.exp(torch.randn(n, k // 16, device="cuda", generator=generator)).repeat_interleave(16, 1)
    weight = torch.randn(n, k, device="cuda", generator=generator) * spread * k**-0.5
    factor = (weight.abs().amax() / (448 * 6)).reshape(1)
    w, w_scale = quantize_reference(weight, factor)
    return x, dict(w=w, w_scale=w_scale, w_global_scale=factor)


def exact(x, call):
    weight = dequantize(call["w"], call["w_scale"], call["w_global_scale"])
    return (x.double() @ weight.double().T).float()


def worst_row(got, want):
    return float(((got.float() - want).norm(dim=1) / want.norm(dim=1).clamp_min(1e-12)).max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("m,n,k", [(1, 192, 512), (9, 320, 1024), (33, 136, 784), (130, 520, 1280), (700, 1024, 768)])
def test_the_default_launch_matches(m, n, k, dtype):
    x, call = draw(m, n, k, dtype)
    got = nvfp4_weight_only.run(x, nvfp4_planes.prepare(**call))
    assert got.dtype == dtype and worst_row(got, exact(x, call)) <= LIMIT[dtype]


@pytest.mark.parametrize("m", [1, 16, 17, 64, 100, 512])
def test_candidates_match_and_repeat_to_the_bit(m):
    n, k = 1184, 2048
    x, call = draw(m, n, k)
    weights, want = nvfp4_planes.prepare(**call), exact(x, call)
    tiles = [*candidates(m, 8192, k, torch.cuda.get_device_capability()), DECODE]
    for tile in tiles[:: max(1, len(tiles) // 12)]:
        got = nvfp4_weight_only.run(x, weights, config=tile)
        # a decoded weight is rounded to bf16 once more
        assert worst_row(got, want) <= LIMIT[torch.bfloat16] * (2 if tile.kind == "decode" else 1), tile.short()
        again = nvfp4_weight_only.run(x, weights, config=tile)
        assert torch.equal(got, again), tile.short()


def test_every_example_of_the_contract_matches():
    for call in load(GEMM.examples)(device="cuda"):
        x, given = call.pop("x"), call.pop("input_scale")
        if given is None and x.numel():
            got = nvfp4_weight_only.run(x, nvfp4_planes.prepare(**call))
            want = gemm_reference(x, **call)
            assert got.shape == want.shape
            assert worst_row(got.flatten(0, -2), want.flatten(0, -2)) <= LIMIT[torch.bfloat16]


def test_a_captured_call_replays_on_new_values():
    x, call = draw(8, 256, 1024)
    weights = nvfp4_planes.prepare(**call)
    tile = Nvfp4Tile(split=2, pdl=torch.cuda.get_device_capability() == (9, 0))
    nvfp4_weight_only.run(x, weights, config=tile)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = nvfp4_weight_only.run(x, weights, config=tile)
    x.copy_(torch.randn_like(x))
    graph.replay()
    torch.cuda.synchronize()
    assert worst_row(out, exact(x, call)) <= LIMIT[torch.bfloat16]


def test_values_of_every_size_survive():
    x, call = draw(4, 128, 512)
    bits = torch.arange(128 * 32, device="cuda").remainder(127).to(torch.uint8).view(128, 32)
    call["w_scale"] = bits.view(torch.float8_e4m3fn)
    got = nvfp4_weight_only.run(x, nvfp4_planes.prepare(**call), config=Nvfp4Tile())
    assert worst_row(got, exact(x, call)) <= LIMIT[torch.bfloat16]
    weights = nvfp4_planes.prepare(**call)
    out = torch.empty(128, 512, dtype=torch.bfloat16, device="cuda")
    want = dequantize(call["w"], call["w_scale"], call["w_global_scale"]).bfloat16()
    assert torch.equal(nvfp4_weight_only.decode_rows(weights, out), want)
    assert torch.equal(nvfp4_weight_only.decode_rows(weights, torch.empty_like(out[64:]), 64), want[64:])


def test_prepared_weights_are_small():
    _, call = draw(1, 4096, 4096)
    weights = nvfp4_planes.prepare(**call)
    assert sum(t.numel() * t.element_size() for t in weights[:3]) <= 0.30 * 2 * 4096 * 4096


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("m", [1, 3, 8, 11, 16, 32])
def test_the_cuda_kernel_for_few_tokens_matches_at_every_launch(m, dtype):
    gemv = pytest.importorskip("kernelmux.backends.jit_cuda.nvfp4_gemv")
    pytest.importorskip("cupy_backends", reason="NVRTC comes with CuPy")
    capability = torch.cuda.get_device_capability()
    for n, k in ((1192, 2048), (320, 784)):
        x, call = draw(m, n, k, dtype)
        weights, want = nvfp4_planes.prepare(**call), exact(x, call)
        wide = torch.zeros(m, k + 64, dtype=dtype, device="cuda")[:, :k].copy_(x)
        tiles = [None, *gemv.candidates(m, 14336, k, capability)]
        assert len(tiles) > 4 or capability < (9, 0)
        for tile in tiles if dtype == torch.bfloat16 else tiles[::4]:
            got = gemv.run(x, weights, config=tile)
            assert worst_row(got, want) <= LIMIT[dtype], tile
            assert torch.equal(got, gemv.run(wide, weights, config=tile)), tile
        assert worst_row(gemv.run(x, weights, out_dtype=torch.float32), want) <= 1e-5
    assert gemv.run(x[:0], weights).shape == (0, n)


def every_bf16():
    """All bf16 bit patterns, among values of their own size and, in a second copy, among others."""
    bits = torch.arange(1 << 16, device="cuda", dtype=torch.int32)
    mixed = bits[torch.randperm(1 << 16, device="cuda", generator=torch.Generator(device="cuda").manual_seed(0))]
    return torch.cat((bits, mixed)).to(torch.int16).view(torch.bfloat16).view(-1, 1024)


def test_quantize_has_the_references_bytes_for_every_bf16_under_many_global_scales():
    from kernelmux.backends.triton import nvfp4_quantize

    x = every_bf16()
    generator = torch.Generator().manual_seed(0)
    factors = [2.0**e for e in range(-126, 120, 3)] + torch.exp(20 * torch.randn(200, generator=generator)).tolist()
    for factor in factors:
        if 0.0 < factor < 3e38:
            scale = torch.tensor([factor], device="cuda")
            got, want = nvfp4_quantize.quantize(x, global_scale=scale), quantize_reference(x, scale)
            assert torch.equal(got[0], want[0]), factor
            assert torch.equal(got[1].view(torch.uint8), want[1].view(torch.uint8)), factor


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_quantize_of_odd_shapes_and_swizzled_scales(dtype):
    from kernelmux.backends.flashinfer.layouts import swizzle_128x4
    from kernelmux.backends.triton import nvfp4_quantize

    scale = torch.tensor(0.003, device="cuda")
    for m, k in ((1, 16), (3, 80), (130, 2688), (4097, 4096)):
        x = torch.randn(m, k, device="cuda", generator=torch.Generator(device="cuda").manual_seed(m)).to(dtype)
        want = quantize_reference(x, scale)
        got = nvfp4_quantize.quantize(x, global_scale=scale)
        assert torch.equal(got[0], want[0]) and torch.equal(got[1].float(), want[1].float())
        values, scales = nvfp4_quantize.quantize(x, global_scale=scale, layout="swizzled_128x4")
        assert torch.equal(values, want[0])
        assert torch.equal(scales.view(torch.uint8), swizzle_128x4(want[1]).view(torch.uint8))


def test_activation_and_norm_into_nvfp4():
    from kernelmux.backends.triton import nvfp4_quantize

    x, scale = torch.randn(100, 8192, device="cuda").bfloat16(), torch.tensor([2e-3], device="cuda")
    gate, up = x.float().chunk(2, dim=-1)
    normed = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)
    for got, want in (
        (nvfp4_quantize.silu_and_mul(x, global_scale=scale), torch.nn.functional.silu(gate) * up),
        (nvfp4_quantize.rms_norm(x, torch.ones_like(x[0]), global_scale=scale), normed),
    ):
        a, b = dequantize(*got, scale), dequantize(*quantize_reference(want, scale), scale)
        assert float((a - b).norm() / b.norm()) <= 5e-3
