from __future__ import annotations

import pytest
from hypothesis import given

from kernelmux.tuning_configs.shared_law import lower_bound, predicted_shared
from kernelmux.tuning_configs.tile import Tile

from .test_tile import tiles

SLAB = (64 * 64 + 64 * 128) * 2  # bytes of one bf16 stage of 64x128x64


@pytest.mark.parametrize(
    ("capability", "tile", "expected", "exact"),
    [
        ((8, 0), Tile(64, 128, 64, stages=4), SLAB * 3, True),
        ((12, 0), Tile(64, 128, 64, stages=4), SLAB * 3, True),
        ((9, 0), Tile(64, 128, 64, stages=4), SLAB * 4, True),
        ((9, 0), Tile(32, 128, 64, stages=4), (32 * 64 + 64 * 128) * 2 * 3, True),
        ((9, 0), Tile(64, 128, 64, stages=4, use_tma=True), SLAB * 4 + 32, True),
        ((9, 0), Tile(16, 64, 64, stages=3, use_tma=True), 20496, True),
        ((10, 0), Tile(128, 128, 64, warps=8, stages=3, use_tma=True), 98352, True),
        ((10, 0), Tile(64, 128, 64, stages=4, use_tma=True), 98352, True),
        ((12, 0), Tile(64, 128, 64, stages=4, use_tma=True), 73752, True),
        ((8, 0), Tile(64, 128, 64, stages=4, use_tma=True), SLAB * 3, False),
        ((10, 0), Tile(64, 128, 64, stages=4), SLAB * 4 + 16, True),
        ((10, 3), Tile(64, 128, 64, stages=4), SLAB * 4 + 16, False),
        ((11, 0), Tile(64, 128, 64, stages=4), SLAB * 3, False),
        ((12, 1), Tile(64, 128, 64, stages=4), SLAB * 3, False),
        ((7, 5), Tile(64, 128, 64, stages=4), SLAB, False),
        (None, Tile(64, 128, 64, stages=2), SLAB, False),
    ],
)
def test_the_law_per_instruction(capability: tuple[int, int] | None, tile: Tile, expected: int, exact: bool) -> None:
    assert predicted_shared(tile, capability) == (expected, exact)


def test_the_law_is_exact_only_for_the_triton_it_was_compared_with() -> None:
    tile = Tile(64, 128, 64, stages=4)
    assert predicted_shared(tile, (9, 0), triton="3.6.1+git12")[1]
    assert not predicted_shared(tile, (9, 0), triton="3.9.0")[1]
    assert not predicted_shared(tile, (9, 0), triton="main")[1]


@given(tiles())
def test_a_prediction_is_never_under_the_lower_bound(tile: Tile) -> None:
    for capability in [(7, 5), (8, 0), (9, 0), (10, 0), (11, 0), (12, 0), None]:
        assert predicted_shared(tile, capability)[0] >= lower_bound(tile, capability)


def test_bytes_per_element_may_differ_between_the_operands() -> None:
    assert lower_bound(Tile(64, 128, 64, stages=3), (8, 0), a_bytes=2, b_bytes=0.5) == 64 * (64 * 2 + 64) * 2
