from __future__ import annotations

import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelmux.tuning_configs.table import MoeConfig, MoeTable
from kernelmux.tuning_configs.tile import Tile

SMALL, LARGE = Tile(16, 32, 64), Tile(128, 128, 64, warps=8)
keys = st.sets(st.integers(1, 200_000), min_size=1, max_size=20)


def table_of(ms: set[int]) -> MoeTable:
    return MoeTable.of({m: MoeConfig(SMALL, SMALL) for m in ms})


@given(keys, st.integers(1, 500_000))
def test_a_token_count_takes_the_nearest_key_in_log_space(ms: set[int], m: int) -> None:
    chosen = table_of(ms).key_for(m)
    best = min(abs(math.log(m / key)) for key in ms)
    assert abs(math.log(m / chosen)) == pytest.approx(best, abs=1e-9)


@given(keys)
def test_a_key_stands_for_itself(ms: set[int]) -> None:
    assert all(table_of(ms).key_for(m) == m for m in ms)


def test_a_tie_goes_to_the_smaller_key() -> None:
    assert table_of({1, 4}).key_for(2) == 1
    assert table_of({2, 8}).key_for(4) == 2


def test_outside_the_tuned_range_the_end_keys_stand_in() -> None:
    table = table_of({8, 64})
    assert (table.key_for(0), table.key_for(1), table.key_for(10**9)) == (8, 8, 64)


def test_keys_are_sorted_whatever_the_order_given() -> None:
    assert table_of({64, 2, 16}).keys == (2, 16, 64)


def test_up_and_down_must_have_the_same_keys() -> None:
    with pytest.raises(ValueError, match="M=2, 4"):
        MoeTable({1: SMALL, 2: SMALL}, {1: SMALL, 4: SMALL})


def test_up_and_down_must_share_block_m_at_every_key() -> None:
    with pytest.raises(ValueError, match="at M=8 up has BLOCK_SIZE_M=16 and down 128"):
        MoeTable({1: SMALL, 8: SMALL}, {1: SMALL, 8: LARGE})


@pytest.mark.parametrize("ms", [set(), {0, 1}, {-1}])
def test_a_table_needs_token_counts(ms: set[int]) -> None:
    with pytest.raises(ValueError, match=r"at least one M|no token count"):
        table_of(ms)


@given(keys)
def test_a_table_survives_pickling(ms: set[int]) -> None:
    table = table_of(ms)
    assert pickle.loads(pickle.dumps(table)) == table


def test_a_table_cannot_be_changed() -> None:
    table = table_of({1})
    with pytest.raises(TypeError):
        table.up[2] = SMALL  # type: ignore[index]
