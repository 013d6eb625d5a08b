"""The contract of fused_moe: shapes, reference, meta function, checks, work model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelmux.contracts.fused_moe import experts_hit, work
from kernelmux.contracts.moe_shape import ACTIVATIONS, MoeShape
from kernelmux.errors import BadShape
from kernelmux.quant import Scheme
from kernelmux.registry import Problem

sizes = st.integers(1, 5000)


@given(sizes, sizes, sizes, st.integers(1, 16), st.sampled_from(ACTIVATIONS))
def test_a_shape_reads_back_from_its_own_words(experts, inner, hidden, topk, activation):
    shape = MoeShape(max(experts, topk), inner, hidden, topk, activation)
    words = ",".join(shape.brief().split(",")[:4])
    assert MoeShape.parse(words, activation) == shape


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("E=128,N=384", "K, topk"),
        ("E=128,N=384,K=2048,topk", "'topk'"),
        ("E=128,E=64,N=384,K=2048,topk=8", "E is given twice"),
        ("E=0,N=384,K=2048,topk=8", "E=0"),
        ("E=4,N=384,K=2048,topk=8", "topk=8 exceeds E=4"),
        ("", "''"),
    ],
)
def test_a_malformed_shape_is_named_with_the_form(text, names):
    with pytest.raises(BadShape) as error:
        MoeShape.parse(text)
    assert names in str(error.value)


def test_gated_activations_double_the_up_projection():
    assert MoeShape(8, 10, 20, 2, "silu").gemm("up") == (20, 20)
    assert MoeShape(8, 10, 20, 2, "relu2").gemm("up") == (10, 20)
    assert MoeShape(8, 10, 20, 2, "relu2").gemm("down") == (20, 10)


def test_work_counts_each_visited_expert_once():
    shape = {"M": 1, "E": 128, "N": 384, "K": 2048, "topk": 1}
    one = work(Problem("fused_moe", Scheme.of(None), "bfloat16", shape, "silu"))
    assert one.flops == 2 * 3 * 384 * 2048
    assert one.bytes == pytest.approx(2 * (3 * 384 * 2048 + 2 * 2048))
    all_hit = work(Problem("fused_moe", Scheme.of(None), "bfloat16", {**shape, "M": 100000}, "silu"))
    assert all_hit.bytes == pytest.approx(2 * (128 * 3 * 384 * 2048 + 2 * 100000 * 2048))


@pytest.mark.parametrize(("scheme", "stored"), [("fp8_block", 1), ("int8_w8a16", 1), ("nvfp4", 0.5), ("mxfp4", 0.5)])
def test_work_counts_weights_as_they_are_stored(scheme, stored):
    shape = {"M": 100000, "E": 8, "N": 384, "K": 2048, "topk": 1}
    found = work(Problem("fused_moe", Scheme.of(scheme), "bfloat16", shape, "silu"))
    assert found.bytes == pytest.approx(stored * 8 * 3 * 384 * 2048 + 2 * 2 * 100000 * 2048)


@given(st.integers(1, 512), st.integers(0, 10000))
def test_experts_hit_lies_between_one_and_all(experts, pairs):
    assert 0 <= experts_hit(experts, pairs) <= min(experts, pairs) + 1e-6
