"""Every NVFP4 quantizer that promises the reference's bytes, on a live GPU: all bf16 values, every scale, both layouts;
the others and the fused ones within the tolerance of what they mean."""

import pytest

torch = pytest.importorskip("torch")

import kernelmux as km  # noqa: E402
from kernelmux.contracts import nvfp4_layouts, nvfp4_math  # noqa: E402
from kernelmux.contracts.nvfp4_judge import fault  # noqa: E402
from kernelmux.livegpu import detect  # noqa: E402
from kernelmux.quant import Scheme  # noqa: E402
from kernelmux.registry import Packages, Problem, Rejected  # noqa: E402
from kernelmux.registry.discovery import registry  # noqa: E402
from kernelmux.registry.lazy import load  # noqa: E402
from tests import nvfp4_cases as cases  # noqa: E402
from tests import nvfp4_scalar as scalar  # noqa: E402

pytestmark = pytest.mark.gpu

OPS = ("nvfp4_quantize", "silu_and_mul_nvfp4", "rms_norm_nvfp4", "nvfp4_dequantize", "nvfp4_mm")
KERNELS = [kernel for op in OPS for kernel in registry().kernels(op)]
QUANTIZERS = [kernel for kernel in KERNELS if kernel.op == "nvfp4_quantize"]


def chosen(kernel, dtype="bfloat16"):
    """A Selection of this kernel on the GPU, or a skip with the reasons it cannot run."""
    op, device = registry().op(kernel.op), detect(0)
    answer = kernel.judge(op, device, Packages.installed(), Problem(op.name, Scheme.of(None), dtype, {}))
    if isinstance(answer, Rejected):
        pytest.skip(f"{kernel.name}: {'; '.join(reason.reason for reason in answer.every())}")
    return km.select_backend(op.name, device="cuda", dtype=dtype, backend=kernel.name)


def exact(kernel):
    """The quantizer, or a skip where it does not promise the bytes."""
    if "bit_exact" not in kernel.numerics.promises:
        pytest.skip(f"{kernel.name} does not promise the reference's bytes")
    selection = chosen(kernel)
    return lambda x, **options: selection(x, None, **options)


@pytest.mark.parametrize("factor", scalar.factors(), ids="{:.3g}".format)
@pytest.mark.parametrize("kernel", QUANTIZERS, ids=lambda kernel: kernel.name)
def test_every_bf16_value_as_the_largest_of_its_block(kernel, factor):
    quantize = exact(kernel)
    cases.assert_same(quantize, scalar.every_maximum(), factor, device="cuda")
    cases.assert_same(quantize, scalar.infinite_beside_finite(), factor, device="cuda", layout="swizzled_128x4")


@pytest.mark.parametrize("factor", [1.0, 1 / 2688])
@pytest.mark.parametrize("kernel", QUANTIZERS, ids=lambda kernel: kernel.name)
def test_every_bf16_value_under_every_block_scale(kernel, factor):
    quantize = exact(kernel)
    for blocks in scalar.every_value_under_every_scale(factor):
        cases.assert_same(quantize, blocks, factor, device="cuda")


@pytest.mark.parametrize("kernel", QUANTIZERS, ids=lambda kernel: kernel.name)
def test_what_was_dequantized_quantizes_to_itself_unless_its_scale_code_is_1_or_2(kernel):
    quantize = exact(kernel)
    x = torch.from_numpy(scalar.every_maximum()).cuda()
    g = torch.tensor(0.0123, device="cuda")
    packed, scale = quantize(x, global_scale=g)
    second, same = quantize(nvfp4_math.dequantize(packed, scale, g), global_scale=g)
    code = scale.view(torch.uint8).squeeze(-1)
    kept = (packed == second).all(-1) & (code == same.view(torch.uint8).squeeze(-1))
    assert kept[(code == 0) | (code >= 3)].all()
    assert not kept[code == 1].all() and not kept[code == 2].all()


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_every_example_of_the_contract(kernel):
    op = registry().op(kernel.op)
    for dtype in op.dtypes:
        selection = chosen(kernel, dtype)
        for call in load(op.examples)("cuda", getattr(torch, dtype)):
            if call.get("out_dtype") == torch.float32 and kernel.name.startswith("flashinfer."):
                continue
            given = dict(call)
            x = given.pop(next(iter(given)))
            weights = given.pop("weight", None)
            got = selection(x, weights, **given)
            said = fault(op, call, kernel.numerics.promises, got)
            assert said is None, f"{kernel.name} {dtype} {tuple(x.shape)} {call.get('layout')}: {said}"


@pytest.mark.parametrize("kernel", QUANTIZERS, ids=lambda kernel: kernel.name)
def test_results_go_where_the_caller_wants_them(kernel):
    selection, g = chosen(kernel), torch.tensor(0.01, device="cuda")
    x = torch.randn(5, 128, device="cuda").bfloat16()
    values, scales = selection(x, None, global_scale=g)
    out = torch.full((5, 96), 255, dtype=torch.uint8, device="cuda")
    scale_out = torch.zeros(5, 16, device="cuda").to(torch.float8_e4m3fn)
    selection(x, None, global_scale=g, out=out[:, :64], scale_out=scale_out[:, :8])
    assert torch.equal(out[:, :64], values) and (out[:, 64:] == 255).all()
    assert torch.equal(scale_out[:, :8].float(), scales.float()) and not scale_out[:, 8:].float().any()


def test_layouts_are_the_same_bytes_on_the_gpu():
    bits = torch.randint(0, 256, (300, 17), dtype=torch.uint8, device="cuda")
    there = nvfp4_layouts.swizzle(bits)
    assert torch.equal(there.cpu(), nvfp4_layouts.swizzle(bits.cpu()))
    assert torch.equal(nvfp4_layouts.unswizzle(there, 300, 17), bits)


def test_checked_mode_refuses_a_global_scale_that_is_no_number(monkeypatch):
    monkeypatch.setenv("KERNELMUX_CHECKED", "1")
    with pytest.raises(km.errors.BadShape, match="positive, finite"):
        km.ops.nvfp4_quantize(torch.zeros(2, 32, device="cuda").bfloat16(), torch.tensor(float("inf"), device="cuda"))
