"""Compiling the fused MoE GEMMs ahead, for GPUs that are not here."""

import subprocess
import sys

import pytest

from kernelmux.backends.triton.declare import KERNELS
from kernelmux.backends.triton.moe_rules import SortPlan, direct, most_blocks, tma_refusal
from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.device import Capability
from kernelmux.tuning_configs.tile import Tile

pytest.importorskip("triton", reason="Triton compiles")

QWEN = MoeShape(128, 384, 2048, 8)

# In a process of its own: compiling replaces Triton's driver, and torch must not be needed.
SCRIPT = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("no torch here", name="torch")
sys.meta_path.insert(0, NoTorch())
from kernelmux.backends.triton.moe_compile import compile_tile
from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.device import Capability
from kernelmux.tuning_configs.tile import Tile
for side, tile, capability in (
    ("up", Tile(64, 128, 64, 8, 4, 3), "9.0"),
    ("up", Tile(64, 128, 64, 8, 4, 3, True), "9.0"),
    ("down", Tile(64, 128, 64, 8, 4, 3, True), "12.0"),
    ("down", Tile(16, 64, 64, 1, 4, 3), "8.0"),
    ("up", Tile(128, 128, 64, 1, 4, 3, True), "10.0"),
    ("up", Tile(64, 128, 64, 1, 4, 2), "8.6"),
    ("up", Tile(64, 128, 64, 1, 4, 2), "8.9"),
    ("down", Tile(128, 128, 64, 1, 4, 3, True), "10.3"),
    ("down", Tile(64, 128, 64, 1, 4, 2), "12.1"),
):
    c = compile_tile(MoeShape(128, 384, 2048, 8), side, tile, Capability.parse(capability))
    print(capability, side, c.shared_bytes, c.registers, c.stack_bytes, len(c.sha256))
"""


def test_gemms_compile_for_every_declared_architecture_without_a_gpu_and_without_torch():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split() for line in done.stdout.splitlines()]
    compiled = {Capability.parse(row[0]) for row in rows}
    assert compiled == {c for c, word in KERNELS[0].evidence.items() if word in ("measured", "compiled")}
    slab = (64 + 128) * 64 * 2
    assert int(rows[0][2]) == 3 * slab  # wgmma holds every stage
    assert 3 * slab <= int(rows[1][2]) <= 3 * slab + 64  # and its barriers
    assert int(rows[3][2]) == 2 * (16 + 64) * 64 * 2  # mma.sync holds one less
    assert all(0 < int(row[3]) <= 255 and int(row[4]) < 64 for row in rows)


def test_a_sort_deals_every_pair_to_some_program():
    for pairs in (1, 2048, 2049, 70_000, 3_000_000):
        plan = SortPlan.of(pairs, 128)
        assert plan.programs * plan.pairs_per_program >= pairs > (plan.programs - 1) * plan.pairs_per_program
        assert plan.programs <= 64


@pytest.mark.parametrize("block_m", [16, 64, 256])
@pytest.mark.parametrize(("pairs", "experts"), [(1, 8), (100, 8), (8, 128), (5000, 60)])
def test_most_blocks_bounds_the_worst_routing(pairs, experts, block_m):
    # Worst: as many experts as can be hold one row more than whole blocks.
    hit = min(pairs, experts)
    counts = [1] * hit
    left = pairs - hit
    while left >= block_m:
        counts[0] += block_m
        left -= block_m
    worst = sum(-(-count // block_m) for count in counts)
    assert worst <= most_blocks(pairs, experts, block_m) <= pairs


def test_direct_is_for_few_pairs_among_many_experts():
    assert direct(QWEN, 4) and not direct(QWEN, 5)
    assert not direct(MoeShape(8, 7168, 4096, 2), 2)


def test_tensor_descriptors_are_refused_with_a_reason():
    tile = Tile(64, 128, 64, 1, 4, 3, True)
    assert tma_refusal(QWEN, tile, "up", Capability(9, 0)) is None
    assert "capability" in tma_refusal(QWEN, tile, "up", Capability(8, 9))
    assert "16 bytes" in tma_refusal(MoeShape(8, 4, 12, 2), tile, "down", Capability(9, 0))
