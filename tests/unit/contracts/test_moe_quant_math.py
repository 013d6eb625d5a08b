"""Quantizing and dequantizing in torch, and the reference of each scheme."""

import pytest

torch = pytest.importorskip("torch")

from kernelmux.contracts.fused_moe_math import reference, routing  # noqa: E402
from kernelmux.contracts.moe_quant import SCHEMES, UNQUANTIZED, MoeQuant  # noqa: E402
from kernelmux.contracts.moe_quant_math import (  # noqa: E402
    dequantize_activations,
    dequantize_expert,
    most,
    quantize_activations,
    quantize_weight,
    reference_quantized,
    storage,
)

QUANTIZED = [MoeQuant.of(name, (32, 16)) for name in SCHEMES if name != "none"]


def half_step(quant):
    """The largest error of one stored value, as a share of its magnitude (e4m3) or of its scale (int8)."""
    return 2**-4 if quant.fp8 else 0.5


@pytest.mark.parametrize("quant", QUANTIZED, ids=MoeQuant.brief)
def test_a_weight_comes_back_within_half_a_step(quant):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 40, 48, generator=generator) * torch.rand(3, 40, 1, generator=generator)
    stored, scale = quantize_weight(weight, quant)
    assert stored.dtype == storage(quant) and scale.shape == quant.scale_shape(3, 40, 48)
    assert stored.float().abs().max() <= most(quant)
    for expert in range(3):
        back = dequantize_expert(stored[expert], scale[expert], quant)
        step = back.abs() / (1 - half_step(quant)) if quant.fp8 else scale[expert].max()
        small = scale[expert].max() * 2**-9 if quant.fp8 else 0  # below e4m3's least normal value steps are even
        assert ((back - weight[expert]).abs() <= half_step(quant) * step * 1.001 + small).all()


@pytest.mark.parametrize("quant", [q for q in QUANTIZED if q.quantizes_activations], ids=MoeQuant.brief)
def test_rows_of_zeros_stay_zero_and_scales_follow_their_rows(quant):
    x = torch.randn(5, 48, generator=torch.Generator().manual_seed(1))
    x[2] = 0
    stored, scale = quantize_activations(x, quant)
    back = dequantize_activations(stored, scale, quant)
    assert (back[2] == 0).all() and back.isfinite().all()
    assert float((back - x).norm() / x.norm()) < 0.04
    assert scale.shape == ((1,) if quant.scheme == "fp8_tensor" else (5, 3) if quant.block_shape else (5, 1))


def test_a_static_scale_is_used_and_saturates():
    quant = MoeQuant.of("fp8_tensor")
    x = torch.tensor([[1.0, 1000.0, -1000.0]])
    stored, scale = quantize_activations(x, quant, torch.tensor([0.5]))
    assert scale.tolist() == [0.5] and stored.float().tolist() == [[2.0, 448.0, -448.0]]


@pytest.mark.parametrize("activation", ["silu", "relu2"])
@pytest.mark.parametrize("quant", QUANTIZED, ids=MoeQuant.brief)
def test_the_reference_of_a_scheme_is_near_the_unquantized_layer(quant, activation):
    generator = torch.Generator().manual_seed(2)
    up = 64 if activation == "silu" else 32
    x, w1, w2 = (torch.randn(*s, generator=generator) * s[-1] ** -0.25 for s in ((9, 48), (4, up, 48), (4, 48, 32)))
    weights, ids = routing(9, 4, 2, seed=3, device="cpu", idle=True)
    (q1, s1), (q2, s2) = quantize_weight(w1, quant), quantize_weight(w2, quant)
    got = reference_quantized(
        x.bfloat16(), q1, q2, weights, ids, quant, w1_scale=s1, w2_scale=s2, activation=activation
    )
    want = reference(x, w1, w2, weights, ids, activation)
    assert got.dtype == torch.float32
    assert float((got - want).norm() / want.norm()) < (0.12 if quant.fp8 else 0.05)


def test_unquantized_it_is_the_plain_reference():
    x, w1, w2 = torch.randn(5, 16), torch.randn(4, 24, 16), torch.randn(4, 16, 12)
    weights, ids = routing(5, 4, 2, seed=3, device="cpu")
    assert torch.equal(reference_quantized(x, w1, w2, weights, ids, UNQUANTIZED), reference(x, w1, w2, weights, ids))
