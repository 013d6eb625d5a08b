"""kill -9 at random moments, then --resume: what was recorded is never measured again."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from kernelmux.autotune.space import SWEPT_GROUPS, at_m, build_space
from kernelmux.measure.replay import LOG_VARIABLE, SLEEP_VARIABLE
from kernelmux.store.journal import Journal
from kernelmux.store.records import Row, canonical
from kernelmux.tuning_configs.heuristic import default_config
from tests.unit.autotune.landscape import H100, SMALL, Landscape

ROOT = Path(__file__).parents[3]
MS = (1, 32, 512)
KILLS = 20


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    """A journal with samples of every tile the race may ask for."""
    path = tmp_path_factory.mktemp("recorded") / "recorded.sqlite"
    bench = Landscape(shape=SMALL)
    with Journal(path) as journal:
        run = journal.start_run(bench.fingerprint(), asdict(SMALL), "everything")
        for m in MS:
            rows = []
            for side in ("up", "down"):
                tiles = {
                    replace(t, group_m=g)
                    for t in at_m(build_space(SMALL, H100, side).tiles, SMALL, 4096, direct=False)
                    for g in SWEPT_GROUPS
                }
                tiles.add(getattr(default_config(SMALL, m, H100), side))
                rows += [
                    Row(run, m, side, canonical(t.tile.to_json()), "0", samples_us=t.samples_us)
                    for t in bench.time(m, side, sorted(tiles), 12)
                ]
            rows += [
                Row(run, m, "align", canonical({"BLOCK_SIZE_M": bm}), "align", samples_us=(us,))
                for bm, us in bench.align(m, (16, 32, 64, 128, 256)).items()
            ]
            journal.record(*rows)
    return path


def start(recorded, folder, log, *more, sleep="0"):
    command = [
        sys.executable, "-m", "kernelmux.cli", "tune", "--shape", "E=8,N=1024,K=1024,topk=2", "--effort", "quick",
        "--replay", str(recorded), "--journal", str(folder / "journal.sqlite"), "--out", str(folder / "out"), *more,
    ]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(ROOT), LOG_VARIABLE: str(log), SLEEP_VARIABLE: sleep}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def measured(log) -> list[tuple]:
    if not log.exists():
        return []
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [(x["m"], x["side"], canonical(x["tile"]), x["samples"]) for x in lines]


def kept(folder) -> set[tuple]:
    path = folder / "journal.sqlite"
    if not path.exists():
        return set()
    with Journal(path) as journal:  # opens as the next tuner would: recovers the write-ahead log
        runs = journal.runs()
        rows = [row for run in runs for row in journal.rows(run.key) if row.side in ("up", "down")]
    assert len(runs) <= 1
    return {(r.m, r.side, r.tile, r.extra["asked"]) for r in rows}


def tables(folder) -> list[dict]:
    files = sorted(p for p in (folder / "out").rglob("*.json") if not p.name.endswith(".meta.json"))
    return [json.loads(path.read_text()) for path in files]


@pytest.mark.slow
def test_killed_twenty_times_and_resumed_nothing_recorded_is_measured_again(recorded, tmp_path):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    whole.mkdir()
    torn.mkdir()
    process = start(recorded, whole, tmp_path / "whole.log")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    steps = len(set(measured(tmp_path / "whole.log")))
    assert steps == len(measured(tmp_path / "whole.log")), "the log must tell rungs apart by their samples"

    log, rng = tmp_path / "torn.log", random.Random(7)
    killed = 0
    for _ in range(KILLS):
        had, seen = kept(torn), len(measured(log))
        process = start(recorded, torn, log, "--resume", sleep="0.12")
        _wait_until_it_measures(process, log, seen)
        time.sleep(rng.uniform(0.0, 0.25))
        process.kill()
        process.communicate()
        killed += process.returncode == -9
        again = had.intersection(measured(log)[seen:])
        assert not again, f"measured although recorded: {sorted(again)[:3]}"
    assert killed >= KILLS // 2
    had, seen = kept(torn), len(measured(log))
    process = start(recorded, torn, log, "--resume")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert not had.intersection(measured(log)[seen:])
    assert set(measured(log)) == set(measured(tmp_path / "whole.log"))
    assert [set(t) for t in tables(torn)] == [{str(m) for m in MS}] * 2
    assert tables(torn) == tables(whole)
    assert not list((torn / "out").rglob("*.tmp"))


def _wait_until_it_measures(process, log, seen) -> None:
    """Until the first new line of the log or the end of the process, so that kills hit the race, not the imports."""
    end = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < end and len(measured(log)) == seen:
        time.sleep(0.02)


def test_an_interrupted_write_leaves_no_half_table(recorded, tmp_path):
    process = start(recorded, tmp_path, tmp_path / "log", sleep="0.5")
    time.sleep(1.0)
    process.kill()
    process.communicate()
    assert not tables(tmp_path)
