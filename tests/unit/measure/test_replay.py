from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.errors import StoreError
from kernelmux.measure.bench import Bench
from kernelmux.measure.replay import LOG_VARIABLE, ReplayBench
from kernelmux.store.journal import Journal
from kernelmux.store.records import Row, canonical
from kernelmux.tuning_configs.tile import Tile

SHAPE = MoeShape(8, 1024, 1024, 2)
A, B, C = Tile(16, 64, 64), Tile(16, 128, 64), Tile(32, 64, 64)
FINGERPRINT = {"device": "NVIDIA H100 80GB HBM3", "capability": "9.0", "triton": "3.6.0", "kernel": "abc"}


@pytest.fixture
def journal_file(tmp_path):
    path = tmp_path / "j.sqlite"
    with Journal(path) as journal:
        run = journal.start_run(FINGERPRINT, asdict(SHAPE), "x")
        pair = canonical({"up": A.to_json(), "down": A.to_json()})
        journal.record(
            Row(run, 8, "up", text(A), "0", samples_us=(10.0, 11.0, 12.0)),
            Row(run, 8, "up", text(A), "1", samples_us=(10.5, 11.5)),
            Row(run, 8, "up", text(B), "0", "hang", "no answer within 60 s"),
            Row(run, 8, "align", canonical({"BLOCK_SIZE_M": 16}), "align", samples_us=(4.0,)),
            Row(run, 8, "pair", pair, "check", "wrong", "0.5 off", extra={"error": 0.5}),
        )
    return path


def text(tile):
    return canonical(tile.to_json())


def test_it_is_a_bench_of_the_recorded_shape_and_device(journal_file):
    bench = ReplayBench(journal_file)
    assert isinstance(bench, Bench)
    assert bench.shape == SHAPE
    assert bench.device.name == "h100-sxm"
    assert bench.ms == [8]


def test_samples_are_drawn_from_all_rungs_the_same_for_the_same_question(journal_file):
    bench = ReplayBench(journal_file)
    (few,) = bench.time(8, "up", [A], 4)
    assert set(few.samples_us) <= {10.0, 11.0, 12.0, 10.5, 11.5}
    assert bench.time(8, "up", [A], 4) == [few]
    assert len(bench.time(8, "up", [A], 50)[0].samples_us) == 50


def test_failures_are_replayed_and_unknown_tiles_are_errors(journal_file):
    hang, unknown = ReplayBench(journal_file).time(8, "up", [B, C], 3)
    assert (hang.status, hang.reason) == ("hang", "no answer within 60 s")
    assert unknown.status == "error"
    assert not unknown.ok


def test_checks_and_sorting_are_replayed(journal_file):
    bench = ReplayBench(journal_file)
    wrong, right = bench.check(8, [(A, A), (A, C)])
    assert (wrong.ok, wrong.error, right.ok) == (False, 0.5, True)
    assert bench.align(8, [16, 32]) == {16: 4.0, 32: 0.0}


def test_its_fingerprint_never_passes_for_the_machines_own(journal_file):
    assert ReplayBench(journal_file).fingerprint() != FINGERPRINT


def test_what_is_timed_is_logged(journal_file, tmp_path, monkeypatch):
    monkeypatch.setenv(LOG_VARIABLE, str(tmp_path / "log"))
    ReplayBench(journal_file).time(8, "up", [A, B], 3)
    assert [json.loads(line)["tile"] for line in (tmp_path / "log").read_text().splitlines()] == [
        A.to_json(), B.to_json(),
    ]  # fmt: skip


def test_a_journal_without_the_shape_names_what_it_holds(journal_file):
    with pytest.raises(StoreError, match="it holds E=8,N=1024"):
        ReplayBench(journal_file, MoeShape(8, 512, 512, 2))
