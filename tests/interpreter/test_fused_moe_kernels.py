"""The Triton fused MoE kernels, interpreted: numbers against the fp32 reference."""

from types import SimpleNamespace

import pytest
import torch

from kernelmux.backends.triton import fused_moe, moe_launch
from kernelmux.backends.triton.moe_rules import SortPlan, direct
from kernelmux.contracts.fused_moe import OP
from kernelmux.contracts.fused_moe_math import examples, local_experts, reference, routing
from kernelmux.contracts.moe_shape import GATED, MoeShape
from kernelmux.tuning_configs.tile import Tile

LIMIT = OP.tolerance["float16"].rtol


def config(block_m, block_n=32, block_k=32, group=2):
    return SimpleNamespace(
        up=Tile(block_m, block_n, block_k, group, 4, 2), down=Tile(block_m, block_n, block_k, 1, 4, 2)
    )


def worst_row(got, want):
    return float(((got.float() - want).norm(dim=1) / want.norm(dim=1).clamp_min(1e-12)).max())


def draw(tokens, experts, inner, hidden, topk, activation, dtype, seed=0, **how):
    generator = torch.Generator().manual_seed(seed)
    up = inner * (2 if activation in GATED else 1)
    weights, ids = routing(tokens, experts, topk, seed=seed, device="cpu", **how)

    def normal(*size, scale=1.0):
        return (torch.randn(*size, generator=generator) * scale).to(dtype)

    return dict(
        x=normal(tokens, hidden), w1=normal(experts, up, hidden, scale=hidden**-0.5),
        w2=normal(experts, hidden, inner, scale=inner**-0.5), topk_weights=weights, topk_ids=ids, activation=activation,
    )  # fmt: skip


def run(call, cfg, **more):
    call = dict(call)
    weights = fused_moe.MoeWeights(call.pop("w1"), call.pop("w2"))
    return fused_moe.run(call.pop("x"), weights, config=cfg, **call, **more)


@pytest.mark.parametrize("block_m", [16, 32])
@pytest.mark.parametrize("nth", range(6))
def test_every_example_of_the_contract_matches_the_reference(nth, block_m, float16):
    call = list(examples(dtype=float16))[nth]
    got = run(call, config(block_m))
    assert got.shape == call["x"].shape and got.dtype == float16
    if got.numel():
        assert worst_row(got, reference(**call)) <= LIMIT


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu2"])
def test_uneven_routing_with_an_idle_expert_and_odd_sizes(activation, float16):
    # N and K are no multiple of any block; 45 tokens are no multiple of BLOCK_SIZE_M.
    call = draw(45, 6, 40, 72, 2, activation, float16, skew=2.0, idle=True)
    counts = torch.bincount(call["topk_ids"].flatten().long(), minlength=6)
    assert counts[-1] == 0 and counts.max() > 3 * counts[:-1].min()
    assert worst_row(run(call, config(16, 64, 64)), reference(**call)) <= LIMIT


@pytest.mark.parametrize("activation", ["silu", "relu2"])
def test_tiles_loaded_by_tensor_descriptor_match_too(activation, float16):
    call = draw(45, 6, 40, 72, 2, activation, float16, skew=2.0, idle=True)
    cfg = SimpleNamespace(up=Tile(32, 64, 32, 2, 4, 2, True), down=Tile(32, 32, 64, 1, 4, 2, True))
    assert worst_row(run(call, cfg), reference(**call)) <= LIMIT


def test_one_token_goes_the_direct_way_and_matches(float16):
    call = draw(1, 32, 48, 64, 8, "silu", float16)
    assert direct(MoeShape(32, 48, 64, 8, dtype="float16"), 1)
    assert worst_row(run(call, config(64)), reference(**call)) <= LIMIT


def test_many_pairs_are_sorted_by_several_programs(float16):
    call = draw(1100, 8, 16, 32, 2, "silu", float16, skew=1.0)
    assert SortPlan.of(2200, 8).programs > 1
    assert worst_row(run(call, config(64)), reference(**call)) <= LIMIT


@pytest.mark.parametrize("on_input", [False, True])
def test_scaling_factor_applies_once_and_router_weight_where_asked(on_input, float16):
    call = draw(9, 8, 32, 64, 2, "gelu", float16)
    more = dict(routed_scaling_factor=2.5, apply_router_weight_on_input=on_input)
    got = run(call, config(16), **more)
    assert worst_row(got, reference(**call, **more)) <= LIMIT
    other = reference(**call, routed_scaling_factor=2.5, apply_router_weight_on_input=not on_input)
    assert worst_row(got, other) > 10 * LIMIT  # the two really differ


@pytest.mark.parametrize("tokens", [1, 21])
@pytest.mark.parametrize("ids", [torch.int32, torch.int64])
def test_experts_of_other_ranks_add_nothing(tokens, ids, float16):
    call = draw(tokens, 16, 32, 64, 4, "silu", float16)
    here = torch.full((16,), -1, dtype=torch.int32)
    here[[3, 5, 8, 13]] = torch.arange(4, dtype=torch.int32)
    call["w1"], call["w2"] = call["w1"][:4], call["w2"][:4]
    call["topk_ids"] = call["topk_ids"].to(ids)
    call["topk_ids"][0, 0] = 3  # at least one pair is here
    got, want = run(call, config(16), expert_map=here), reference(**call, expert_map=here)
    lonely = want.norm(dim=1) == 0
    assert torch.equal(got[lonely].float(), want[lonely])
    assert worst_row(got[~lonely], want[~lonely]) <= LIMIT


def test_an_id_out_of_range_is_left_out_and_reads_no_foreign_memory(float16):
    call = draw(12, 4, 32, 64, 2, "silu", float16)
    call["topk_ids"][3, 0] = 99
    call["topk_ids"][4, 1] = -7
    assert worst_row(run(call, config(16)), reference(**call)) <= LIMIT


@pytest.mark.parametrize(("pairs", "experts"), [(7, 4), (2048, 8), (2050, 60), (9000, 300)])
@pytest.mark.parametrize("block_m", [16, 128])
def test_sort_puts_every_pair_once_into_a_block_of_its_expert(pairs, experts, block_m):
    generator = torch.Generator().manual_seed(pairs)
    ids = torch.randint(0, experts, (pairs, 1), generator=generator, dtype=torch.int32)
    ids[ids == experts - 1] = 0
    blocks = moe_launch.sort_pairs(ids, experts, block_m)
    live = int(blocks.num_blocks)
    seen = []
    for nth, info in enumerate(blocks.block_info[:live].tolist()):
        expert, rows = divmod(info, 65536)
        inside = blocks.sorted_pairs[nth * block_m : nth * block_m + rows].long()
        assert 1 <= rows <= block_m
        assert (local_experts(ids, experts, None).flatten()[inside] == expert).all()
        seen += inside.tolist()
    assert sorted(seen) == list(range(pairs))
    assert live <= blocks.most_blocks
