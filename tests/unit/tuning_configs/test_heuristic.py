from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.device import catalog, resolve_device
from kernelmux.tuning_configs.heuristic import default_config, default_tile
from kernelmux.tuning_configs.shared_law import fits
from kernelmux.tuning_configs.tile import Tile

SHAPE = MoeShape(8, 7168, 4096, 2)


@pytest.mark.parametrize(
    ("m", "tile"),
    [
        (1, Tile(16, 64, 128, 1, 4, 4)),
        (32, Tile(16, 64, 128, 1, 4, 4)),
        (33, Tile(32, 64, 128, 1, 4, 3)),
        (65, Tile(32, 128, 64, 1, 4, 3)),
        (97, Tile(64, 128, 64, 1, 4, 3)),
        (129, Tile(64, 128, 64, 1, 8, 3)),
        (513, Tile(128, 128, 64, 1, 8, 3)),
        (1032, Tile(128, 128, 64, 16, 8, 3)),
    ],
)
def test_the_default_is_vllms(m: int, tile: Tile) -> None:
    config = default_config(SHAPE, m, resolve_device("h100-sxm"))
    assert config.up == config.down == tile


@given(st.integers(0, 100_000), st.sampled_from(list(catalog())), st.sampled_from(["bfloat16", "float32"]))
def test_the_default_fits_every_device(m: int, name: str, dtype: str) -> None:
    device = resolve_device(name)
    shape = SHAPE.with_dtype(dtype)
    tile = default_config(shape, m, device).up
    assert fits(tile, device, shape.element_bytes, shape.element_bytes)
    assert tile.block_m == default_tile(m, 8).block_m


def test_a_default_needs_no_shape() -> None:
    assert default_config(None, 64).up.group_m == 1
