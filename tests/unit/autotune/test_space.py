from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelmux.autotune.space import (
    CONSTRAINTS,
    DUPLICATE,
    PUBLIC_GRID,
    SWEPT_GROUPS,
    Ground,
    at_m,
    block_m_cap,
    build_space,
    canonical,
    neighbours,
    why_not,
)
from kernelmux.contracts.moe_shape import USUAL_M, MoeShape
from kernelmux.device import resolve_device
from kernelmux.tuning_configs import shared_law
from kernelmux.tuning_configs.tile import Tile
from tests.unit.autotune.landscape import H100, QWEN

DEVICES = [resolve_device(n) for n in ("h100-sxm", "rtx-pro-6000-server", "a100-sxm-80gb", "b200", "t4", "l40s")]
SHAPES = st.builds(
    MoeShape, E=st.sampled_from((8, 64, 128, 512)), N=st.sampled_from((17, 64, 384, 1856, 7168)),
    K=st.sampled_from((20, 1024, 2688, 4096)), topk=st.sampled_from((1, 2, 8)),
    activation=st.sampled_from(("silu", "relu2")),
)  # fmt: skip


@given(SHAPES, st.sampled_from(DEVICES), st.sampled_from(("up", "down")))
def test_every_tile_of_a_space_fits_its_device_and_is_there_once(shape, device, side):
    space = build_space(shape, device, side)
    assert len(set(space.tiles)) == len(space.tiles)
    for tile in space.tiles:
        assert shared_law.lower_bound(tile, device.capability) <= device.shared_bytes
        assert tile.block_m * tile.block_n <= 224 * 32 * tile.warps
        assert canonical(tile, Ground(shape, device, side)) == tile


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d.name)
def test_every_point_of_the_grid_is_kept_or_counted_under_a_reason(device):
    space = build_space(QWEN, device, "up")
    variants = 2 if device.capability in ((9, 0), (10, 0), (12, 0)) else 1
    points = variants * sum(1 for _ in PUBLIC_GRID.tiles())
    assert len(space.tiles) + sum(space.discards.values()) == points
    assert space.discards.keys() <= {c.reason for c in CONSTRAINTS} | {DUPLICATE}


def test_only_gpus_with_a_tensor_copy_unit_get_tma_tiles():
    assert {d.name for d in DEVICES if any(t.use_tma for t in build_space(QWEN, d, "up").tiles)} == {
        "h100-sxm", "rtx-pro-6000-server", "b200",
    }  # fmt: skip


def test_the_tile_that_breaks_triton_is_out():
    assert "Triton fails" in why_not(Tile(256, 64, 64, 1, 4, 3), Ground(QWEN, H100, "up"))


@given(SHAPES, st.sampled_from(USUAL_M))
def test_block_m_16_is_always_tried_and_tma_never_below_64_tokens(shape, m):
    tiles = at_m(build_space(shape, H100, "up").tiles, shape, m, direct=False)
    assert any(t.block_m == 16 for t in tiles)
    assert all(t.block_m <= block_m_cap(shape, m) for t in tiles)
    assert m >= 64 or not any(t.use_tma for t in tiles)
    assert {t.group_m for t in tiles} == ({1, 16} if m >= 512 else {1})


def test_a_block_wider_than_the_matrix_is_the_same_as_the_clamped_one():
    ground = Ground(MoeShape(8, 64, 64, 2), H100, "down")
    assert canonical(Tile(16, 256, 256, 1, 4, 5), ground) == Tile(16, 64, 64, 1, 4, 2)


def test_neighbours_are_one_knob_away_and_sweep_every_group():
    tile = Tile(64, 128, 64, 1, 4, 3)
    near = neighbours(tile, 512, Ground(QWEN, H100, "up"))
    assert {t.group_m for t in near if replace(t, group_m=1) == tile} == set(SWEPT_GROUPS) - {1}
    for other in near:
        differing = [f for f in Tile.__slots__ if getattr(other, f) != getattr(tile, f)]
        assert len(differing) == 1
        assert other.block_m == tile.block_m
