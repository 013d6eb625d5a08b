from __future__ import annotations

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelmux.device import resolve_device
from kernelmux.tuning_configs.document import KernelmuxConfigWarning
from kernelmux.tuning_configs.reconcile import pair, reconciled
from kernelmux.tuning_configs.shared_law import fits
from kernelmux.tuning_configs.tile import Tile

from .test_tile import tiles

sides = st.dictionaries(st.integers(1, 5000), tiles(), min_size=1, max_size=8)
DEVICES = ["h100-sxm", "rtx-5090", "b200", "t4", "a100-sxm-80gb", "mi300x", "cpu"]


@given(sides, sides, st.sampled_from(DEVICES), st.sampled_from([2, 4]))
def test_any_pair_shares_keys_and_block_m_and_fits_afterwards(up, down, name: str, size: int) -> None:
    device = resolve_device(name)
    table, _ = reconciled(up, down, "t.json", device, size)
    assert table.up.keys() == table.down.keys() == up.keys() | down.keys()
    assert all(table.up[m].block_m == table.down[m].block_m for m in table.keys)
    for tile in (*table.up.values(), *table.down.values()):
        assert fits(tile, device, size, size)


@given(sides, sides, st.sampled_from(DEVICES))
def test_reconciling_twice_changes_nothing_more(up, down, name: str) -> None:
    device = resolve_device(name)
    once, _ = reconciled(up, down, "t.json", device)
    again, notes = reconciled(once.up, once.down, "t.json", device)
    assert again == once
    assert notes == ()


def test_a_disagreement_takes_ups_block_m_and_names_file_and_m() -> None:
    up, down = {64: Tile(64, 64, 64)}, {64: Tile(32, 128, 64)}
    with pytest.warns(KernelmuxConfigWarning, match=r"dir/t\.json at M=64: BLOCK_SIZE_M is 64 for up and 32 for down"):
        table = pair(up, down, "dir/t.json")
    assert table.at(64).down == Tile(64, 128, 64)


def test_downs_block_m_is_taken_where_ups_does_not_fit() -> None:
    device = resolve_device("rtx-5090")  # 101,376 bytes
    up, down = {1: Tile(256, 128, 64, warps=8, stages=4)}, {1: Tile(32, 256, 64)}
    table, _ = reconciled(up, down, "t.json", device)
    # Nobody measured an up tile of 32 rows, and up's own is three steps off: up runs down's, as SGLang would.
    assert table.at(1).up == table.at(1).down == down[1]


def test_the_side_that_moves_takes_its_own_nearest_measured_tile() -> None:
    up = {16: Tile(16, 64, 128), 32: Tile(16, 128, 128), 64: Tile(16, 32, 64)}
    down = {16: Tile(16, 256, 64), 32: Tile(64, 128, 64), 64: Tile(16, 256, 128)}
    table, _ = reconciled(up, down, "t.json")
    assert table.at(32).down == Tile(16, 256, 64)


def test_the_entries_around_decide_which_block_m_wins() -> None:
    low, high = Tile(16, 64, 64), Tile(64, 64, 64)
    up = {1: low, 2: low, 4: high, 8: low}
    down = {1: low, 2: low, 4: low, 8: low}
    table, _ = reconciled(up, down, "t.json")
    assert table.at(4).block_m == 16


def test_block_m_itself_is_lowered_where_nothing_else_helps() -> None:
    device = resolve_device("t4")
    huge = {1: Tile(1024, 1024, 1024)}
    table, _ = reconciled(huge, huge, "t.json", device, 4)
    assert fits(table.at(1).up, device, 4, 4)
    assert table.at(1).block_m < 1024


def test_stages_are_lowered_where_neither_fits() -> None:
    device = resolve_device("rtx-5090")
    up, down = {1: Tile(128, 128, 64, stages=5)}, {1: Tile(64, 256, 64, stages=4)}
    table, _ = reconciled(up, down, "t.json", device)
    assert table.at(1).block_m == 128
    assert table.at(1).up.stages < 5
    assert table.at(1).down.stages < 4


def test_a_pair_that_agrees_is_left_alone_without_a_word() -> None:
    tile = Tile(64, 64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pair({1: tile}, {1: tile}, "t.json", resolve_device("h100-sxm")).at(1).up == tile


def test_a_side_without_a_key_takes_its_nearest_and_says_so() -> None:
    a, b = Tile(16, 64, 64), Tile(16, 128, 64)
    table, notes = reconciled({1: a, 64: b}, {1: a}, "t.json")
    assert table.at(64).down == a
    assert "only one of up and down has M=64" in notes[0]


def test_a_tile_triton_cannot_lower_is_not_made() -> None:
    up, down = {1: Tile(256, 128, 64, warps=4)}, {1: Tile(64, 64, 64, warps=4, stages=2)}
    table, _ = reconciled(up, down, "t.json", resolve_device("h100-sxm"))
    assert {table.at(1).up, table.at(1).down}.isdisjoint({Tile(256, 64, 64, warps=4, stages=2)})


def test_an_empty_side_is_refused() -> None:
    with pytest.raises(ValueError, match="no entries"):
        reconciled({}, {1: Tile(16, 16, 16)}, "t.json")
