"""Arguments of the NVFP4 ops that do not fit: one BadShape that names the expected shape, whichever the kernel."""

import math

import pytest

torch = pytest.importorskip("torch")

import kernelmux as km  # noqa: E402
from kernelmux.contracts import nvfp4_examples, nvfp4_math  # noqa: E402
from kernelmux.contracts.nvfp4_layouts import swizzle  # noqa: E402
from kernelmux.errors import BadShape  # noqa: E402
from kernelmux.registry.discovery import registry  # noqa: E402
from kernelmux.registry.lazy import load  # noqa: E402

E4 = torch.float8_e4m3fn
ONE = torch.ones(())
N, K = 160, 192  # neither whole tiles of 128 rows nor of 64 values
PREPARED = [kernel for kernel in registry().kernels("nvfp4_gemm") if kernel.prepare]


def weights(**change):
    w, w_scale = nvfp4_math.quantize_reference(torch.randn(N, K), torch.tensor(1e-3))
    return dict(w=w, w_scale=w_scale, w_global_scale=torch.tensor(1e-3), input_scale=torch.tensor(1e-3)) | change


WRONG = {
    "K is no multiple of 16": (
        lambda: weights(w=torch.zeros(N, 20, dtype=torch.uint8)),
        "K=40, two values a byte of w, must be a multiple of 16",
    ),
    "swizzled scales": (
        lambda: weights(w_scale=swizzle(weights()["w_scale"])),
        f"w_scale must be [N, K/16] = [{N}, {K // 16}], one scale a row and 16 values of w, in linear layout (neither "
        "padded nor swizzled); got [256, 12], the shape of scales swizzled in tiles of 128 x 4",
    ),
    "scales of another group": (lambda: weights(w_scale=torch.zeros(N, K // 32).to(E4)), f"[{N}, {K // 16}]"),
    "scales transposed": (lambda: weights(w_scale=torch.zeros(K // 16, N).to(E4)), f"[{N}, {K // 16}]"),
    "scales as bytes": (
        lambda: weights(w_scale=weights()["w_scale"].view(torch.uint8)), "w_scale must be float8_e4m3fn, not uint8"
    ),
    "another device": (lambda: weights(w_scale=weights()["w_scale"].to("meta")), "w_scale is on meta and w on cpu"),
    "two global scales": (lambda: weights(w_global_scale=torch.ones(2)), "one float32 number, [] or [1]; got [2]"),
    "an infinite global scale": (lambda: weights(w_global_scale=torch.tensor(math.inf)), "w_global_scale must be"),
    "a global scale that is NaN": (lambda: weights(w_global_scale=torch.tensor(math.nan)), "positive, finite number"),
    "a global scale of zero": (lambda: weights(w_global_scale=torch.tensor(0.0)), "positive, finite number"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("kernel", PREPARED, ids=lambda kernel: kernel.name)
def test_every_kernels_prepare_says_the_same(kernel, wrong):
    make, words = WRONG[wrong]
    with pytest.raises(BadShape) as said:
        load(kernel.prepare)(None, **make())
    assert words in str(said.value)


def quantizing(op, **change):
    call = next(load(registry().op(op).examples)("cpu", torch.bfloat16))
    return op, {**call, **change}


def mm(**change):
    call = next(iter(nvfp4_examples.mm_examples()))  # a [5, 64], b [32, 64], swizzled
    return "nvfp4_mm", {**call, **change}


def dequantizing(**change):
    return "nvfp4_dequantize", {**next(iter(nvfp4_examples.dequantize_examples())), **change}  # [5, 64], linear


LINEAR = nvfp4_math.quantize_reference(torch.randn(5, 128), ONE)[1]
CALLS = [
    (quantizing("nvfp4_quantize", x=torch.zeros(2, 40)), "K=40, the last size of x, must be a multiple of 16"),
    (quantizing("nvfp4_quantize", layout="swizzled"), "use linear or swizzled_128x4"),
    (quantizing("nvfp4_quantize", global_scale=torch.tensor(math.inf)), "positive, finite number"),
    (quantizing("nvfp4_quantize", global_scale=ONE.to("meta")), "global_scale is on meta"),
    (quantizing("silu_and_mul_nvfp4", x=torch.zeros(2, 48)), "H=24, half the last size of x, must be a multiple of 16"),
    (quantizing("silu_and_mul_nvfp4", global_scale=torch.ones(2)), "global_scale must be one float32 number"),
    (
        quantizing("rms_norm_nvfp4", x=torch.zeros(2, 40), weight=torch.ones(40)),
        "H=40, the last size of x, must be a multiple of 16",
    ),
    (quantizing("rms_norm_nvfp4", weight=torch.ones(8).bfloat16()), "weight must be [128]"),
    (dequantizing(scale=swizzle(LINEAR)), "[5, 8], one scale a row and 16 values of x, in linear layout"),
    (dequantizing(scale=LINEAR, layout="swizzled_128x4"), "[128, 8], one scale a row and 16 values of x, swizzled in"),
    (dequantizing(scale=LINEAR, layout="swizzled_128x4"), "got [5, 8], the shape of scales in linear layout"),
    (dequantizing(out_dtype=torch.float16), "out_dtype must be float32 or bfloat16"),
    (mm(a_sf=LINEAR), "a_sf must be [.., K/16] = [128, 8]"),
    (mm(b=torch.zeros(32, 32, dtype=torch.uint8)), "b must be uint8 [N, K/2] = [N, 64]"),
    (mm(b_sf=torch.zeros(256, 8).to(E4)), "b_sf must be [.., K/16] = [128, 8]"),
    (mm(a=torch.zeros(1, 5, 64, dtype=torch.uint8)), "takes a uint8 [rows, K/2]"),
    (mm(alpha=torch.tensor(math.nan)), "alpha must be a positive, finite number"),
    (mm(alpha=torch.tensor(1.0, dtype=torch.float64)), "alpha must be one float32 number"),
    (mm(b_sf=torch.zeros(128, 16).to(E4)[:, :8]), "swizzled b_sf must be contiguous"),
]


@pytest.mark.parametrize(("call", "words"), CALLS, ids=[f"{call[0]}: {words[:60]}" for call, words in CALLS])
def test_an_argument_that_does_not_fit_is_named(call, words):
    op, given = call
    with pytest.raises(BadShape) as said:
        getattr(km.ops, op)(**given)
    assert words in str(said.value)


def test_outs_that_cannot_be_written_are_named():
    x = torch.zeros(5, 64).bfloat16()
    values, scales = km.ops.nvfp4_quantize(x, ONE)
    with pytest.raises(BadShape, match=r"out must be \[5, 32\] uint8"):
        km.ops.nvfp4_quantize(x, ONE, out=values[:, :16], scale_out=scales)
    with pytest.raises(BadShape, match=r"scale_out must be \[128, 4\] float8_e4m3fn"):
        km.ops.nvfp4_quantize(x, ONE, layout="swizzled_128x4", out=values, scale_out=scales)
    wide = torch.zeros(128, 8).to(E4)[:, :4]
    with pytest.raises(BadShape, match="swizzled scale_out must be contiguous"):
        km.ops.nvfp4_quantize(x, ONE, layout="swizzled_128x4", out=values, scale_out=wide)


@pytest.mark.parametrize("layout", ["linear", "swizzled_128x4"])
@pytest.mark.parametrize("op", ["nvfp4_quantize", "silu_and_mul_nvfp4", "rms_norm_nvfp4"])
def test_results_go_where_the_caller_wants_them(op, layout):
    for call in load(registry().op(op).examples)("cpu", torch.bfloat16):
        call["layout"] = layout
        values, scales = getattr(km.ops, op)(**call)
        out, scale_out = torch.empty_like(values), torch.empty_like(scales)
        again = getattr(km.ops, op)(**call, out=out, scale_out=scale_out)
        assert again[0] is out and again[1] is scale_out
        assert torch.equal(out, values) and torch.equal(scale_out.view(torch.uint8), scales.view(torch.uint8))
