"""router_gemm and topk: the references against loops, the rules of choice, arguments that do not fit."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="torch runs the references")

import kernelmux as km  # noqa: E402
from kernelmux.contracts import router, router_math  # noqa: E402
from kernelmux.errors import BadShape  # noqa: E402
from kernelmux.quant import Scheme  # noqa: E402
from kernelmux.registry import Problem  # noqa: E402


def by_hand(
    logits, bias=None, *, topk, scoring="softmax", renormalize=True, n_group=1, topk_group=1, routed_scaling_factor=1.0
):
    """One token, number by number: (weights, ids)."""
    values = [float(v) for v in logits]
    if scoring == "sigmoid":
        scores = [1 / (1 + math.exp(-v)) for v in values]
    else:
        top = max(values)
        total = math.fsum(math.exp(v - top) for v in values)
        scores = [math.exp(v - top) / total for v in values]
    choice = scores if bias is None else [s + float(b) for s, b in zip(scores, bias, strict=True)]
    size = len(values) // n_group
    groups = [range(g * size, (g + 1) * size) for g in range(n_group)]
    best = 1 if bias is None else 2
    merit = [sum(sorted((choice[e] for e in group), reverse=True)[:best]) for group in groups]
    kept = sorted(range(n_group), key=lambda g: -merit[g])[:topk_group]
    candidates = [expert for group in sorted(kept) for expert in groups[group]]
    ids = sorted(candidates, key=lambda e: -choice[e])[:topk]
    weights = [scores[e] for e in ids]
    if renormalize:
        total = sum(weights)
        weights = [w / total for w in weights]
    return [w * routed_scaling_factor for w in weights], ids


@pytest.mark.parametrize("nth", range(7))
def test_topk_follows_the_definition(nth):
    call = list(router_math.topk_examples())[nth]
    logits, options = call["logits"], {key: value for key, value in call.items() if key != "logits"}
    weights, ids = router_math.topk_reference(**call)
    assert weights.dtype == torch.float32 and ids.dtype == torch.int32
    assert weights.shape == ids.shape == (logits.shape[0], call["topk"])
    for row in range(logits.shape[0]):
        want_weights, want_ids = by_hand(logits[row], **options)
        assert ids[row].tolist() == want_ids
        torch.testing.assert_close(
            weights[row].double(), torch.tensor(want_weights, dtype=torch.float64), rtol=1e-5, atol=1e-8
        )


LOGITS = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
BIAS = torch.randn(16, generator=torch.Generator().manual_seed(1))


def test_the_bias_decides_who_is_chosen_and_is_in_no_weight():
    weights, ids = km.ops.topk(LOGITS, BIAS, topk=3, scoring="sigmoid", renormalize=False)
    assert torch.equal(weights, LOGITS.sigmoid().gather(1, ids.long()))
    assert torch.equal(ids.long().sort().values, (LOGITS.sigmoid() + BIAS).topk(3).indices.sort().values)
    assert not torch.equal(ids, km.ops.topk(LOGITS, topk=3, scoring="sigmoid")[1])


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_the_scaling_factor_is_applied_exactly_once(scoring, renormalize):
    plain, ids = km.ops.topk(LOGITS, topk=4, scoring=scoring, renormalize=renormalize)
    scaled, same = km.ops.topk(LOGITS, topk=4, scoring=scoring, renormalize=renormalize, routed_scaling_factor=2.5)
    assert torch.equal(ids, same) and torch.equal(scaled, plain * 2.5)
    if renormalize:
        torch.testing.assert_close(scaled.sum(1), torch.full((40,), 2.5))


def test_the_weights_of_topk_and_the_factor_of_fused_moe_are_one_factor():
    x, w1, w2 = torch.randn(40, 8), torch.randn(16, 12, 8), torch.randn(16, 8, 6)
    scaled, ids = km.ops.topk(LOGITS, topk=2, routed_scaling_factor=2.5)
    plain, _ = km.ops.topk(LOGITS, topk=2)
    torch.testing.assert_close(
        km.ops.fused_moe(x, w1, w2, scaled, ids), km.ops.fused_moe(x, w1, w2, plain, ids, routed_scaling_factor=2.5)
    )


@given(st.integers(1, 6), st.integers(1, 5), st.data())
def test_only_experts_of_the_best_groups_are_chosen(n_group, size, data):
    kept = data.draw(st.integers(1, n_group))
    chosen = data.draw(st.integers(1, kept * size))
    biased = data.draw(st.booleans())
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    logits = torch.randn(4, n_group * size, generator=generator)
    bias = torch.randn(n_group * size, generator=generator) - 3 if biased else None  # every choice value negative
    options = dict(topk=chosen, scoring="sigmoid", n_group=n_group, topk_group=kept)
    _, ids = router_math.topk_reference(logits, bias, **options)
    for row in range(4):
        assert len(set(ids[row].tolist())) == chosen
        assert len({expert // size for expert in ids[row].tolist()}) <= kept
        assert ids[row].tolist() == by_hand(logits[row].double(), bias, **options)[1]


def test_equal_logits_go_to_the_lower_id():
    assert km.ops.topk(torch.zeros(2, 64), topk=5)[1].tolist() == [[0, 1, 2, 3, 4]] * 2


def test_weights_that_have_all_underflowed_stay_finite():
    weights, _ = km.ops.topk(torch.full((1, 4), -200.0), topk=2, scoring="sigmoid")
    assert weights.isfinite().all()


@pytest.mark.parametrize("nth", range(4))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_router_gemm_keeps_fp32(nth, dtype):
    call = list(router_math.router_gemm_examples(dtype=dtype))[nth]
    got = km.ops.router_gemm(**call)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), call["x"].double() @ call["w"].double().T, rtol=1e-5, atol=1e-5)


def test_router_gemm_rounds_no_logit_to_bf16():
    x, w = torch.randn(8, 64).bfloat16(), torch.randn(8, 64).bfloat16()
    got = km.ops.router_gemm(x, w)
    assert (got != got.bfloat16().float()).float().mean() > 0.9


L = torch.zeros(2, 8)
BAD = [
    ("topk", dict(logits=L[0], topk=2), "logits [M, E]"),
    ("topk", dict(logits=L.int(), topk=2), "not int32"),
    ("topk", dict(logits=L, topk=0), "topk=0"),
    ("topk", dict(logits=L, topk=9), "at most 8"),
    ("topk", dict(logits=L, topk=5, n_group=4, topk_group=2), "at most 4, the experts of 2 of 4 groups"),
    ("topk", dict(logits=L, topk=2, n_group=3), "n_group=3 must divide E=8"),
    ("topk", dict(logits=L, topk=2, n_group=2, topk_group=3), "topk_group=3"),
    ("topk", dict(logits=L, topk=2, scoring="relu"), "unknown scoring 'relu'; use one of softmax, sigmoid"),
    ("topk", dict(logits=L, bias=torch.zeros(7), topk=2), "bias must be [8]"),
    ("router_gemm", dict(x=L, w=torch.zeros(4, 9)), "w [N, K]"),
    ("router_gemm", dict(x=L, w=torch.zeros(4, 8).half()), "w must have x's dtype"),
    ("router_gemm", dict(x=L, w=torch.zeros(8, 4).T), "dimension of w must be contiguous"),
]  # fmt: skip


@pytest.mark.parametrize(("op", "call", "words"), BAD, ids=[f"{op}: {words}" for op, _, words in BAD])
def test_an_argument_that_does_not_fit_is_named(op, call, words):
    with pytest.raises(BadShape) as error:
        getattr(km.ops, op)(**call)
    assert words in str(error.value)


def test_work_counts_what_must_move():
    gemm = Problem("router_gemm", Scheme.of(None), "bfloat16", {"M": 10, "N": 128, "K": 2048})
    assert router.router_gemm_work(gemm).flops == 2 * 10 * 128 * 2048
    assert router.router_gemm_work(gemm).bytes == 2 * (10 + 128) * 2048 + 4 * 10 * 128
    choice = Problem("topk", Scheme.of(None), "float32", {"M": 10, "E": 128, "topk": 8})
    assert router.topk_work(choice).bytes == 4 * 1280 + 8 * 80
