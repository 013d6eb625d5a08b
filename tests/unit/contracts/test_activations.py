"""The activations: references against the definitions in float64, which rounding each torch kernel does."""

import math

import pytest

torch = pytest.importorskip("torch", reason="torch runs the references")

import kernelmux as km  # noqa: E402
from kernelmux.backends.torch import activations as torch_activations  # noqa: E402
from kernelmux.contracts import activations, activations_math  # noqa: E402
from kernelmux.contracts.activation_table import Activation  # noqa: E402
from kernelmux.errors import BadShape  # noqa: E402
from kernelmux.quant import Scheme  # noqa: E402
from kernelmux.registry import Problem  # noqa: E402
from kernelmux.registry.lazy import load  # noqa: E402


def silu(v):
    return v / (1 + math.exp(-v))


def gelu(v):
    return v * math.erfc(-v / math.sqrt(2)) / 2


def gelu_tanh(v):
    return v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) / 2


ACT = {"silu_and_mul": silu, "gelu_and_mul": gelu, "gelu_tanh_and_mul": gelu_tanh}
GATED = pytest.mark.parametrize("op", ACT)


def act64(op, gate):
    return torch.tensor([ACT[op](v) for v in gate.flatten().tolist()], dtype=torch.float64).view(gate.shape)


@GATED
def test_a_gated_activation_follows_the_definition(op):
    for call in activations_math.gated_examples(dtype=torch.float32):
        gate, up = call["x"].double().chunk(2, dim=-1)
        got = getattr(activations_math, f"{op}_reference")(**call)
        torch.testing.assert_close(got.double(), act64(op, gate) * up, rtol=1e-5, atol=5e-6)


def test_relu2_follows_the_definition():
    for call in activations_math.unary_examples(dtype=torch.float32):
        want = [max(v, 0.0) ** 2 for v in call["x"].flatten().tolist()]
        got = activations_math.relu2_reference(**call)
        torch.testing.assert_close(got.flatten().double(), torch.tensor(want, dtype=torch.float64), rtol=1e-6, atol=0)


@GATED
def test_the_gate_is_the_first_half(op):
    x = torch.tensor([[2.0, 3.0, 10.0, 100.0]])
    want = torch.tensor([[ACT[op](2.0) * 10, ACT[op](3.0) * 100]], dtype=torch.float32)
    torch.testing.assert_close(getattr(km.ops, op)(x), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("order", ["cast_before_mul", "fp32_mul"])
@GATED
def test_a_gated_activation_rounds_as_it_declares(op, order, dtype):
    x = torch.randn(32, 512, generator=torch.Generator().manual_seed(1)).to(dtype)
    gate, up = x.double().chunk(2, dim=-1)
    exact = act64(op, gate)
    results = {
        "cast_before_mul": (exact.to(dtype).double() * up).to(dtype).double(),
        "fp32_mul": (exact * up).to(dtype).double(),
    }
    got = km.select_backend(op, device="cpu", dtype=dtype, backend="torch", demands=(order,))(x).double()
    own, other = results.pop(order), next(iter(results.values()))
    assert (own != other).double().mean() > 0.05, "the input does not tell the two apart"
    assert (got == own).double().mean() >= (0.999 if dtype == torch.bfloat16 else 0.995)
    assert (got - own).abs().sum() < 0.2 * (got - other).abs().sum()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_relu2_rounds_once(dtype):
    x = torch.randn(64, 256).to(dtype)
    assert torch.equal(km.ops.relu2(x).double(), x.double().relu().square().to(dtype).double())


def test_nan_and_infinity_pass_through():
    x = torch.tensor([[math.nan, math.inf, -math.inf, 1.0, 1.0, 1.0, 1.0, math.nan]])
    got = km.ops.silu_and_mul(x)[0]
    assert got[0].isnan() and got[1] == math.inf and got[3].isnan()
    assert km.ops.relu2(x)[0, :3].isnan().tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("op", "x", "words"),
    [
        ("silu_and_mul", torch.zeros(2, 7), "[2, 7] has an odd last size"),
        ("gelu_and_mul", torch.zeros(()), "x [..., 2H]"),
        ("gelu_tanh_and_mul", torch.zeros(2, 8, dtype=torch.int32), "not int32"),
        ("relu2", torch.zeros(8, 2).T, "contiguous (stride 1, not 2)"),
        ("relu2", torch.zeros(3, 0), "H of at least 1"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(op, x, words):
    with pytest.raises(BadShape) as error:
        getattr(km.ops, op)(x)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("op", "call", "words"),
    [
        ("silu_and_mul", dict(x=torch.zeros(2, 8), out=torch.zeros(2, 8)), "silu_and_mul: out must be [2, 4] float32"),
        ("relu2", dict(x=torch.zeros(2, 8), out=torch.zeros(2, 8).half()), "relu2: out must be [2, 8] float32; got"),
        ("gelu_and_mul", dict(x=torch.zeros(2, 8), out=torch.zeros(4, 2).T), "of out must be contiguous"),
        ("silu_and_mul_fp8", dict(x=torch.zeros(2, 192)), "H=96, half the last size of x, must be a multiple of 128"),
        ("silu_and_mul_fp8", dict(x=torch.zeros(2, 512), scale_out=torch.zeros(2, 1)), "scale_out must be [2, 2]"),
        ("silu_and_mul_fp8", dict(x=torch.zeros(2, 257)), "odd last size"),
    ],
)  # fmt: skip
def test_an_out_that_does_not_fit_is_named(op, call, words):
    with pytest.raises(BadShape) as error:
        getattr(activations_math, f"check_{op}")(**call)
    assert words in str(error.value)


@pytest.mark.parametrize("kernel", ["silu_and_mul[torch]", "gelu_and_mul[torch, cast_before_mul]", "relu2[torch]"])
def test_results_are_written_where_they_are_wanted(kernel):
    op = kernel.partition("[")[0]
    x = torch.randn(6, 64).bfloat16()
    run = km.select_backend(op, device="cpu", dtype="bfloat16", backend=f"kernelmux.{kernel}")
    want = run(x)
    buffer = torch.zeros(6, 80).bfloat16()
    out = buffer[:, : want.shape[1]]
    assert run(x, out=out) is out and torch.equal(out, want) and not buffer[:, want.shape[1] :].any()
    if op == "relu2":
        assert run(x, out=x) is x and torch.equal(x, want)


def test_no_other_name_is_made_up():
    for name in ("cosh_reference", "check_cosh", "silu_and_mul", "silu_and_mul_fp32_mul"):
        with pytest.raises(AttributeError):
            getattr(activations_math, name)


def test_one_line_and_its_formula_are_an_activation(monkeypatch):
    """What the framework makes of another line; its row in the registry is given by hand here."""
    line = Activation("swish2_and_mul", True, "silu(2 * gate) * up")
    op = activations._op(line)
    monkeypatch.setitem(activations_math.FORMULAS, line.name, lambda gate: torch.nn.functional.silu(2 * gate))
    monkeypatch.setitem(activations_math.IS_GATED, line.name, line.gated)
    x = torch.randn(4, 32)
    gate, up = x.chunk(2, dim=-1)
    want = 2 * gate * torch.sigmoid(2 * gate) / 2 * up
    torch.testing.assert_close(load(op.reference)(x) / 2, want)
    assert (
        load(op.meta)(x.to("meta")).shape == (4, 16)
        and op.summary == "silu(2 * gate) * up, for x [..., 2H] = [gate, up]"
    )
    with pytest.raises(BadShape, match="swish2_and_mul takes x"):
        load(op.check)(torch.zeros(3))
    torch.testing.assert_close(torch_activations.swish2_and_mul_fp32_mul(x) / 2, want)


def test_work_counts_what_must_move():
    problem = Problem("silu_and_mul", Scheme.of(None), "float16", {"M": 10, "H": 64})
    assert activations.gated_work(problem).bytes == 2 * 3 * 640
    assert activations.unary_work(problem).bytes == 2 * 2 * 640
    wide = problem.but(op="silu_and_mul_fp8", shape={"M": 10, "H": 256})
    assert activations.silu_and_mul_fp8_work(wide).bytes == 2 * 2 * 2560 + 2560 + 4 * 10 * 2
