"""fused_moe on a live GPU: numbers, capture, compilation ahead, the live bench."""

import pytest

torch = pytest.importorskip("torch")

import kernelmux as km  # noqa: E402
from kernelmux.backends.triton import fused_moe  # noqa: E402
from kernelmux.contracts.fused_moe import OP  # noqa: E402
from kernelmux.contracts.fused_moe_math import examples, reference, routing  # noqa: E402
from kernelmux.contracts.moe_shape import GATED, MoeShape  # noqa: E402
from kernelmux.device import detect  # noqa: E402
from kernelmux.measure.live import LiveBench  # noqa: E402
from kernelmux.tuning_configs.table import MoeConfig  # noqa: E402
from kernelmux.tuning_configs.tile import Tile  # noqa: E402

pytestmark = pytest.mark.gpu


def worst_row(got, want):
    return float(((got.float() - want).norm(dim=1) / want.norm(dim=1).clamp_min(1e-12)).max())


def draw(shape, tokens, dtype, seed=0):
    generator = torch.Generator(device="cuda").manual_seed(seed)
    weights, ids = routing(tokens, shape.E, shape.topk, seed=seed, device="cuda", skew=1.0, idle=True)

    def normal(*size, scale=1.0):
        return (torch.randn(*size, generator=generator, device="cuda") * scale).to(dtype)

    return dict(
        x=normal(tokens, shape.K), w1=normal(shape.E, shape.up_n, shape.K, scale=shape.K**-0.5),
        w2=normal(shape.E, shape.K, shape.N, scale=shape.N**-0.5), topk_weights=weights, topk_ids=ids,
        activation=shape.activation,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("nth", range(6))
def test_the_op_on_every_example_of_the_contract(nth, dtype):
    call = list(examples("cuda", dtype))[nth]
    got = km.ops.fused_moe(**call, routed_scaling_factor=2.5)
    assert got.shape == call["x"].shape
    if got.numel():
        want = reference(**call, routed_scaling_factor=2.5)
        assert worst_row(got, want) <= OP.tolerance[str(dtype).removeprefix("torch.")].rtol


@pytest.mark.parametrize("use_tma", [False, True])
@pytest.mark.parametrize("tokens", [1, 7, 33, 600, 5000])
@pytest.mark.parametrize("activation", [*GATED, "relu2"])
def test_sizes_that_fit_no_block(activation, tokens, use_tma):
    shape = MoeShape(24, 200, 328, 3, activation)
    call = draw(shape, tokens, torch.bfloat16)
    use_tma = use_tma and torch.cuda.get_device_capability()[0] >= 9
    config = MoeConfig(Tile(64, 128, 64, 4, 4, 3, use_tma), Tile(64, 64, 128, 1, 4, 3, use_tma))
    weights = fused_moe.MoeWeights(call["w1"], call["w2"])
    got = fused_moe.run(
        call["x"], weights, config=config, topk_weights=call["topk_weights"], topk_ids=call["topk_ids"],
        activation=activation,
    )  # fmt: skip
    assert worst_row(got, reference(**call)) <= OP.tolerance["bfloat16"].rtol


@pytest.mark.parametrize("tokens", [1, 50])
def test_experts_of_other_ranks_add_nothing(tokens):
    shape = MoeShape(16, 64, 128, 4)
    call = draw(shape, tokens, torch.bfloat16)
    here = torch.full((64,), -1, dtype=torch.int32, device="cuda")
    here[10:26] = torch.arange(16, dtype=torch.int32, device="cuda")
    call["topk_ids"] = (call["topk_ids"] * 4) % 64
    got, want = km.ops.fused_moe(**call, expert_map=here), reference(**call, expert_map=here)
    lonely = want.norm(dim=1) == 0
    assert torch.equal(got[lonely].float(), want[lonely])
    if (~lonely).any():
        assert worst_row(got[~lonely], want[~lonely]) <= OP.tolerance["bfloat16"].rtol


@pytest.mark.parametrize("tokens", [1, 64, 3000])
def test_a_captured_call_replays_on_new_inputs_and_is_deterministic(tokens):
    shape = MoeShape(32, 128, 256, 4)
    call = draw(shape, tokens, torch.bfloat16)
    chosen = km.select_backend("fused_moe", device="cuda:0", dtype="bfloat16", shape=shape.axes(), activation="silu")
    weights = chosen.prepare(w1=call["w1"], w2=call["w2"])
    routed = dict(topk_weights=call["topk_weights"], topk_ids=call["topk_ids"])
    chosen(call["x"], weights, **routed)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = chosen(call["x"], weights, **routed)
    fresh = draw(shape, tokens, torch.bfloat16, seed=1)
    call["x"].copy_(fresh["x"])
    routed["topk_ids"].copy_(fresh["topk_ids"])
    routed["topk_weights"].copy_(fresh["topk_weights"])
    graph.replay()
    first = out.clone()
    want = reference(call["x"], call["w1"], call["w2"], **routed, activation="silu")
    assert worst_row(first, want) <= OP.tolerance["bfloat16"].rtol
    for _ in range(5):
        graph.replay()
        assert torch.equal(out, first)


def test_warmed_selections_run_after_freeze(tmp_path):
    import subprocess
    import sys

    script = """
import torch, triton, kernelmux as km
shape = dict(E=16, N=64, K=128, topk=2)
sel = km.select_backend("fused_moe", device="cuda:0", dtype="bfloat16", shape=shape, activation="silu")
km.warmup(sel, ms=[1, 40])
km.freeze()
def forbid(*args, **kwargs): raise AssertionError("compiled after freeze")
triton.knobs.compilation.listener = forbid
def draw(*size): return torch.randn(*size, device="cuda").bfloat16()
w = sel.prepare(w1=draw(16, 128, 128), w2=draw(16, 128, 64))
for m in (1, 40):
    sel(draw(m, 128), w, topk_weights=torch.rand(m, 2, device="cuda"),
        topk_ids=torch.randint(0, 16, (m, 2), device="cuda"))
torch.cuda.synchronize()
print("ran")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "ran", done.stderr[-2000:]


def test_a_launch_finds_what_was_compiled_ahead(tmp_path):
    import subprocess
    import sys

    ahead = """
from kernelmux.backends.triton.moe_compile import compile_tile
from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.device import Capability
from kernelmux.tuning_configs.tile import Tile
shape, here = MoeShape(16, 64, 128, 2), Capability({major}, {minor})
for side in ("up", "down"):
    compile_tile(shape, side, Tile(32, 64, 64, 1, 4, 3), here)
    compile_tile(shape, side, Tile(16, 64, 64, 1, 4, 3), here, direct=True)
"""
    then = """
import torch, triton
from kernelmux.backends.triton import fused_moe
from kernelmux.tuning_configs.table import MoeConfig
from kernelmux.tuning_configs.tile import Tile
missed = []
triton.knobs.compilation.listener = lambda *, src, cache_hit, **rest: cache_hit or missed.append(src.name)
def draw(*size): return torch.randn(*size, device="cuda").bfloat16()
w = fused_moe.prepare(w1=draw(16, 128, 128), w2=draw(16, 128, 64))
for m, block in ((40, 32), (1, 16)):
    tile = Tile(block, 64, 64, 1, 4, 3)
    ids = torch.randint(0, 16, (m, 2), device="cuda", dtype=torch.int32)
    fused_moe.run(draw(m, 128), w, config=MoeConfig(tile, tile), topk_weights=torch.rand(m, 2, device="cuda"),
        topk_ids=ids)
torch.cuda.synchronize()
print(sorted(set(missed)))
"""
    import os

    major, minor = torch.cuda.get_device_capability()
    env = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", ahead.format(major=major, minor=minor)], check=True, env=env)
    done = subprocess.run([sys.executable, "-c", then], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    missed = eval(done.stdout.strip().splitlines()[-1])
    assert "moe_gemm" not in missed and "moe_reduce" in missed  # the GEMMs were found, the listener does listen


def test_the_live_bench_times_and_checks():
    bench = LiveBench(MoeShape(16, 64, 128, 2), detect(0))
    try:
        tiles = [Tile(16, 64, 64, 1, 4, 3), Tile(32, 64, 64, 1, 4, 2)]
        for side in ("up", "down"):
            found = bench.time(40, side, tiles, 5)
            assert all(t.ok and len(t.samples_us) == 5 and min(t.samples_us) > 0.5 for t in found)
        assert all(check.ok for check in bench.check(40, [(tile, tile) for tile in tiles]))
        too_large = Tile(256, 256, 256, 1, 8, 5)
        assert [t.status for t in bench.time(40, "up", [tiles[0], too_large], 2)] == ["ok", "error"]
        assert bench.restarts == 0
    finally:
        bench.close()
