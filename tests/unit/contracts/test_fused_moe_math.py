"""fused_moe in torch: the reference against a direct loop, the torch kernel, the op, the argument checks."""

import pytest

torch = pytest.importorskip("torch", reason="torch runs the reference")

import kernelmux as km  # noqa: E402
from kernelmux.backends.torch import fused_moe as torch_kernel  # noqa: E402
from kernelmux.contracts.fused_moe import OP  # noqa: E402
from kernelmux.contracts.fused_moe_math import check_values, examples, meta, reference, routing  # noqa: E402
from kernelmux.errors import BadShape  # noqa: E402

CALLS = {f"{call['activation']}-{call['x'].shape[0]}": call for call in examples(dtype=torch.float32)}


def by_hand(x, w1, w2, topk_weights, topk_ids, activation, factor=1.0, on_input=False):
    """Token by token in float64, straight from the definition."""
    import torch.nn.functional as F

    out = torch.zeros(x.shape, dtype=torch.float64)
    for token in range(x.shape[0]):
        for weight, expert in zip(topk_weights[token].double(), topk_ids[token].tolist(), strict=True):
            row = x[token].double() * (weight if on_input else 1.0)
            hidden = w1[expert].double() @ row
            if activation == "relu2":
                inner = F.relu(hidden) ** 2
            else:
                gate, up = hidden.chunk(2)
                how = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda g: F.gelu(g, approximate="tanh")}
                inner = how[activation](gate) * up
            out[token] += (1.0 if on_input else weight) * (w2[expert].double() @ inner)
    return out * factor


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("on_input", [False, True])
def test_the_reference_follows_the_definition(name, on_input):
    call = CALLS[name]
    got = reference(**call, routed_scaling_factor=2.5, apply_router_weight_on_input=on_input)
    torch.testing.assert_close(got.double(), by_hand(**call, factor=2.5, on_input=on_input), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("nth", range(len(CALLS)))
def test_the_torch_kernel_stays_inside_the_declared_tolerance(nth, dtype):
    call = list(examples(dtype=dtype))[nth]
    want = reference(**call)
    call = dict(call)
    got = torch_kernel.run(call.pop("x"), (call.pop("w1"), call.pop("w2")), **call)
    assert got.dtype == dtype and got.shape == want.shape
    if got.numel():
        error = ((got.float() - want).norm(dim=1) / want.norm(dim=1)).max()
        assert error <= OP.tolerance[str(dtype).removeprefix("torch.")].rtol


@pytest.mark.parametrize("name", CALLS)
def test_the_op_selects_and_runs_and_its_meta_function_agrees(name):
    call = CALLS[name]
    got = km.ops.fused_moe(**call)
    torch.testing.assert_close(got, reference(**call), rtol=1e-4, atol=1e-5)
    shape = meta(**{key: value.to("meta") if isinstance(value, torch.Tensor) else value for key, value in call.items()})
    assert shape.shape == got.shape and shape.dtype == got.dtype


def test_the_op_is_a_torch_op_that_opcheck_accepts():
    call = CALLS["silu-37"]
    assert km.ops.fused_moe.__name__ == "fused_moe"
    torch.library.opcheck(torch.ops.kernelmux.fused_moe.default, tuple(call.values()))


def test_the_op_traces_without_breaking_the_graph():
    call = CALLS["relu2-33"]
    compiled = torch.compile(
        lambda x: km.ops.fused_moe(x, *list(call.values())[1:]) * 2, backend="eager", fullgraph=True
    )
    torch.testing.assert_close(compiled(call["x"]), 2 * reference(**call), rtol=1e-4, atol=1e-5)


def test_a_selection_applies_its_own_activation():
    call = dict(CALLS["relu2-33"])
    chosen = km.select_backend("fused_moe", device="cpu", dtype="float32", activation="relu2")
    weights = chosen.prepare(w1=call.pop("w1"), w2=call.pop("w2"))
    call.pop("activation")
    got = chosen(call.pop("x"), weights, **call)
    torch.testing.assert_close(got, reference(**CALLS["relu2-33"]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"activation": "tanh"}, "unknown activation 'tanh'"),
        ({"activation": "relu2"}, "asks for w1"),
        ({"x": torch.zeros(37, 65)}, "x [M, 64]"),
        ({"x": torch.zeros(36, 64)}, "M = 36"),
        ({"x": torch.zeros(37, 64, dtype=torch.float16)}, "share one dtype"),
        ({"topk_ids": torch.zeros(37, 2)}, "int32 or int64"),
        ({"w1": torch.zeros(8, 96)}, "takes x [M, K]"),
        ({"expert_map": torch.zeros(8)}, "expert_map"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(change, words):
    with pytest.raises(BadShape, match=".*") as error:
        km.ops.fused_moe(**{**CALLS["silu-37"], **change})
    assert words in str(error.value)


def test_checked_mode_names_the_id_out_of_range(monkeypatch):
    call = dict(CALLS["silu-37"])
    call["topk_ids"] = call["topk_ids"].clone()
    call["topk_ids"][5, 1] = 8
    monkeypatch.setenv("KERNELMUX_CHECKED", "1")
    chosen = km.select_backend(
        "fused_moe", device="cpu", dtype="float32", shape={"topk": 2, "N": 48}, activation="silu"
    )
    weights = chosen.prepare(w1=call.pop("w1"), w2=call.pop("w2"))
    with pytest.raises(BadShape, match=r"topk_ids\[5, 1\] = 8 is outside 0\.\.7"):
        chosen(call.pop("x"), weights, **call)


def test_checked_mode_accepts_what_is_right():
    call = dict(CALLS["silu-37"])
    weights = (call.pop("w1"), call.pop("w2"))
    check_values(call.pop("x"), weights, **call)


@pytest.mark.parametrize(("tokens", "experts", "topk"), [(1, 8, 8), (50, 16, 4), (0, 4, 1)])
def test_routing_is_renormalised_distinct_and_leaves_the_idle_expert_alone(tokens, experts, topk):
    weights, ids = routing(tokens, experts, topk, seed=3, device="cpu", skew=1.0, idle=True)
    assert weights.shape == ids.shape == (tokens, topk)
    torch.testing.assert_close(weights.sum(1), torch.ones(tokens))
    assert all(len(set(row)) == topk for row in ids.tolist())
    if topk < experts:
        assert (ids < experts - 1).all()
