"""The norms: references against float64 loops, which rounding each torch kernel does, arguments that do not fit."""

import math
from fractions import Fraction

import pytest

torch = pytest.importorskip("torch", reason="torch runs the references")

import kernelmux as km  # noqa: E402
from kernelmux.contracts import norms, norms_math  # noqa: E402
from kernelmux.contracts.tensor_checks import row_stride  # noqa: E402
from kernelmux.errors import BadShape, NoKernel  # noqa: E402
from kernelmux.quant import Scheme  # noqa: E402
from kernelmux.registry import Problem  # noqa: E402


def by_hand(row, weight, eps, n_groups=1):
    """One row, number by number."""
    size = len(row) // n_groups
    out = []
    for group in range(n_groups):
        part = row[group * size : (group + 1) * size]
        root = math.sqrt(math.fsum(v * v for v in part) / size + eps)
        out += [v / root * w for v, w in zip(part, weight[group * size : (group + 1) * size], strict=True)]
    return out


def rows(tensor):
    return tensor.double().reshape(-1, tensor.shape[-1]).tolist()


@pytest.mark.parametrize("nth", range(6))
def test_rms_norm_follows_the_definition(nth):
    call = list(norms_math.rms_norm_examples(dtype=torch.float32))[nth]
    want = [by_hand(row, call["weight"].tolist(), call["eps"]) for row in rows(call["x"])]
    got = norms_math.rms_norm_reference(**call)
    assert got.shape == call["x"].shape and got.dtype == torch.float32
    torch.testing.assert_close(
        got.double(), torch.tensor(want, dtype=torch.float64).view(got.shape), rtol=2e-6, atol=1e-7
    )


def test_rms_norm_agrees_with_torch():
    x, weight = torch.randn(9, 80), torch.randn(80)
    want = torch.nn.functional.rms_norm(x, (80,), weight, 1e-5)
    torch.testing.assert_close(norms_math.rms_norm_reference(x, weight, 1e-5), want)


@pytest.mark.parametrize("nth", range(6))
def test_fused_add_returns_the_norm_of_the_sum_and_the_sum(nth):
    call = list(norms_math.fused_add_rms_norm_examples(dtype=torch.float32))[nth]
    got, total = norms_math.fused_add_rms_norm_reference(**call)
    torch.testing.assert_close(total, call["x"] + call["residual"])
    torch.testing.assert_close(got, norms_math.rms_norm_reference(total, call["weight"], call["eps"]))


@pytest.mark.parametrize("nth", range(6))
def test_gated_rms_norm_follows_the_definition(nth):
    call = list(norms_math.gated_rms_norm_examples(dtype=torch.float32))[nth]
    want = []
    for row, gate in zip(rows(call["x"]), rows(call["z"]), strict=True):
        gated = [v * z / (1 + math.exp(-z)) for v, z in zip(row, gate, strict=True)]
        want.append(by_hand(gated, call["weight"].tolist(), call["eps"], call["n_groups"]))
    got = norms_math.gated_rms_norm_reference(**call)
    torch.testing.assert_close(
        got.double(), torch.tensor(want, dtype=torch.float64).view(got.shape), rtol=3e-6, atol=1e-7
    )


# Which rounding a kernel does, judged by references of our own in float64 that round where the declaration says.


def rounded(values, dtype):
    """float64 -> dtype -> float64. torch's cast goes through float32, so its double rounding is ruled out here."""
    return values.to(dtype).double()


def expected(order, x, weight, eps, n_groups=1):
    parts = x.unflatten(-1, (n_groups, x.shape[-1] // n_groups))
    normal = (parts / (parts.square().mean(-1, keepdim=True) + eps).sqrt()).flatten(-2)
    dtype = weight.dtype
    if order == "cast_before_mul":
        normal = rounded(normal, dtype)
    return rounded(normal * weight.double(), dtype)


def ulps(got, want, dtype):
    """Distance in units of the last place of the wanted value."""
    unit = torch.finfo(dtype).eps * 2.0 ** want.abs().clamp_min(torch.finfo(dtype).tiny).log2().floor()
    return (got.double() - want).abs() / unit


def assert_is(got, own, other, dtype):
    exact = {torch.bfloat16: 0.999, torch.float16: 0.995}[dtype]
    assert (ulps(got, own, dtype) == 0).double().mean() >= exact
    assert (own != other).double().mean() > 0.02, "the input does not tell the two apart"
    assert (got.double() - own).abs().sum() < 0.2 * (got.double() - other).abs().sum()


def chosen(op, *demands):
    return km.select_backend(op, device="cpu", dtype="bfloat16", backend="torch", demands=demands)


ORDERS = {"cast_before_mul": "fp32_mul", "fp32_mul": "cast_before_mul"}
X, Z, RESIDUAL = (torch.randn(64, 1024, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2, 3))
WEIGHT = 1 + 0.5 * torch.randn(1024, generator=torch.Generator().manual_seed(4))
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])


@HALVES
@pytest.mark.parametrize("order", ORDERS)
def test_rms_norm_rounds_as_it_declares(order, dtype):
    x, weight = X.to(dtype), WEIGHT.to(dtype)
    got = chosen("rms_norm", order)(x, weight, eps=1e-6)
    own, other = (expected(which, x.double(), weight, 1e-6) for which in (order, ORDERS[order]))
    assert_is(got, own, other, dtype)


@HALVES
@pytest.mark.parametrize("n_groups", [1, 8])
@pytest.mark.parametrize("order", ORDERS)
def test_gated_rms_norm_rounds_as_it_declares_whatever_the_group_count(order, dtype, n_groups):
    x, z, weight = X.to(dtype), Z.to(dtype), WEIGHT.to(dtype)
    got = chosen("gated_rms_norm", order)(x, weight, z=z, eps=1e-6, n_groups=n_groups)
    gated = x.double() * z.double() * z.double().sigmoid()
    own, other = (expected(which, gated, weight, 1e-6, n_groups) for which in (order, ORDERS[order]))
    assert_is(got, own, other, dtype)


@HALVES
@pytest.mark.parametrize("kept", ["residual_rounded", "residual_fp32"])
@pytest.mark.parametrize("order", ORDERS)
def test_fused_add_rounds_as_it_declares(order, kept, dtype):
    x, residual, weight = X.to(dtype), (4 * RESIDUAL).to(dtype), WEIGHT.to(dtype)
    got, total = chosen("fused_add_rms_norm", order, kept)(x, weight, residual=residual, eps=1e-6)
    exact = x.double() + residual.double()
    assert torch.equal(total.double(), rounded(exact, dtype))
    sums = {"residual_rounded": rounded(exact, dtype), "residual_fp32": exact}
    own = expected(order, sums.pop(kept), weight, 1e-6)
    assert_is(
        got,
        own,
        expected(ORDERS[order], exact if kept == "residual_fp32" else rounded(exact, dtype), weight, 1e-6),
        dtype,
    )
    assert_is(got, own, expected(order, next(iter(sums.values())), weight, 1e-6), dtype)


def test_in_fp32_the_roundings_coincide():
    results = [chosen("rms_norm", order)(X, WEIGHT, eps=1e-6) for order in ORDERS]
    assert ulps(results[0], results[1].double(), torch.float32).max() <= 4


@pytest.mark.parametrize("op", ["rms_norm", "fused_add_rms_norm", "gated_rms_norm"])
def test_torch_alone_means_the_rounding_of_hugging_face(op):
    promises = chosen(op).declaration.numerics.promises
    assert "cast_before_mul" in promises and "residual_fp32" not in promises


def test_a_demand_nobody_makes_is_refused_with_what_is_promised():
    with pytest.raises(NoKernel, match="does not promise batch_invariant"):
        chosen("rms_norm", "batch_invariant")


def test_n_groups_of_gated_rms_norm_are_independent():
    x, z = torch.randn(3, 48), torch.randn(3, 48)
    whole = km.ops.gated_rms_norm(x, z, torch.ones(48), 1e-6, 3)
    parts = [
        km.ops.gated_rms_norm(a, b, torch.ones(16), 1e-6) for a, b in zip(x.split(16, 1), z.split(16, 1), strict=True)
    ]
    torch.testing.assert_close(whole, torch.cat(parts, dim=1))


def test_a_row_slice_of_a_larger_buffer_is_taken():
    buffer = torch.randn(6, 96)
    got = km.ops.rms_norm(buffer[:, :64], torch.ones(64))
    torch.testing.assert_close(got, torch.nn.functional.rms_norm(buffer[:, :64], (64,), eps=1e-6))


T = torch.zeros
ONE = T(2, 8)
BAD = [
    ("rms_norm", dict(x=T(()), weight=T(1)), "x [..., H]"),
    ("rms_norm", dict(x=T(2, 0), weight=T(0)), "H of at least 1"),
    ("rms_norm", dict(x=T(2, 8), weight=T(9)), "weight must be [8]"),
    ("rms_norm", dict(x=T(2, 8), weight=T(8).half()), "weight must have x's dtype, float32, not float16"),
    ("rms_norm", dict(x=T(2, 8).double(), weight=T(8).double()), "must be bfloat16, float16 or float32, not float64"),
    ("rms_norm", dict(x=T(8, 2).T, weight=T(8)), "must be contiguous (stride 1, not 2)"),
    ("rms_norm", dict(x=T(2, 8), weight=T(8), eps=-1e-6), "eps=-1e-06"),
    ("rms_norm", dict(x=T(2, 8), weight=T(8), eps=math.nan), "eps=nan"),
    ("rms_norm", dict(x=T(2, 8), weight=T(8, device="meta")), "weight is on meta and x on cpu"),
    ("fused_add_rms_norm", dict(x=T(2, 8), residual=T(3, 8), weight=T(8)), "residual must be like x, [2, 8] float32"),
    ("gated_rms_norm", dict(x=T(2, 8), z=T(2, 8).half(), weight=T(8)), "z must be like x"),
    ("gated_rms_norm", dict(x=T(2, 8), z=T(2, 8), weight=T(8), n_groups=3), "n_groups=3 must divide H=8"),
    ("gated_rms_norm", dict(x=T(2, 8), z=T(2, 8), weight=T(8), n_groups=0), "n_groups=0"),
    ("rms_norm", dict(x=T(2, 8), weight=T(8), weight_bias=0.5), "weight_bias=0.5 must be 0"),
    ("rms_norm", dict(x=T(2, 8), weight=T(8), out=T(2, 9)), "out must be [2, 8] float32; got [2, 9]"),
    ("rms_norm", dict(x=T(2, 8), weight=T(8), out=T(2, 8).half()), "out must be [2, 8] float32; got [2, 8] float16"),
    ("rms_norm", dict(x=T(2, 8), weight=T(8), out=T(2, 8, device="meta")), "out is on meta and x on cpu"),
    ("rms_norm", dict(x=T(2, 8), weight=T(8), out=T(8, 2).T), "the last dimension of out must be contiguous"),
    ("rms_norm", dict(x=T(2, 8), weight=T(8), out=T(1, 8).expand(2, 8)), "at least 8, not strides [0, 1]"),
    ("rms_norm", dict(x=T(2, 3, 8), weight=T(8), out=T(3, 2, 8).transpose(0, 1)), "must lie at one stride"),
    ("fused_add_rms_norm", dict(x=T(2, 8), residual=T(2, 8), weight=T(8), residual_out=T(8)), "residual_out must be"),
    ("fused_add_rms_norm", dict(x=T(2, 8), residual=T(2, 8), weight=T(8), out=ONE, residual_out=ONE), "are one"),
    ("gated_rms_norm", dict(x=T(2, 8), z=T(2, 8), weight=T(8), out=T(8)), "gated_rms_norm: out must be [2, 8]"),
    ("rms_norm_fp8", dict(x=T(2, 8), weight=T(8), scale=T(2)), "scale must be one float32 number, [] or [1]"),
    ("rms_norm_fp8", dict(x=T(2, 8), weight=T(8), scale=T(1).half()), "got [1] float16"),
    ("rms_norm_fp8", dict(x=T(2, 8), weight=T(8), scale=T(1, device="meta")), "scale is on meta and x on cpu"),
    ("rms_norm_fp8", dict(x=T(2, 8), weight=T(8), out=T(2, 8)), "out must be [2, 8] float8_e4m3fn; got [2, 8] float32"),
    ("rms_norm_fp8", dict(x=T(2, 8), weight=T(8), scale_out=T(2)), "scale_out must be [2, 1] float32; got [2]"),
    ("rms_norm_fp8", dict(x=T(2, 8), weight=T(8), scale=T(()), scale_out=T(1)), "scale_out must be [] float32"),
]  # fmt: skip


@pytest.mark.parametrize(("op", "call", "words"), BAD, ids=[f"{op}: {words}" for op, _, words in BAD])
def test_an_argument_that_does_not_fit_is_named(op, call, words):
    check = getattr(norms_math, f"check_{op}")
    with pytest.raises(BadShape) as error:
        check(**call)
    assert words in str(error.value)


OUTS = [
    T(4, 16)[:, 8:],  # a slice of rows
    T(4, 8),
    T(2, 4, 8)[1],
    T(8, 8)[::2],
]


@pytest.mark.parametrize("out", OUTS)
def test_an_out_may_be_a_slice_of_rows(out):
    norms_math.check_rms_norm(T(4, 8), T(8), out=out)
    norms_math.check_rms_norm(T(2, 2, 8), T(8), out=T(2, 2, 16)[..., :8])


def test_rows_are_counted_over_every_leading_dimension():
    heads = T(2, 3, 40)[..., :32].view(2, 3, 4, 8)  # the queries of a fused QKV
    assert row_stride(heads) is None
    assert row_stride(T(2, 3, 8)) == 8 and row_stride(T(2, 3, 16)[..., :8]) == 16
    assert row_stride(T(2, 6, 8)[:, ::2]) == 16 and row_stride(T(2, 5, 8)[:, ::2]) is None
    assert row_stride(T(2, 3, 8).transpose(0, 1)) is None
    assert row_stride(T(8)) == row_stride(T(1, 1, 8)) == 0 and row_stride(T(1, 5, 8)[:, 1:3]) == 8


@pytest.mark.parametrize("order", ORDERS)
def test_gemmas_weight_is_one_more_in_fp32(order):
    x, weight = X.bfloat16(), (0.1 * WEIGHT).bfloat16()
    got = chosen("rms_norm", order)(x, weight, eps=1e-6, weight_bias=1.0)
    normal = norms_math.normalise(x, 1e-6)
    if order == "cast_before_mul":
        normal = normal.bfloat16().float()
    assert torch.equal(got, (normal * (1 + weight.float())).bfloat16())
    in_bf16 = (normal * (1 + weight).float()).bfloat16()
    assert (got != in_bf16).any(), "1 + w in bf16 would lose the weight's last places"


@pytest.mark.parametrize("order", ORDERS)
def test_results_are_written_where_they_are_wanted(order):
    x, weight = X[:6].bfloat16(), WEIGHT.bfloat16()
    run = chosen("rms_norm", order)
    want, buffer = run(x, weight), torch.zeros(6, 2048, dtype=torch.bfloat16)
    out = buffer[:, 1024:]
    assert run(x, weight, out=out) is out and torch.equal(out, want) and not buffer[:, :1024].any()
    same = x.clone()
    assert run(same, weight, out=same) is same and torch.equal(same, want)
    gated = chosen("gated_rms_norm", order)
    z = Z[:6].bfloat16()
    want, same = gated(x, weight, z=z, n_groups=4), x.clone()
    assert torch.equal(gated(same, weight, z=z, n_groups=4, out=same), want)


@pytest.mark.parametrize("kept", ["residual_rounded", "residual_fp32"])
def test_fused_add_in_place(kept):
    x, residual, weight = X[:6].bfloat16(), (4 * RESIDUAL[:6]).bfloat16(), WEIGHT.bfloat16()
    run = chosen("fused_add_rms_norm", kept)
    want = run(x, weight, residual=residual)
    run(x, weight, residual=residual, out=x, residual_out=residual)
    assert torch.equal(x, want[0]) and torch.equal(residual, want[1])


def test_work_counts_what_must_move():
    problem = Problem("rms_norm", Scheme.of(None), "bfloat16", {"M": (1, 10), "H": 64})
    assert norms.rms_norm_work(problem).bytes == 2 * (2 * 10 + 1) * 64
    assert norms.fused_add_rms_norm_work(problem).bytes == 2 * (4 * 10 + 1) * 64
    assert norms.gated_rms_norm_work(problem.but(dtype="float32")).bytes == 4 * (3 * 10 + 1) * 64
    assert Fraction(norms.rms_norm_work(problem).flops) == 4 * 640
    assert norms.rms_norm_fp8_work(problem).bytes == 2 * 11 * 64 + 640 + 4 * 10
