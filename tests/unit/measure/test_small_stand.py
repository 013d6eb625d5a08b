"""Races of small ops with CUDA's graphs and events replaced: who is timed, who is not and why, what is reported."""

from contextlib import nullcontext

import pytest

torch = pytest.importorskip("torch")

from kernelmux.device import resolve_device  # noqa: E402
from kernelmux.errors import DeviceLost  # noqa: E402
from kernelmux.measure import small  # noqa: E402
from kernelmux.measure.small_contestants import Contestant, kernels  # noqa: E402
from kernelmux.measure.small_point import Point  # noqa: E402
from kernelmux.registry.discovery import registry  # noqa: E402

OP, H200 = registry().op("rms_norm"), resolve_device("h200")
POINT = Point("rms_norm", 4, 256)


class Clock:
    """Events tell the time; a replay takes as long as its contestant was given."""

    now, gone, cost = 0.0, False, 1.0


class Event:
    def __init__(self, enable_timing):
        self.at = None

    def record(self):
        self.at = Clock.now

    def elapsed_time(self, other):
        return other.at - self.at


class Graph:
    def __init__(self):
        self.cost = Clock.cost

    def replay(self):
        Clock.now += self.cost


def synchronize():
    if Clock.gone:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.fixture
def stand(monkeypatch):
    Clock.now, Clock.gone, Clock.cost = 0.0, False, 1.0
    for name, value in {
        "set_device": lambda place: None, "Event": Event, "CUDAGraph": Graph, "synchronize": synchronize,
        "graph": lambda graph: nullcontext(), "_sleep": lambda cycles: None, "memory_reserved": lambda: 0,
        "get_device_properties": lambda place: type("P", (), {"total_memory": 1 << 37}),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    return small.SmallStand(H200, torch.device("cpu"))


def contestant(name, ms=1.0, kind="kernel", spoil=None):
    right = kernels(OP, POINT, resolve_device("cpu"), registry().kernels("rms_norm"))[0]
    torchs = next(c for c in right if c.backend == "torch")

    def build(sets):
        call = torchs.build(sets)

        def run(r):
            Clock.cost = ms
            if spoil is not None:
                return spoil(sets[r])
            return call(r)

        return run

    return Contestant(name, "torch", kind, build)


def half_written(inputs):
    return (inputs.outs[0].nan_to_num_(0.0).mul_(0.0),)


def raising(inputs):
    raise ValueError("no such luck\nand more")


def losing(inputs):
    Clock.gone = True
    raise RuntimeError("launch failed")


def test_the_right_ones_are_timed_and_the_others_say_why(stand):
    field = [
        contestant("quick", 1.0), contestant("slow", 3.0), contestant("wrong", spoil=half_written),
        contestant("raises", spoil=raising), contestant("copy", 0.5, kind="copy"),
    ]  # fmt: skip
    race = stand.race(OP, POINT, field, rounds=9, refused={"other": "no nvcc"})
    said = {one["name"]: one for one in race.to_json()["contestants"]}
    calls = race.calls
    assert said["quick"]["us"] == pytest.approx(1e3 / calls, rel=1e-3) and len(said["quick"]["samples_us"]) == 9
    assert said["quick"]["percent_of_copy"] == 50.0 and said["slow"]["percent_of_copy"] == pytest.approx(16.7)
    assert said["wrong"]["status"] == "wrong" and said["raises"]["reason"] == "ValueError: no such luck"
    assert race.refused == {"other": "no nvcc"} and "read before each replay" in race.cold
    assert said["quick"]["low"] <= said["quick"]["us"] <= said["quick"]["high"]


def test_a_hopeless_contestant_gets_one_sample(stand):
    race = stand.race(OP, POINT, [contestant("quick", 1.0), contestant("hopeless", 100.0)], rounds=9)
    assert [len(one.samples_us) for one in race.standings] == [9, 1]


def test_a_contestant_that_takes_the_gpu_with_it_is_named(stand):
    with pytest.raises(DeviceLost, match=r"culprit lost the GPU at rms_norm M=4 H=256 bfloat16: RuntimeError: launch"):
        stand.race(OP, POINT, [contestant("quick"), contestant("culprit", spoil=losing)])


def test_large_problems_are_cold_by_themselves_and_small_ones_get_many_calls(stand):
    assert stand.calls(512) == small.MOST_CALLS
    assert stand.calls(1 << 30) == small.FEWEST
    for moved in (1 << 20, 1 << 24, 1 << 27):
        assert small.FEWEST <= stand.calls(moved) <= small.MOST_CALLS


def test_nobody_right_is_no_error(stand):
    race = stand.race(OP, POINT, [contestant("wrong", spoil=half_written)])
    assert race.ceiling_us is None and not race.standings[0].ok
