"""LiveBench: whatever a tile does to the measuring process, it costs that tile and no other."""

import pytest

pytest.importorskip("torch", reason="LiveBench asks for torch before it starts a child")

from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.device import catalog
from kernelmux.errors import DeviceLost
from kernelmux.measure.live import LiveBench
from kernelmux.tuning_configs.tile import Tile

from . import fake_stand

GOOD = [Tile(16, n, 64, 1, 4, 1) for n in (32, 64, 128)]


@pytest.fixture
def bench():
    bench = LiveBench(MoeShape(8, 32, 64, 2), catalog()["h100-sxm"], step_s=1.0, serve=fake_stand.serve)
    yield bench
    bench.close()


def misbehaving(stages):
    return Tile(16, 32, 64, 1, 4, stages)


def test_good_tiles_come_back_in_order(bench):
    found = bench.time(8, "up", GOOD, 3)
    assert [t.tile for t in found] == GOOD
    assert [t.samples_us for t in found] == [(float(t.block_n),) * 3 for t in GOOD]
    assert bench.restarts == 0


@pytest.mark.parametrize(
    ("stages", "status", "words", "restarts"),
    [
        (fake_stand.RAISES, "error", "ValueError: out of resource", 0),
        (fake_stand.HANGS, "hang", "no answer within 1 s", 1),
        (fake_stand.CRASHES, "crash", "killed by SIGSEGV", 1),
        (fake_stand.POISONS, "crash", "illegal memory access", 1),
    ],
)
def test_a_bad_tile_is_recorded_and_the_others_are_timed(bench, stages, status, words, restarts):
    found = bench.time(8, "up", [GOOD[0], misbehaving(stages), *GOOD[1:]], 2)
    assert [t.status for t in found] == ["ok", status, "ok", "ok"]
    assert words in found[1].reason and found[1].samples_us == ()
    assert [t.samples_us for t in found if t.ok] == [(float(t.block_n),) * 2 for t in GOOD]
    assert bench.restarts == restarts


def test_a_death_while_replaying_is_traced_to_its_tile(bench):
    culprit = Tile(16, 64, 64, 7, 4, 1)
    found = bench.time(8, "down", [GOOD[0], culprit, GOOD[2]], 2)
    assert [t.status for t in found] == ["ok", "crash", "ok"]
    assert "exit code 3" in found[1].reason


def test_checks_carry_error_and_reason(bench):
    pairs = [(Tile(m, 32, 64, 1, 4, s), GOOD[0]) for m, s in ((16, 1), (32, 1), (64, 1), (16, fake_stand.RAISES))]
    checks = bench.check(8, [*pairs, (misbehaving(fake_stand.CRASHES), GOOD[0]), pairs[0]])
    assert [c.ok for c in checks] == [True, False, False, False, False, True]
    assert "0.5 from the fp32 reference" in checks[1].reason and "0.01 is allowed" in checks[1].reason
    assert "out of resource" in checks[3].reason and "SIGSEGV" in checks[4].reason


def test_align_and_conditions_answer(bench):
    assert bench.align(8, [16, 32]) == {16: 2.0, 32: 2.0}
    assert bench.conditions() == {"sm_clock_mhz": "1980"}


def test_a_gpu_that_goes_away_is_one_clear_error():
    bench = LiveBench(MoeShape(8, 32, 64, 2), catalog()["h100-sxm"], step_s=1.0, serve=fake_stand.serve_once)
    with pytest.raises(DeviceLost, match="No CUDA GPUs are available.*--resume"):
        bench.time(8, "up", [misbehaving(fake_stand.CRASHES), *GOOD], 1)
    bench.close()


def test_the_fingerprint_names_all_that_makes_a_measurement_stale(bench):
    assert {"device", "capability", "sm_count", "driver", "triton", "torch", "kernel"} <= bench.fingerprint().keys()
