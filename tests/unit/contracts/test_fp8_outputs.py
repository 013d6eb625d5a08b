"""rms_norm_fp8 and silu_and_mul_fp8: scales, one rounding, saturation, zeros, out arguments."""

import pytest

torch = pytest.importorskip("torch", reason="torch runs the kernels")

import kernelmux as km  # noqa: E402
from kernelmux.contracts import activations_math, norms_math  # noqa: E402
from kernelmux.contracts.gemm_fp8_math import quantize_input  # noqa: E402
from kernelmux.registry.discovery import registry  # noqa: E402

E4M3 = torch.float8_e4m3fn
X = torch.randn(12, 512, generator=torch.Generator().manual_seed(1)).bfloat16()
WEIGHT = (1 + 0.5 * torch.randn(512, generator=torch.Generator().manual_seed(2))).bfloat16()


def chosen(op):
    return km.select_backend(op, device="cpu", dtype="bfloat16", backend="torch")


def bits(values):
    return values.view(torch.uint8)


def test_a_scale_a_token_uses_the_whole_range():
    out, scale = chosen("rms_norm_fp8")(X, WEIGHT)
    product = norms_math.rms_norm_reference(X, WEIGHT)
    assert (out.dtype, scale.shape) == (E4M3, (12, 1))
    torch.testing.assert_close(scale, product.abs().amax(dim=1, keepdim=True) / 448)
    assert (out.float().abs().amax(dim=1) == 448).all()
    assert ((out.float() * scale - product).norm() / product.norm()) < 0.03
    assert torch.equal(bits(out), bits(quantize_input(product, "fp8_channel")[0])), "as fp8_gemm quantizes a row"


def test_a_given_scale_is_copied_and_too_large_values_are_the_largest():
    for shape in ((), (1,)):
        given = torch.full(shape, 0.001)
        out, scale = chosen("rms_norm_fp8")(X, WEIGHT, scale=given)
        assert scale is not given and torch.equal(scale, given)
        product = norms_math.rms_norm_reference(X, WEIGHT) / 0.001
        assert (product.abs() > 448).any() and out.float().abs().max() == 448
        assert torch.equal(out.float().sign(), product.sign())


def test_the_product_is_rounded_once():
    """A product that bf16 rounds onto a tie of e4m3, from above: rounded twice it would be the even neighbour below."""
    scale = torch.tensor(1.0)
    weight = torch.full((4,), 1.0 + 2**-4 + 2**-7).bfloat16()  # between 1 and 1.125, just above their middle
    x = torch.ones(1, 4).bfloat16()
    out, _ = chosen("rms_norm_fp8")(x, weight, scale=scale, eps=0.0)
    assert out.float().unique().item() == 1.125
    # with Gemma's bias the fp32 sum 1 + w is not rounded to bf16 either
    out, _ = chosen("rms_norm_fp8")(x, torch.full((4,), 2**-4 + 2**-10).bfloat16(), scale=scale, eps=0, weight_bias=1.0)
    assert out.float().unique().item() == 1.125
    assert torch.tensor(1 + 2**-4 + 2**-10).bfloat16().float().to(E4M3).float().item() == 1.0


def test_rows_and_blocks_of_zeros_are_zeros():
    x = X.clone()
    x[3] = 0
    out, scale = chosen("rms_norm_fp8")(x, WEIGHT)
    assert not out[3].float().any() and scale[3].item() == pytest.approx(1e-10 / 448)
    x = torch.randn(2, 512).bfloat16()
    x[0, 256 + 128 :] = 0  # up of the second block
    out, scale = chosen("silu_and_mul_fp8")(x)
    assert not out[0, 128:].float().any() and scale[0, 1].item() == pytest.approx(1e-10 / 448)
    assert out[0, :128].float().any()


def test_every_block_of_128_has_its_own_scale():
    x = torch.randn(5, 768).bfloat16()
    x[:, 384 + 128 : 384 + 256] *= 64
    out, scale = chosen("silu_and_mul_fp8")(x)
    product = activations_math.apply("silu_and_mul", x.float())
    assert scale.shape == (5, 3) and (scale[:, 1] > 8 * scale[:, 0]).all()
    torch.testing.assert_close(scale, product.unflatten(-1, (3, 128)).abs().amax(-1) / 448)
    assert torch.equal(bits(out), bits(quantize_input(product, "fp8_block")[0])), "as fp8_gemm quantizes its input"


@pytest.mark.parametrize("op", ["rms_norm_fp8", "silu_and_mul_fp8"])
def test_the_specification_and_the_tolerance_agree(op):
    found = registry().op(op)
    module = norms_math if op == "rms_norm_fp8" else activations_math
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for call in getattr(module, f"{op}_examples")(dtype=dtype):
            values, scale = getattr(module, f"{op}_rounded")(**call)
            want, right = getattr(module, f"{op}_reference")(**call)
            torch.testing.assert_close(scale, right, rtol=1e-5, atol=0)
            tolerance = found.tolerance[str(dtype).removeprefix("torch.")]
            error = (values.float() - want).norm(dim=-1)
            assert (error <= tolerance.rtol * want.norm(dim=-1) + tolerance.atol * want.shape[-1] ** 0.5).all()


def test_outs_are_written_into_slices():
    buffer, scales = torch.zeros(12, 1024).to(E4M3), torch.zeros(12, 4)
    want = chosen("rms_norm_fp8")(X, WEIGHT)
    got = chosen("rms_norm_fp8")(X, WEIGHT, out=buffer[:, 512:], scale_out=scales[:, 1:2])
    assert torch.equal(bits(got[0]), bits(want[0])) and torch.equal(scales[:, 1:2], want[1])
    assert not buffer[:, :512].float().any() and not scales[:, 2:].any()
    x = torch.cat((X, X.flip(0)), dim=1)
    want = chosen("silu_and_mul_fp8")(x)
    got = chosen("silu_and_mul_fp8")(x, out=buffer[:, :512], scale_out=(wide := torch.zeros(12, 8))[:, :4])
    assert torch.equal(bits(got[0]), bits(want[0])) and torch.equal(wide[:, :4], want[1]) and not wide[:, 4:].any()
    given = torch.tensor(0.5)
    _, used = chosen("rms_norm_fp8")(X, WEIGHT, scale=given, scale_out=given)
    assert used is given and given.item() == 0.5
