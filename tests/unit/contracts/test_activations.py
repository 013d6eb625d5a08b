"""The activations: references against the definitions in float64, which rounding each torch kernel does."""

import math

import pytest

torch = pytest.importorskip("torch", reason="torch runs the references")

import kernelmux as km  # noqa: E402
from kernelmux.contracts import activations, activations_math  # noqa: E402
from kernelmux.errors import BadShape  # noqa: E402
from kernelmux.quant import Scheme  # noqa: E402
from kernelmux.registry import Problem  # noqa: E402


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


def test_work_counts_what_must_move():
    problem = Problem("silu_and_mul", Scheme.of(None), "float16", {"M": 10, "H": 64})
    assert activations.gated_work(problem).bytes == 2 * 3 * 640
    assert activations.unary_work(problem).bytes == 2 * 2 * 640
