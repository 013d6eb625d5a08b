"""The Triton norms, activations and what ends in e4m3, interpreted: bits against the roundings as specified.

The interpreter computes no bf16 and fuses no multiply-add, so fp16 proves the orders here; bf16 is proven on a GPU.
"""

import math

import pytest
import torch

from kernelmux.backends.triton import activations, fp8_epilogue_kernels, fp8_epilogues, norms, small_rules
from kernelmux.backends.triton.small_rules import Tile
from kernelmux.contracts import activations_math, norms_math
from kernelmux.contracts.activation_table import ACTIVATIONS
from kernelmux.contracts.rounding import exact_share, total_distance, ulps

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

ORDERS = ("cast_before_mul", "fp32_mul")
RESIDUALS = ("residual_rounded", "residual_fp32")
SHARE = {torch.float16: 0.995, torch.float32: 0.0}
GATED = [a.name for a in ACTIVATIONS if a.gated]
FP32_ULPS = 6  # a fused multiply-add less than on a GPU


def draw(*size, dtype=torch.float16, seed=0, scale=1.0, mean=0.0):
    generator = torch.Generator().manual_seed(seed)
    return (mean + scale * torch.randn(*size, generator=generator)).to(dtype)


def close(got, want):
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    if want.dtype == torch.float32:
        assert int(ulps(got, want).max()) <= FP32_ULPS
    else:
        assert exact_share(got, want) >= SHARE[want.dtype]


def norm_call(shape, dtype, seed=0):
    return draw(*shape, dtype=dtype, seed=seed), draw(shape[-1], dtype=dtype, seed=seed + 1, scale=0.3, mean=1.0)


def variant(name):
    for module in (norms, activations, fp8_epilogues):
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(name)


# norms


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("hidden", [1, 7, 96, 128, 770, 2688, 5001])
def test_rms_norm_gives_the_bits_of_its_declared_order(hidden, order, dtype):
    x, weight = norm_call((5, hidden), dtype)
    for bias in (0.0, 1.0):
        got = variant(f"rms_norm_{order}").run(x, weight, eps=1e-5, weight_bias=bias)
        close(got, norms_math.rms_norm_rounded(x, weight, order, 1e-5, bias))


@pytest.mark.parametrize("order", ORDERS)
def test_each_order_is_nearer_to_its_own_reference_than_to_the_other(order):
    x, weight = norm_call((40, 512), torch.float16)
    other = ORDERS[1 - ORDERS.index(order)]
    calls = {
        "rms_norm": ((x, weight), {}, {}),
        "gated_rms_norm": ((x, draw(40, 512, seed=5), weight), {"z": draw(40, 512, seed=5)}, {"n_groups": 4}),
    }
    for op, (arguments, tensors, scalars) in calls.items():
        got = variant(f"{op}_{order}").run(x, weight, **tensors, **scalars)
        rounded = getattr(norms_math, f"{op}_rounded")
        mine, theirs = rounded(*arguments, order, **scalars), rounded(*arguments, other, **scalars)
        assert exact_share(got, mine) >= 0.995
        assert exact_share(mine, theirs) < 0.9  # the inputs tell the orders apart
        assert total_distance(got, mine) < 0.05 * total_distance(got, theirs)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kept", RESIDUALS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_fused_add_keeps_the_sum_and_normalises_the_one_it_declares(dtype, kept, order):
    x, weight = norm_call((9, 771), dtype)
    residual = draw(9, 771, dtype=dtype, seed=7, scale=4)
    got = variant(f"fused_add_rms_norm_{order}_{kept}").run(x, weight, residual=residual, weight_bias=1.0)
    want = norms_math.fused_add_rms_norm_rounded(x, residual, weight, order, kept, weight_bias=1.0)
    assert torch.equal(got[1], want[1])
    close(got[0], want[0])
    if dtype == torch.float16:
        others = [
            norms_math.fused_add_rms_norm_rounded(x, residual, weight, o, k, weight_bias=1.0)[0]
            for o in ORDERS for k in RESIDUALS if (o, k) != (order, kept)
        ]  # fmt: skip
        assert all(total_distance(got[0], want[0]) < 0.1 * total_distance(got[0], other) for other in others)


@pytest.mark.parametrize("groups", [1, 2, 3, 8, 48])
@pytest.mark.parametrize("hidden", [96, 1200])
@pytest.mark.parametrize("order", ORDERS)
def test_groups_are_normalised_by_themselves(order, hidden, groups):
    x, weight = norm_call((2, 3, hidden), torch.float16)
    z = draw(2, 3, hidden, seed=3, scale=2)
    got = variant(f"gated_rms_norm_{order}").run(x, weight, z=z, n_groups=groups)
    close(got, norms_math.gated_rms_norm_rounded(x, z, weight, order, n_groups=groups))


@pytest.mark.parametrize("hidden", [small_rules.LONGEST + 8, small_rules.LONGEST + 13])
def test_a_row_too_long_for_registers_is_read_twice(hidden):
    x, weight = norm_call((2, hidden), torch.float16)
    residual = draw(2, hidden, seed=9, scale=4)
    for order in ORDERS:
        close(variant(f"rms_norm_{order}").run(x, weight), norms_math.rms_norm_rounded(x, weight, order))
    want = norms_math.fused_add_rms_norm_rounded(x, residual, weight, "fp32_mul", "residual_fp32")
    out, sums = x.clone(), residual.clone()
    variant("fused_add_rms_norm_fp32_mul_residual_fp32").run(
        out, weight, residual=sums, out=out, residual_out=sums
    )  # in place
    close(out, want[0])
    assert torch.equal(sums, want[1])
    want = norms_math.gated_rms_norm_rounded(x, residual, weight, "cast_before_mul")
    close(variant("gated_rms_norm_cast_before_mul").run(x, weight, z=residual), want)


@pytest.mark.parametrize("order", ORDERS)
def test_in_place_and_into_a_row_slice_of_a_larger_buffer(order):
    x, weight = norm_call((6, 200), torch.float16)
    want = norms_math.rms_norm_rounded(x, weight, order)
    wide = draw(6, 331, seed=4)
    before = wide.clone()
    wide[:, 17:217] = x
    view = wide[:, 17:217]
    out = torch.full((8, 305), 7.0, dtype=torch.float16)
    given = out[1:7, 3:203]
    assert variant(f"rms_norm_{order}").run(view, weight, out=given) is given
    close(given.contiguous(), want)
    outside = out.clone()
    outside[1:7, 3:203] = 7.0
    assert bool((outside == 7.0).all())
    variant(f"rms_norm_{order}").run(view, weight, out=view)
    close(view.contiguous(), want)
    assert torch.equal(wide[:, :17], before[:, :17])
    assert torch.equal(wide[:, 217:], before[:, 217:])


def test_fused_add_in_place_leaves_both_results():
    x, weight = norm_call((7, 300), torch.float16)
    residual = draw(7, 300, seed=8, scale=4)
    want = norms_math.fused_add_rms_norm_rounded(x, residual, weight, "cast_before_mul", "residual_rounded")
    run = variant("fused_add_rms_norm_cast_before_mul_residual_rounded").run
    got = run(x, weight, residual=residual, out=x, residual_out=residual)
    assert got[0] is x
    assert got[1] is residual
    close(x, want[0])
    assert torch.equal(residual, want[1])


def test_leading_dimensions_at_several_strides_are_copied_first():
    x = draw(4, 3, 64).transpose(0, 1)
    weight = draw(64, seed=1, mean=1.0)
    want = norms_math.rms_norm_rounded(x, weight, "fp32_mul")
    close(variant("rms_norm_fp32_mul").run(x, weight), want)
    pairs = draw(4, 3, 64).transpose(0, 1)
    close(
        variant("silu_and_mul_fp32_mul").run(pairs), activations_math.gated_rounded("silu_and_mul", pairs, "fp32_mul")
    )


@pytest.mark.parametrize("rows", [0, 1])
def test_no_row_and_one_row(rows):
    x, weight = draw(rows, 80), draw(80, seed=1, mean=1.0)
    close(variant("rms_norm_fp32_mul").run(x, weight), norms_math.rms_norm_rounded(x, weight, "fp32_mul"))
    got = variant("silu_and_mul_fp32_mul").run(x)
    close(got, activations_math.gated_rounded("silu_and_mul", x, "fp32_mul"))
    scale = torch.tensor([0.25])
    values, copy = variant("rms_norm_fp8").run(x, weight, scale=scale)
    assert values.shape == x.shape
    assert torch.equal(copy, scale)
    assert copy is not scale


def test_a_row_of_zeros_and_a_row_of_infinities():
    x = torch.zeros(3, 64, dtype=torch.float16)
    x[1, 3] = math.inf
    x[2] = 2.0
    weight = torch.ones(64, dtype=torch.float16)
    got = variant("rms_norm_fp32_mul").run(x, weight)
    assert torch.equal(got[0], torch.zeros(64, dtype=torch.float16))
    assert bool(got[1, 3].isnan())
    assert torch.equal(got[2], torch.ones(64, dtype=torch.float16))


@pytest.mark.parametrize("tile", [Tile(4, 128, 4), Tile(4, 128, 4, 2, 2), Tile(1, 32, 1), Tile(1, 128, 1, 3, 1)])
def test_every_way_to_deal_tiles_gives_the_same_rows(tile):
    x, weight = norm_call((11, 100), torch.float16)
    z = draw(11, 100, seed=2)
    close(variant("rms_norm_fp32_mul").run(x, weight, config=tile), norms_math.rms_norm_rounded(x, weight, "fp32_mul"))
    want = norms_math.gated_rms_norm_rounded(x, z, weight, "fp32_mul", n_groups=5)
    close(variant("gated_rms_norm_fp32_mul").run(x, weight, z=z, n_groups=5, config=tile), want)
    want = activations_math.gated_rounded("gelu_and_mul", x, "fp32_mul")
    close(variant("gelu_and_mul_fp32_mul").run(x, config=tile), want)


def test_a_row_has_the_same_bits_in_any_batch():
    x, weight = norm_call((37, 400), torch.float16)
    run = variant("rms_norm_fp32_mul").run
    whole = run(x, weight)
    assert all(torch.equal(run(x[i : i + 1], weight)[0], whole[i]) for i in range(0, 37, 9))


# activations


@pytest.mark.parametrize("op", GATED)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("half", [1, 45, 128, 1300])
def test_gated_activations_give_the_bits_of_their_declared_order(half, order, op):
    x = draw(9, 2 * half, scale=2.0)
    close(variant(f"{op}_{order}").run(x), activations_math.gated_rounded(op, x, order))


@pytest.mark.parametrize("op", GATED)
@pytest.mark.parametrize("order", ORDERS)
def test_a_gated_activation_is_nearer_to_its_own_order(order, op):
    x = draw(40, 1024, scale=2.0)
    got = variant(f"{op}_{order}").run(x)
    mine = activations_math.gated_rounded(op, x, order)
    theirs = activations_math.gated_rounded(op, x, ORDERS[1 - ORDERS.index(order)])
    assert exact_share(mine, theirs) < 0.9
    assert exact_share(got, mine) >= 0.995
    assert total_distance(got, mine) < 0.05 * total_distance(got, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_relu2_squares_what_is_positive_and_keeps_nan(dtype):
    x = draw(7, 333, dtype=dtype, scale=3)
    close(variant("relu2").run(x), activations_math.unary_rounded("relu2", x))
    variant("relu2").run(x, out=x)  # in place
    special = torch.tensor([math.nan, -math.inf, math.inf, -0.0], dtype=dtype)
    got = variant("relu2").run(special)
    assert bool(got[0].isnan())
    assert got[1:].tolist() == [0.0, math.inf, 0.0]


@pytest.mark.parametrize("op", GATED)
def test_gates_far_out_neither_overflow_nor_become_nan(op):
    gates = [math.inf, 2000.0, 200.0, 88.5, 20.0, 0.0, -0.0, -20.0, -88.5, -200.0, -2000.0]
    for dtype in (torch.float16, torch.float32):
        x = torch.tensor([[g, 1.0] for g in gates], dtype=dtype)
        for order in ORDERS:
            got = variant(f"{op}_{order}").run(x).flatten().double()
            want = torch.tensor([max(g, 0.0) for g in gates], dtype=torch.float64)
            assert bool(((got - want).abs() <= 1e-6).logical_or(got == want).all()), (op, dtype, got)


def test_fp32_activations_stay_near_their_formula():
    gate = torch.linspace(-6, 9, 4001)
    x = torch.stack([gate, torch.ones_like(gate)], dim=1)
    wide = gate.double()
    cubic = (2 / math.pi) ** 0.5 * (wide + 0.044715 * wide**3)
    want = {
        "silu_and_mul": (wide * torch.sigmoid(wide), 4),
        "gelu_and_mul": (wide * torch.special.erfc(-wide / 2**0.5) / 2, 24),
        "gelu_tanh_and_mul": (wide * torch.sigmoid(2 * cubic), 64),
    }
    for op, (values, most) in want.items():
        got = variant(f"{op}_fp32_mul").run(x, config=Tile(4096, 1, 4)).flatten()
        assert int(ulps(got, values.float()).max()) <= most, op


@pytest.mark.parametrize("op", [*GATED, "relu2"])
def test_activations_of_row_slices_into_row_slices(op):
    wide = draw(5, 400, scale=2)
    x = wide[:, 9:309]
    name = op if op == "relu2" else f"{op}_fp32_mul"
    columns = 300 if op == "relu2" else 150
    out = torch.zeros(5, 2 * columns, dtype=torch.float16)
    given = out[:, 1 : 1 + columns]
    assert variant(name).run(x, out=given) is given
    rounded = activations_math.unary_rounded if op == "relu2" else activations_math.gated_rounded
    close(given.contiguous(), rounded(op, x, *([] if op == "relu2" else ["fp32_mul"])))
    assert not out[:, 0].any()
    assert not out[:, 1 + columns :].any()


# e4m3


def test_the_conversion_to_e4m3_agrees_with_torch_at_every_fp16_value_and_saturates():
    import triton
    import triton.language as tl

    @triton.jit
    def convert(x, out, N: tl.constexpr):
        at = tl.arange(0, N)
        tl.store(out + at, fp8_epilogue_kernels.to_e4m3(tl.load(x + at), False))

    bits = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    values = bits.view(torch.float16).float()
    between = torch.nextafter(values, torch.full_like(values, math.inf))
    for x in (values, between, torch.nextafter(values, torch.full_like(values, -math.inf))):
        out = torch.empty(65536, dtype=torch.uint8)
        convert[(1,)](x, out, 65536)
        want = x.clamp(-448, 448).to(torch.float8_e4m3fn)
        numbers = ~x.isnan()
        assert torch.equal(out.view(torch.float8_e4m3fn).float()[numbers], want.float()[numbers])
        assert bool((out[~numbers] == 0x7F).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("nth", range(7))
def test_rms_norm_fp8_keeps_every_example_of_its_contract(nth, dtype):
    call = list(norms_math.rms_norm_fp8_examples(dtype=dtype))[nth]
    want = norms_math.rms_norm_fp8_rounded(**call)
    got = variant("rms_norm_fp8").run(call.pop("x"), call.pop("weight"), **call)
    assert got[0].shape == want[0].shape
    assert got[1].shape == want[1].shape
    assert exact_share(got[0], want[0]) >= 0.995
    assert not want[1].numel() or int(ulps(got[1], want[1]).max()) <= FP32_ULPS


def test_rms_norm_fp8_of_rows_too_long_for_registers():
    x, weight = norm_call((2, small_rules.LONGEST + 40), torch.float16)
    for scale in (None, torch.tensor(0.01)):
        want = norms_math.rms_norm_fp8_rounded(x, weight, scale, weight_bias=1.0)
        got = variant("rms_norm_fp8").run(x, weight, scale=scale, weight_bias=1.0)
        assert exact_share(got[0], want[0]) >= 0.995
        assert int(ulps(got[1], want[1]).max()) <= FP32_ULPS


@pytest.mark.parametrize("nth", range(5))
def test_silu_and_mul_fp8_keeps_every_example_of_its_contract(nth):
    call = list(activations_math.silu_and_mul_fp8_examples(dtype=torch.float16))[nth]
    want = activations_math.silu_and_mul_fp8_rounded(**call)
    got = variant("silu_and_mul_fp8").run(call["x"])
    assert got[1].shape == want[1].shape
    assert exact_share(got[0], want[0]) >= 0.995
    assert not want[1].numel() or int(ulps(got[1], want[1]).max()) <= FP32_ULPS


def test_fp8_results_into_row_slices():
    x = draw(4, 512, scale=2)
    values = torch.zeros(4, 300, dtype=torch.float8_e4m3fn)
    scales = torch.zeros(4, 5)
    given = values[:, 7:263], scales[:, 1:3]
    got = variant("silu_and_mul_fp8").run(x, out=given[0], scale_out=given[1])
    assert got[0] is given[0]
    assert got[1] is given[1]
    want = activations_math.silu_and_mul_fp8_rounded(x)
    assert exact_share(given[0].contiguous(), want[0]) >= 0.995
    assert not values[:, :7].float().any()
    assert not scales[:, 3:].any()
    assert not scales[:, 0].any()


def test_bind_gives_a_call_for_tensors_of_one_kind():
    x, weight = norm_call((5, 96), torch.float16)
    out, again = torch.empty_like(x), draw(5, 96, seed=11)
    call = variant("rms_norm_cast_before_mul").bind({"eps": 1e-5, "weight_bias": 0.0}, x, weight, out)
    for source in (x, again):
        call(source, weight, out)
        close(out, norms_math.rms_norm_rounded(source, weight, "cast_before_mul", 1e-5))
    scale, values = torch.tensor([0.01]), torch.empty(5, 96, dtype=torch.float8_e4m3fn)
    copy = torch.empty(1)
    call = variant("rms_norm_fp8").bind({"eps": 1e-6}, x, weight, scale, values, copy)
    call(x, weight, scale, values, copy)
    assert exact_share(values, norms_math.rms_norm_fp8_rounded(x, weight, scale)[0]) >= 0.995
    assert torch.equal(copy, scale)
