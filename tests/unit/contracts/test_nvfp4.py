"""NVFP4: rounding against nearest neighbours in float64 over every bf16 value, layout, what is no number, the GEMM."""

import math

import pytest

torch = pytest.importorskip("torch", reason="torch runs the reference")

import kernelmux as km  # noqa: E402
from kernelmux.contracts import nvfp4, nvfp4_math  # noqa: E402
from kernelmux.errors import BadShape  # noqa: E402
from kernelmux.quant import Scheme  # noqa: E402
from kernelmux.registry import Problem, epoch  # noqa: E402

ONE = torch.ones(())


def every_bf16():
    """All 65,536 bit patterns."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)


def nearest(values, table):
    """Index of the nearest entry of a rising table, the even index of two equally near; float64, no NaN."""
    table = torch.tensor(table, dtype=torch.float64)
    distance = (values.double().unsqueeze(-1).clamp(max=2 * table[-1].item()) - table).abs()
    index = distance.argmin(-1)  # of two equal ones torch may give either
    for step in (-1, 1):
        other = (index + step).clamp(0, len(table) - 1)
        tie = distance.gather(-1, other.unsqueeze(-1)) == distance.gather(-1, index.unsqueeze(-1))
        index = torch.where(tie.squeeze(-1) & (other % 2 == 0), other, index)
    return index


def e4m3(code):
    """The value of an e4m3 code 0..126, from its bits."""
    exponent, fraction = code >> 3, code & 7
    return fraction * 2.0**-9 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7)


E4M3 = [e4m3(code) for code in range(127)]


def test_every_bf16_value_becomes_the_nearest_e2m1():
    values = every_bf16()
    values = values[~values.isnan()]
    codes = nvfp4_math.e2m1_codes(values.float())
    assert torch.equal((codes & 7).long(), nearest(values.abs(), nvfp4_math.E2M1))
    assert torch.equal(codes >> 3 == 1, values.signbit())


@pytest.mark.parametrize("factor", [1.0, 0.37, 1e-3, 2.0**-20, 3e4, 1e-38])
def test_every_bf16_maximum_gives_the_nearest_e4m3_scale(factor):
    values = every_bf16()
    values = values[values.isfinite()]
    x = torch.zeros(len(values), 16, dtype=torch.bfloat16)
    x[:, 3] = values
    g = torch.tensor(factor)
    _, scale = nvfp4_math.quantize_reference(x, g)
    ideal = (values.abs().double() / (6 * g).double()).float()  # correctly rounded: 53 bits are enough for a quotient
    assert torch.equal(scale.view(torch.uint8)[:, 0].long(), nearest(ideal, E4M3))


def test_values_are_rounded_under_the_rounded_scale():
    x = torch.randn(64, 32) * torch.exp(3 * torch.randn(64, 32))
    g = x.abs().amax() / (6 * 448)
    packed, scale = nvfp4_math.quantize_reference(x, g)
    unit = (scale.float() * g).repeat_interleave(16, dim=1)
    ratio = (x.double() / unit.double()).float()
    want = torch.where(unit == 0, 0, nearest(torch.where(unit == 0, 0, ratio).abs(), nvfp4_math.E2M1))
    codes = nvfp4_math.unpack(packed)
    assert torch.equal((codes & 7).long(), want) and torch.equal(codes >> 3 == 1, x < 0)


def test_the_first_of_two_values_lies_in_the_low_bits():
    packed, scale = nvfp4_math.quantize_reference(torch.tensor([[1.0, -6.0] + [0.0] * 14]), ONE)
    assert packed[0, 0] == (0xF << 4 | 0x2) and scale.float() == 1.0
    codes = torch.randint(0, 16, (3, 32), dtype=torch.uint8)
    assert torch.equal(nvfp4_math.unpack(nvfp4_math.pack(codes)), codes)


def block(**values):
    """A block of 16 ones with some values replaced, quantized: (codes, scale byte, dequantized)."""
    x = torch.ones(1, 16)
    for place, value in values.items():
        x[0, int(place[1:])] = value
    packed, scale = km.ops.nvfp4_quantize(x, ONE)
    return (
        nvfp4_math.unpack(packed)[0].tolist(),
        int(scale.view(torch.uint8)),
        nvfp4_math.dequantize(packed, scale, ONE)[0],
    )


def test_infinity_saturates_and_its_neighbours_keep_their_block_scale():
    codes, scale, back = block(_2=math.inf, _5=-math.inf, _7=300.0)
    assert scale == 0x7E and E4M3[scale] == 448
    assert codes[2] == 7 and codes[5] == 15 and back[2] == 6 * 448 and back[5] == -6 * 448
    assert codes[0] == 0 and codes[7] == 1  # 300 / 448 = 0.67 is nearest to 0.5


def test_nan_makes_its_block_nan_and_no_other():
    codes, scale, back = block(_9=math.nan)
    assert scale == 0x7F and codes == [7] * 16 and back.isnan().all()
    x = torch.full((1, 32), 6.0)
    x[0, 0] = math.nan
    back = nvfp4_math.dequantize(*km.ops.nvfp4_quantize(x, ONE), ONE)
    assert back[0, :16].isnan().all() and torch.equal(back[0, 16:], x[0, 16:])


def test_a_block_too_small_for_any_scale_becomes_zeros_with_their_signs():
    x = torch.full((1, 16), 1e-6)
    x[0, 1::2] *= -1
    packed, scale = km.ops.nvfp4_quantize(x, ONE)
    assert scale.float() == 0 and nvfp4_math.unpack(packed)[0].tolist() == [0, 8] * 8


@pytest.mark.parametrize("factor", [1.0, 0.37, 1e-4])
def test_quantizing_what_was_dequantized_changes_nothing_but_under_scale_codes_1_and_2(factor):
    x = torch.randn(4000, 16) * torch.exp2(torch.rand(4000, 1) * 20 - 12) * factor
    g = torch.tensor(factor)
    packed, scale = nvfp4_math.quantize_reference(x, g)
    again, same = nvfp4_math.quantize_reference(nvfp4_math.dequantize(packed, scale, g), g)
    code = scale.view(torch.uint8)[:, 0]
    kept = (code == 0) | (code >= 3)
    assert kept.any() and (code == 0).any() and not kept.all()
    assert torch.equal(packed[kept], again[kept]) and torch.equal(code[kept], same.view(torch.uint8)[kept, 0])


def gemm_by_hand(x, w, w_scale, w_global_scale, input_scale=None):
    """float64, value by value from the bits."""

    def value(packed, scale, factor, row, column):
        code = int(packed[row, column // 2]) >> (4 * (column % 2)) & 15
        size = nvfp4_math.E2M1[code & 7] * float(scale[row, column // 16]) * float(factor)
        return -size if code & 8 else size

    n, k = w.shape[0], x.shape[-1]
    weight = [[value(w, w_scale, w_global_scale, row, column) for column in range(k)] for row in range(n)]
    rows = x.reshape(-1, k)
    if input_scale is not None:
        stored = nvfp4_math.quantize_reference(rows, input_scale)
        rows = torch.tensor(
            [[value(*stored, input_scale, row, column) for column in range(k)] for row in range(len(rows))]
        )
    product = rows.double().reshape(-1, k) @ torch.tensor(weight, dtype=torch.float64).T
    return product.view(*x.shape[:-1], n)


@pytest.mark.parametrize("nth", range(5))
def test_the_gemm_follows_the_definition(nth):
    call = list(nvfp4_math.gemm_examples())[nth]
    torch.testing.assert_close(nvfp4_math.gemm_reference(**call).double(), gemm_by_hand(**call), rtol=1e-5, atol=1e-5)


def test_an_input_scale_makes_it_w4a4_and_none_w4a16(monkeypatch):
    asked = []
    epoch.bump()  # no call is remembered
    monkeypatch.setattr(
        "kernelmux.ops.calls.select_backend", lambda *a, **k: asked.append(k["quant"]) or km.select_backend(*a, **k)
    )
    call = next(nvfp4_math.gemm_examples())
    both = km.ops.nvfp4_gemm(**call)
    weights_only = km.ops.nvfp4_gemm(**{**call, "input_scale": None})
    assert asked == ["nvfp4", "nvfp4_w4a16"]
    away = ((both - weights_only).norm() / weights_only.norm()).item()
    assert 0.02 < away < 0.2  # the noise of e2m1 activations


def test_a_selection_without_an_input_scale_leaves_x_alone():
    call = next(nvfp4_math.gemm_examples())
    x, _ = call.pop("x"), call.pop("input_scale")
    chosen = km.select_backend("nvfp4_gemm", device="cpu", quant="nvfp4_w4a16")
    assert torch.equal(chosen(x, chosen.prepare(**call)), km.ops.nvfp4_gemm(x, **call))


def good(**change):
    return {**next(nvfp4_math.gemm_examples()), **change}  # x [5, 64], w [48, 32], w_scale [48, 4]


E4 = torch.float8_e4m3fn
BAD = [
    ("nvfp4_gemm", good(x=torch.zeros(5, 128).bfloat16()), "x must be [..., 64]"),
    ("nvfp4_gemm", good(x=torch.zeros(5, 64)), "x must be bfloat16 or float16, not float32"),
    ("nvfp4_gemm", good(w=torch.zeros(48, 32)), "w must be uint8"),
    ("nvfp4_gemm", good(w=torch.zeros(48, 4, dtype=torch.uint8)), "K=8, two values a byte of w, must be a mul"),
    ("nvfp4_gemm", good(w_scale=torch.zeros(128, 4).to(E4)), "[N, K/16] = [48, 4], one scale a row and"),
    ("nvfp4_gemm", good(w_scale=torch.zeros(48, 4)), "w_scale must be float8_e4m3fn"),
    ("nvfp4_gemm", good(w_global_scale=torch.ones(2)), "w_global_scale must be one float32 number"),
    ("nvfp4_gemm", good(w_global_scale=torch.tensor(math.inf)), "w_global_scale must be a positive, finite number"),
    ("nvfp4_gemm", good(input_scale=torch.tensor(0.0)), "input_scale must be a positive, finite number"),
    ("nvfp4_gemm", good(input_scale=torch.ones((), device="meta")), "input_scale is on meta"),
    ("nvfp4_gemm", good(out_dtype=torch.int8), "out_dtype must be"),
    ("nvfp4_quantize", dict(x=torch.zeros(2, 24), global_scale=ONE), "K=24, the last size of x, must be a mul"),
    ("nvfp4_quantize", dict(x=torch.zeros(2, 32), global_scale=ONE.half()), "global_scale must be one float32 number"),
    ("nvfp4_quantize", dict(x=torch.zeros(2, 32), global_scale=ONE, layout="8x4"), "unknown layout '8x4'"),
]  # fmt: skip


@pytest.mark.parametrize(("op", "call", "words"), BAD, ids=[f"{op}: {words}" for op, _, words in BAD])
def test_an_argument_that_does_not_fit_is_named(op, call, words):
    with pytest.raises(BadShape) as error:
        getattr(km.ops, op)(**call)
    assert words in str(error.value)


def test_checked_mode_refuses_a_global_scale_that_is_no_number(monkeypatch):
    monkeypatch.setenv("KERNELMUX_CHECKED", "1")
    chosen = km.select_backend("nvfp4_quantize", device="cpu", dtype="float16", shape={"K": 48})
    with pytest.raises(BadShape, match="it is nan"):
        chosen(torch.zeros(2, 48).half(), global_scale=torch.tensor(math.nan))


def test_work_counts_what_must_move():
    gemm = Problem("nvfp4_gemm", Scheme.of("nvfp4"), "bfloat16", {"M": 1, "N": 4096, "K": 4096})
    assert nvfp4.gemm_work(gemm).bytes == 2 * 2 * 4096 + 4096 * 4096 * 9 / 16
    quantize = Problem("nvfp4_quantize", Scheme.of(None), "bfloat16", {"M": 2, "K": 64})
    assert nvfp4.quantize_work(quantize).bytes == 128 * (2 + 9 / 16)
