"""NVFP4 quantization, all of it: every bf16 value as the largest of its block and under every block scale, against an
implementation of other means, and which stored blocks quantize to themselves."""

import math
import random

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch runs the reference")

from kernelmux.backends.torch import nvfp4 as kernels  # noqa: E402
from kernelmux.contracts import nvfp4_layouts, nvfp4_math  # noqa: E402
from tests import nvfp4_cases as cases  # noqa: E402
from tests import nvfp4_scalar as scalar  # noqa: E402

FACTORS = scalar.factors()
NORMAL = [factor for factor in FACTORS if 2.0**-111 < factor < 2.0**111]


def test_the_lookup_is_the_exact_arithmetic():
    """The two independent implementations, on boundaries, ties, subnormals and random blocks."""
    draw = random.Random(0)
    maxima = scalar.every_maximum()
    odd = scalar.infinite_beside_finite()
    for factor in FACTORS:
        picked = [maxima[draw.randrange(len(maxima))] for _ in range(12)] + [odd[draw.randrange(len(odd))]]
        middle = [a + (b - a) / 2 for a, b in zip(scalar.E2M1, scalar.E2M1[1:], strict=False)]
        unit = float(np.float32(scalar.E4M3[draw.randrange(8, 126)] * factor))
        ties = [6 * unit, *(m * unit for m in middle), *(-m * unit for m in middle), 0.0]
        picked.append(np.array(ties, dtype=np.float32)[:16])
        blocks = np.nan_to_num(np.stack(picked), nan=np.nan, posinf=np.inf, neginf=-np.inf)
        codes, scales = scalar.quantize(blocks, factor)
        for block, want, scale in zip(blocks, codes, scales, strict=True):
            assert scalar.scalar_block(block.tolist(), factor) == (want.tolist(), int(scale)), factor


@pytest.mark.parametrize("factor", FACTORS, ids="{:.3g}".format)
def test_every_bf16_value_as_the_largest_of_its_block(factor):
    cases.assert_same(kernels.quantize, scalar.every_maximum(), factor)


def test_infinities_and_nans_among_finite_values():
    for factor in FACTORS:
        cases.assert_same(kernels.quantize, scalar.infinite_beside_finite(), factor)


@pytest.mark.parametrize("factor", [1.0, 1 / 2688], ids="{:.3g}".format)
def test_every_bf16_value_under_every_block_scale(factor):
    codes = set()
    for blocks in scalar.every_value_under_every_scale(factor):
        codes.add(int(cases.assert_same(kernels.quantize, blocks, factor)[0]))
    assert codes == set(range(127))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_dtype_of_x_does_not_matter(dtype):
    x = torch.randn(64, 64).bfloat16().to(dtype)
    got = kernels.quantize(x, global_scale=torch.tensor(1e-3))
    assert cases.equal(got, kernels.quantize(x.float(), global_scale=torch.tensor(1e-3)))


# what quantizes to itself


def again(blocks, factor):
    """(scale codes, whether each block of a quantization is the one that its dequantized values give)."""
    g = torch.tensor(factor)
    packed, scale = nvfp4_math.quantize_reference(torch.from_numpy(blocks), g)
    back = kernels.dequantize(packed, scale=scale, global_scale=g)
    second, same = nvfp4_math.quantize_reference(back, g)
    kept = (packed == second).all(-1) & (scale.view(torch.uint8) == same.view(torch.uint8)).squeeze(-1)
    return scale.view(torch.uint8).squeeze(-1), kept


@pytest.mark.parametrize("factor", NORMAL, ids="{:.3g}".format)
def test_what_was_dequantized_quantizes_to_itself_unless_its_scale_code_is_1_or_2(factor):
    code, kept = again(scalar.every_maximum(), factor)
    assert kept[(code == 0) | (code >= 3)].all()


def test_that_holds_under_every_scale_with_every_value():
    for blocks in scalar.every_value_under_every_scale(0.0123):
        code, kept = again(blocks, 0.0123)
        assert kept.all() or int(code[0]) in (1, 2)


def test_a_scale_code_of_3_or_more_always_holds_a_six_which_is_why():
    """amax is at least 2.5 of 3 steps of the scale then: more than 5 of 6 units, and the next quantization finds it."""
    for factor in NORMAL:
        codes, scales = scalar.quantize(scalar.every_maximum(), factor)
        assert ((codes & 7).max(-1)[(scales >= 3) & (scales < 0x7F)] == 7).all()


@pytest.mark.parametrize(
    ("largest", "code", "after"),
    [(0.55, 1, 0), (1.0, 1, 1), (1.6, 2, 1), (2.0, 2, 2)],
    ids=["1 becomes 0", "1 stays", "2 becomes 1", "2 stays"],
)
def test_scale_codes_1_and_2_are_the_exceptions(largest, code, after):
    """``largest`` in steps of the scale, 2^-9: rounded up to code 1 or 2, its values lie too far below 6 units."""
    x = torch.full((1, 16), largest * 6 * 2.0**-9)
    one = torch.ones(())
    packed, scale = kernels.quantize(x, global_scale=one)
    second, same = kernels.quantize(kernels.dequantize(packed, scale=scale, global_scale=one), global_scale=one)
    assert (int(scale.view(torch.uint8)), int(same.view(torch.uint8))) == (code, after)
    assert torch.equal(packed, second) is (code == after)


def test_both_exceptions_occur_among_bf16_values():
    code, kept = again(scalar.every_maximum(), 1.0)
    for exception in (1, 2):
        assert not kept[code == exception].all() and kept[code == exception].any()


# layouts


@pytest.mark.parametrize("rows", [1, 2, 31, 32, 33, 127, 128, 129, 255, 256, 300])
@pytest.mark.parametrize("columns", [1, 3, 4, 5, 8, 17])
def test_scales_come_back_bit_for_bit_and_padding_is_zero(rows, columns):
    bits = torch.randint(1, 256, (rows, columns), dtype=torch.uint8).view(torch.float8_e4m3fn)
    swizzled = nvfp4_layouts.swizzle(bits)
    assert tuple(swizzled.shape) == nvfp4_layouts.padded(rows, columns) and swizzled.is_contiguous()
    back = nvfp4_layouts.unswizzle(swizzled, rows, columns)
    assert torch.equal(back.view(torch.uint8), bits.view(torch.uint8)) and back.is_contiguous()
    assert int((swizzled.view(torch.uint8) != 0).sum()) == rows * columns  # no scale was zero
    flat, tiles = swizzled.view(torch.uint8).flatten(), -(-columns // 4)
    for r in (0, rows // 2, rows - 1):
        for c in range(columns):
            offset = (r // 128 * tiles + c // 4) * 512 + r % 32 * 16 + r % 128 // 32 * 4 + c % 4
            assert flat[offset] == bits.view(torch.uint8)[r, c]


def test_leading_dimensions_are_rows_and_no_row_is_no_tile():
    x = torch.randn(2, 3, 5, 48)
    g = torch.tensor(0.01)
    _, swizzled = kernels.quantize(x, global_scale=g, layout="swizzled_128x4")
    _, flat = kernels.quantize(x.reshape(30, 48), global_scale=g, layout="swizzled_128x4")
    assert swizzled.shape == (128, 4) and torch.equal(swizzled.view(torch.uint8), flat.view(torch.uint8))
    _, none = kernels.quantize(x[:, :0], global_scale=g, layout="swizzled_128x4")
    assert none.shape == (0, 4)
    assert math.prod(nvfp4_layouts.unswizzle(none, 0, 3).shape) == 0


def test_the_matrices_of_experts_are_swizzled_each_by_itself():
    bits = torch.randint(0, 256, (3, 130, 5), dtype=torch.uint8)
    whole = nvfp4_layouts.swizzle(bits)
    for expert in range(3):
        assert torch.equal(whole[expert], nvfp4_layouts.swizzle(bits[expert]))
    assert torch.equal(nvfp4_layouts.unswizzle(whole, 130, 5), bits)
