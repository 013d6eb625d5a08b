"""MoeQuant: schemes, the engines' words, scale shapes."""

import pytest

from kernelmux.contracts.moe_quant import SCHEMES, UNQUANTIZED, MoeQuant
from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.errors import UnknownScheme, UsageError
from kernelmux.quant import Scheme


@pytest.mark.parametrize("name", SCHEMES)
def test_scheme_and_quant_map_both_ways(name):
    quant = MoeQuant.of(name)
    assert quant.scheme == name and MoeQuant.of(Scheme.of(name)) == quant


@pytest.mark.parametrize(
    ("scheme", "dtype", "a", "b"),
    [
        ("none", None, 2, 2),
        ("fp8_tensor", "fp8_w8a8", 1, 1),
        ("fp8_channel", "fp8_w8a8", 1, 1),
        ("fp8_block", "fp8_w8a8", 1, 1),
        ("int8_w8a8", "int8_w8a8", 1, 1),
        ("int8_w8a16", "int8_w8a16", 2, 1),
    ],
)
def test_engine_words_and_element_bytes(scheme, dtype, a, b):
    quant = MoeQuant.of(scheme)
    assert (quant.dtype, quant.element_bytes_a, quant.element_bytes_b) == (dtype, a, b)


def test_a_block_of_a_scheme_is_kept_and_clamps_block_k():
    assert MoeQuant.of("fp8_block").block_shape == (128, 128)
    quant = MoeQuant.of("fp8_block", (64, 32))
    assert quant.clamped_k(256) == 32 and quant.clamped_k(16) == 16
    assert UNQUANTIZED.clamped_k(256) == 256
    assert quant.brief() == "fp8_block[64,32]"


def test_scales_have_the_shape_of_what_they_scale():
    assert UNQUANTIZED.scale_shape(8, 256, 512) is None
    assert MoeQuant.of("fp8_tensor").scale_shape(8, 256, 512) == (8,)
    assert MoeQuant.of("int8_w8a16").scale_shape(8, 256, 512) == (8, 256)
    assert MoeQuant.of("fp8_block").scale_shape(8, 200, 512) == (8, 2, 4)


@pytest.mark.parametrize(
    "fields",
    [("int4_w4a16",), ("int8_w8a16", (128, 128), True), ("fp8_w8a8", (128, 0)), (None, None, True), ("int8_w8a8",),
     ("fp8_w8a8", (128, 128), True)],
)  # fmt: skip
def test_a_mix_no_kernel_has_is_refused_in_words(fields):
    with pytest.raises(UsageError, match=r"\.$"):
        MoeQuant(*fields)


def test_a_scheme_of_another_form_is_unknown_here():
    with pytest.raises(UnknownScheme):
        MoeQuant.of("nvfp4")


def test_a_depth_that_splits_a_scale_block_is_refused():
    assert "multiples" in MoeQuant.of("fp8_block").refusal(MoeShape(8, 200, 512, 2))
    assert MoeQuant.of("fp8_block").refusal(MoeShape(8, 128, 512, 2)) is None
