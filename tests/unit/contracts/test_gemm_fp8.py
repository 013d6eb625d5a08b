"""fp8_gemm: the reference against a loop over scales in float64, quantization of x, arguments that do not fit."""

import pytest

torch = pytest.importorskip("torch", reason="torch runs the reference")

import kernelmux as km  # noqa: E402
from kernelmux.contracts import gemm_fp8, gemm_fp8_math  # noqa: E402
from kernelmux.errors import BadShape, NoKernel  # noqa: E402
from kernelmux.quant import Scheme  # noqa: E402
from kernelmux.registry import Problem, epoch  # noqa: E402

FP8 = torch.float8_e4m3fn
DTYPES = [torch.bfloat16, torch.float16, FP8]
EXAMPLES = range(7)


def nth_call(nth, dtype):
    return list(gemm_fp8_math.examples(dtype=dtype))[nth]


def by_hand(x, w, w_scale, x_scale=None):
    """[M, N] float64: products summed a block of 128 columns at a time, each with its own two scales."""
    m, k = x.shape
    n = w.shape[0]
    blocked = w_scale.dim() == 2 and tuple(w_scale.shape) != (n, 1)
    out = torch.zeros(m, n, dtype=torch.float64)
    for start in range(0, k, 128):
        part = slice(start, min(start + 128, k))
        if x.dtype == FP8:
            by_row = (
                x_scale.reshape(-1, 1) if x_scale.numel() in (1, m) else x_scale[:, start // 128 : start // 128 + 1]
            )
            values = x[:, part].double()
        else:
            largest = (x[:, part] if blocked else x).float().abs().amax(1, keepdim=True)
            largest = largest.amax() if w_scale.numel() == 1 else largest
            by_row = x_scale if x_scale is not None else largest.clamp_min(1e-10) / 448
            values = (x[:, part].float() / by_row).clamp(-448, 448).to(FP8).double()
        for column in range(n):
            if blocked:
                scale = w_scale[column // 128, start // 128]
            else:
                scale = w_scale.reshape(-1)[column if w_scale.numel() > 1 else 0]
            out[:, column] += (
                (values @ w[column, part].double()) * by_row.double().reshape(-1).expand(m) * scale.double()
            )
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("nth", EXAMPLES)
def test_the_reference_follows_the_definition(nth, dtype):
    call = nth_call(nth, dtype)
    got = gemm_fp8_math.reference(**call)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), by_hand(**call), rtol=1e-5, atol=1e-5)


def test_a_quantized_weight_reads_back_near_itself():
    weight = torch.randn(200, 300)
    for scheme, shape in (("fp8_tensor", ()), ("fp8_channel", (200,)), ("fp8_block", (2, 3))):
        stored, scale = gemm_fp8_math.quantize_weight(weight, scheme)
        assert scale.shape == shape and gemm_fp8.scheme_of(w=stored, w_scale=scale) == scheme
        back = gemm_fp8_math.dequantize_weight(stored, scale, scheme)
        assert ((back - weight).norm() / weight.norm()) < 0.04


def test_x_quantized_outside_and_inside_give_the_same():
    call = nth_call(2, torch.bfloat16)
    stored, scale = gemm_fp8_math.quantize_input(call["x"], "fp8_channel")
    inside = km.ops.fp8_gemm(**call)
    assert torch.equal(inside, km.ops.fp8_gemm(stored, call["w"], call["w_scale"], scale))


def test_a_static_scale_saturates_what_lies_above_it():
    x = torch.full((1, 16), 1000.0).bfloat16()
    w = torch.ones(16, 16).to(FP8)
    assert km.ops.fp8_gemm(x, w, torch.ones(()), torch.ones(()))[0, 0] == 448 * 16


def test_rows_of_zeros_give_zeros():
    w, scale = gemm_fp8_math.quantize_weight(torch.randn(16, 128), "fp8_block")
    assert torch.equal(km.ops.fp8_gemm(torch.zeros(2, 128).bfloat16(), w, scale), torch.zeros(2, 16).bfloat16())


def test_leading_dimensions_and_the_output_dtype():
    call = nth_call(1, torch.bfloat16)
    flat = km.ops.fp8_gemm(**call, out_dtype=torch.float32)
    assert flat.dtype == torch.float32
    call["x"] = call["x"].view(2, 8, 256)
    assert torch.equal(km.ops.fp8_gemm(**call, out_dtype=torch.float32), flat.view(2, 8, 64))
    assert km.ops.fp8_gemm(*nth_call(1, FP8).values()).dtype == torch.bfloat16


@pytest.mark.parametrize(("nth", "scheme"), [(0, "fp8_tensor"), (2, "fp8_channel"), (3, "fp8_block")])
def test_the_scales_name_the_scheme_that_is_selected(nth, scheme, monkeypatch):
    asked = []
    epoch.bump()  # no call is remembered
    monkeypatch.setattr(
        "kernelmux.ops.calls.select_backend", lambda *a, **k: asked.append(k["quant"]) or km.select_backend(*a, **k)
    )
    km.ops.fp8_gemm(**nth_call(nth, torch.bfloat16))
    assert asked == [scheme]


def test_unquantized_weights_are_no_problem_of_this_op():
    with pytest.raises(NoKernel, match="fp8_gemm is not defined for quant none"):
        km.select_backend("fp8_gemm", device="cpu")


X, W, ONE = torch.zeros(4, 256).bfloat16(), torch.zeros(128, 256).to(FP8), torch.ones(())
BAD = [
    (dict(x=X[:, :64], w=W, w_scale=ONE), "x [..., K] and w [N, K]"),
    (dict(x=X.float(), w=W, w_scale=ONE), "x must be bfloat16, float16 or float8_e4m3fn, not float32"),
    (dict(x=X, w=W.float(), w_scale=ONE), "w must be float8_e4m3fn"),
    (dict(x=X, w=W, w_scale=ONE.half()), "w_scale must be float32"),
    (dict(x=X, w=W, w_scale=torch.ones(2, 2)), "[128] (channel) or [1, 2] (blocks of 128 x 128); got [2, 2]"),
    (dict(x=X.to(FP8), w=W, w_scale=ONE), "needs its x_scale"),
    (dict(x=X, w=W, w_scale=ONE, x_scale=torch.ones(4, 1)), "must be [] or [1]; got [4, 1]"),
    (dict(x=X.to(FP8), w=W, w_scale=ONE, x_scale=torch.ones(4, 2)), "[4] or [4, 1]; got [4, 2]"),
    (dict(x=X, w=W, w_scale=ONE, out_dtype=torch.int8), "out_dtype must be"),
    (dict(x=X, w=torch.zeros(256, 128).to(FP8).T, w_scale=ONE), "dimension of w must be contiguous"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "words"), BAD, ids=[words for _, words in BAD])
def test_an_argument_that_does_not_fit_is_named(call, words):
    with pytest.raises(BadShape) as error:
        km.ops.fp8_gemm(**call)
    assert words in str(error.value)


def test_work_counts_what_must_move():
    problem = Problem("fp8_gemm", Scheme.of("fp8_block"), "bfloat16", {"M": 16, "N": 4096, "K": 2048})
    assert gemm_fp8.work(problem).flops == 2 * 16 * 4096 * 2048
    assert gemm_fp8.work(problem).bytes == 2 * 16 * 2048 + 4096 * 2048 + 2 * 16 * 4096
