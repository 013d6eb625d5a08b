from __future__ import annotations

from dataclasses import replace

import pytest

from kernelmux.autotune.run import tune_moe
from kernelmux.autotune.space import SWEPT_GROUPS, at_m, build_space
from kernelmux.backends.triton import moe_rules
from tests.unit.autotune.landscape import H100, QWEN, Landscape


def best_possible(bench, m):
    """The least true up + down + sort over every tile of the space and every GROUP_SIZE_M, by BLOCK_SIZE_M."""
    least = {}
    for side in ("up", "down"):
        tiles = at_m(
            build_space(bench.shape, H100, side).tiles, bench.shape, m, direct=moe_rules.direct(bench.shape, m)
        )
        for tile in {replace(t, group_m=g) for t in tiles for g in SWEPT_GROUPS}:
            us = bench.true_us(m, side, tile)
            least[side, tile.block_m] = min(us, least.get((side, tile.block_m), us))
    return min(us + least["down", bm] + bench.align_us(m, bm) for (side, bm), us in least.items() if side == "up")


def true_total(bench, line):
    config = line.config
    return (
        bench.true_us(line.m, "up", config.up)
        + bench.true_us(line.m, "down", config.down)
        + bench.align_us(line.m, config.block_m)
    )


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_pick_is_within_two_percent_of_the_true_optimum_at_every_m(seed, tmp_path):
    bench = Landscape(seed=seed)
    result = tune_moe(
        QWEN, H100, bench=bench, effort="full", out=tmp_path, compile_with=None, ms=(1, 16, 128, 1024, 4096)
    )
    loss = {line.m: true_total(bench, line) / best_possible(bench, line.m) - 1 for line in result.lines}
    assert max(loss.values()) <= 0.02, loss
    for line in result.lines:
        if line.default is not None:
            assert true_total(bench, line) <= 1.002 * true_total(bench, replace(line, config=line.default))
