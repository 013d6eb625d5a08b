"""Races of small ops become measurements that select_backend goes by; no GPU: the times are made up."""

import itertools

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import kernelmux as km  # noqa: E402
from kernelmux.device import resolve_device  # noqa: E402
from kernelmux.measure import small_bench, small_record  # noqa: E402
from kernelmux.measure.small import Race, Standing  # noqa: E402
from kernelmux.measure.small_point import Point  # noqa: E402

H200 = resolve_device("h200")
TORCH, TRITON = "kernelmux.rms_norm[torch]", "kernelmux.rms_norm[torch_compile]"


def race(m, **us):
    standings = [
        Standing(name, "x", "kernel", (value,) * 3, us=value, low=value, high=value) if value else
        Standing(name, "x", "kernel", status="error", reason="RuntimeError: no")
        for name, value in us.items()
    ]  # fmt: skip
    copy = Standing("copy, torch", "torch", "copy", (1.0,), us=1.0, low=1.0, high=1.0)
    return Race(Point("rms_norm", m, 4096), (*standings, copy), {}, 8192 * m, 8192 * m, 8, 3, "made up")


@given(st.sets(st.integers(1, 1 << 20), min_size=1, max_size=12))
def test_ranges_hold_their_own_m_and_never_overlap(ms):
    ranges = small_record.token_ranges(ms)
    assert ranges.keys() == ms
    for m, (low, high) in ranges.items():
        assert 1 <= low <= m <= high <= 4 * m and low >= m / 4
    ends = [ranges[m] for m in sorted(ms)]
    assert all(before[1] < after[0] for before, after in itertools.pairwise(ends))


def test_neighbours_near_enough_leave_no_gap():
    assert small_record.token_ranges([1, 16, 256]) == {1: (1, 3), 16: (4, 63), 256: (64, 1024)}


def names():
    return sorted(small_bench.named_kernels(["rms_norm"]))


def test_the_fastest_recorded_kernel_is_selected_and_said_to_be_measured():
    slow, fast = [n for n in names() if n.startswith("kernelmux.rms_norm[torch")][:2]
    found = small_record.measurements(
        [race(16, **{slow: 20.0, fast: 9.5})], H200, small_bench.named_kernels(["rms_norm"])
    )
    small_record.record(found)
    for m in (4, 16, 64):
        chosen = km.select_backend("rms_norm", device=H200, dtype="bfloat16", shape={"M": m, "H": 4096})
        assert (chosen.kernel, chosen.source) == (fast, "measured") and "9.5 us" in chosen.why
    for shape in ({"M": 4096, "H": 4096}, {"M": 16, "H": 2048}):
        assert km.select_backend("rms_norm", device=H200, dtype="bfloat16", shape=shape).source != "measured"


def test_a_measurement_of_another_driver_does_not_count():
    import dataclasses

    first = names()[0]
    old = dataclasses.replace(H200, driver="550.1.1", live=True)
    kernels = small_bench.named_kernels(["rms_norm"])
    name = next(n for n in names() if n == "kernelmux.rms_norm[torch]" or n.endswith("[torch_compile]")) or first
    small_record.record(small_record.measurements([race(16, **{name: 5.0})], old, kernels))
    shape = {"M": 16, "H": 4096}
    new = dataclasses.replace(old, driver="580.1.1")
    assert km.select_backend("rms_norm", device=old, dtype="bfloat16", shape=shape).source == "measured"
    chosen = km.select_backend("rms_norm", device=new, dtype="bfloat16", shape=shape)
    assert chosen.source != "measured" and any("driver was 550.1.1" in c for c in chosen.conditions)


def test_who_failed_and_who_is_no_kernel_is_not_recorded():
    made = race(16, **{"kernelmux.rms_norm[torch_compile]": None, "flashinfer, direct": 3.0})
    assert small_record.measurements([made], H200, small_bench.named_kernels(["rms_norm"])) == []


def test_a_race_says_the_share_of_the_copy():
    said = race(16, **{"kernelmux.rms_norm[torch_compile]": 2.0}).to_json()
    assert said["ceiling_us"] == 1.0 and said["contestants"][0]["percent_of_copy"] == 50.0
