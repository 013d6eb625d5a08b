from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelmux.autotune import joint
from kernelmux.autotune.joint import Finalists
from kernelmux.measure.stats import interval, ratio
from kernelmux.tuning_configs.table import MoeConfig
from kernelmux.tuning_configs.tile import Tile

TILES = [Tile(bm, bn, 64, 1, 4, s) for bm in (16, 32, 64, 128) for bn in (64, 128) for s in (2, 3)]
TIMES = st.dictionaries(st.sampled_from(TILES), st.floats(50, 500), min_size=1, max_size=8)


def noisy(us, seed, count=30):
    draw = random.Random(seed)
    return tuple(us * (1 + 0.01 * abs(draw.gauss(0, 1))) for _ in range(count))


def test_the_interval_holds_the_true_median_about_95_times_in_100():
    held = 0
    for seed in range(200):
        draw = random.Random(seed)
        got = interval([draw.gauss(100, 3) for _ in range(40)], str(seed))
        held += got.low <= 100 <= got.high
    assert held >= 180


def test_the_same_samples_and_seed_give_the_same_interval():
    samples = noisy(100, 1)
    assert interval(samples, "a") == interval(samples, "a") != interval(samples, "b")


def test_a_paired_ratio_sees_through_drift():
    drift = [1 + 0.1 * i for i in range(30)]
    a, b = [100 * d for d in drift], [102 * d for d in drift]
    assert ratio(b, a, "s").low > 1.015
    assert interval(a, "s").overlaps(interval(b, "s"))


def test_no_samples_is_an_error():
    with pytest.raises(ValueError):
        interval([], "s")


@given(st.dictionaries(st.sampled_from((1, 8, 64, 512, 4096)), st.tuples(TIMES, TIMES), min_size=1))
def test_every_m_with_a_common_block_m_gets_one_pair_that_shares_it(times):
    finals = {
        m: Finalists({t: (us,) * 6 for t, us in up.items()}, {t: (us,) * 6 for t, us in down.items()}, {}, None)
        for m, (up, down) in times.items()
    }
    chosen = joint.solve(finals, "seed")
    for m, (up, down) in times.items():
        common = {t.block_m for t in up} & {t.block_m for t in down}
        assert (m in chosen) == bool(common)
        if common:
            best = min(
                min(u for t, u in up.items() if t.block_m == bm) + min(d for t, d in down.items() if t.block_m == bm)
                for bm in common
            )
            config = chosen[m].config
            assert config.up.block_m == config.down.block_m
            assert up[config.up] + down[config.down] <= 1.011 * best


def test_a_block_m_that_wins_on_the_sum_beats_one_that_wins_on_a_side():
    small, large = Tile(16, 64, 64), Tile(64, 64, 64)
    finals = {
        8: Finalists({small: noisy(100, 1), large: noisy(90, 2)}, {small: noisy(50, 3), large: noisy(80, 4)}, {}, None)
    }
    assert joint.solve(finals, "s")[8].config.block_m == 16


def test_the_cost_of_sorting_counts():
    small, large = Tile(16, 64, 64), Tile(64, 64, 64)
    times = {small: noisy(100, 1), large: noisy(102, 2)}
    finals = {8: Finalists(times, times, {16: 20.0, 64: 5.0}, None)}
    assert joint.solve(finals, "s")[8].config.block_m == 64


def test_among_ties_block_m_does_not_fall_along_m():
    a, b = Tile(16, 64, 64), Tile(32, 64, 64)
    tie = {a: noisy(100, 1), b: noisy(100.1, 2)}
    only_b = {b: noisy(100, 3), a: noisy(130, 4)}
    finals = {8: Finalists(only_b, only_b, {}, None), 16: Finalists(tie, tie, {}, None)}
    assert [c.config.block_m for c in joint.solve(finals, "s").values()] == [32, 32]


def test_a_tie_is_never_broken_against_the_default():
    default, other = Tile(16, 64, 64), Tile(16, 128, 64)
    times = {default: noisy(100.0, 1), other: noisy(100.6, 1)}
    neighbour = {other: noisy(50, 2), default: noisy(80, 3)}
    finals = {
        8: Finalists(neighbour, neighbour, {}, None),
        16: Finalists(times, times, {}, MoeConfig(default, default)),
        24: Finalists(neighbour, neighbour, {}, None),
    }
    assert joint.solve(finals, "s")[16].config == MoeConfig(default, default)


def test_a_clear_win_is_taken_whatever_the_neighbours_run():
    a, b = Tile(32, 64, 64), Tile(16, 64, 64)
    finals = {
        m: Finalists({x: noisy(100, 1), y: noisy(106, 2)}, {x: noisy(100, 3), y: noisy(106, 4)}, {}, None)
        for m, (x, y) in {1: (a, b), 2: (b, a), 4: (a, b)}.items()
    }
    assert [c.config.block_m for c in joint.solve(finals, "s").values()] == [32, 16, 32]
