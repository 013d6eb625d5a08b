from __future__ import annotations

import errno
import json
from dataclasses import replace

import pytest

from kernelmux.autotune import compile as compiling
from kernelmux.autotune.clock import Clock
from kernelmux.autotune.compile import Deadline
from kernelmux.autotune.run import tune_moe
from kernelmux.device import resolve_device
from kernelmux.errors import DeviceLost, StoreError, TuneError
from kernelmux.store.journal import Journal
from kernelmux.tuning_configs import sidecar
from kernelmux.tuning_configs.heuristic import default_config
from tests.unit.autotune.landscape import H100, QWEN, SMALL, Landscape

MS = (1, 64, 1024)


def tune(bench, out, **options):
    options = {"effort": "quick", "ms": MS, "compile_with": None, **options}
    return tune_moe(bench.shape, H100, bench=bench, out=out, **options)


def tiles_of(result):
    return {line.m: (line.config.up, line.config.down) for line in result.lines}


def test_the_files_hold_every_m_with_one_block_m_and_a_sidecar_that_loads(tmp_path):
    result = tune(Landscape(), tmp_path)
    up, down, meta = (json.loads(path.read_text()) for path in result.paths)
    assert list(up) == list(down) == [str(m) for m in MS]
    assert all(up[m]["BLOCK_SIZE_M"] == down[m]["BLOCK_SIZE_M"] for m in up)
    loaded = sidecar.load(result.paths[2])
    assert loaded.source == meta["source"] == "measured"
    assert all(loaded.points[m].default_us for m in MS)
    assert loaded.report["discards"]["up"]
    assert loaded.report["seconds"]


def test_two_runs_over_the_same_samples_choose_the_same_tiles(tmp_path):
    assert tiles_of(tune(Landscape(seed=5), tmp_path / "a")) == tiles_of(tune(Landscape(seed=5), tmp_path / "b"))


def test_the_default_is_in_the_final_of_every_m(tmp_path):
    result = tune(Landscape(), tmp_path)
    assert all(line.default is not None and line.gain is not None and line.gain > -0.002 for line in result.lines)


def test_tiles_that_raise_hang_or_crash_are_reported_and_never_end_the_run(tmp_path):
    words = {2: ("error", "OutOfResources"), 3: ("hang", "no answer within 60 s"), 4: ("crash", "killed by SIGSEGV")}

    def fails(m, side, tile):
        return words.get(tile.stages) if tile.block_n == 128 else None

    result = tune(Landscape(fails=fails), tmp_path)
    assert len(result.lines) == len(MS)
    text = "\n".join(result.failures)
    assert all(f"{status}: {reason}" in text for status, reason in words.values())
    assert not any(t.block_n == 128 and t.stages in words for pair in tiles_of(result).values() for t in pair)


def test_a_block_m_that_fails_altogether_leaves_the_others(tmp_path):
    def fails(m, side, tile):
        return ("error", "boom") if tile.block_m in (16, 64) and side == "down" and m > 1 else None

    result = tune(Landscape(fails=fails), tmp_path)
    assert all(line.config.block_m not in (16, 64) for line in result.lines if line.m > 1)


def test_an_m_where_nothing_runs_takes_its_neighbours_tiles_and_says_so(tmp_path):
    result = tune(Landscape(fails=lambda m, side, tile: ("error", "boom") if m == 64 else None), tmp_path)
    (line,) = [line for line in result.lines if line.m == 64]
    assert line.from_m in (1, 1024)
    assert any("M=64" in note for note in result.notes)
    assert set(result.table.keys) == set(MS)


def test_nothing_that_runs_at_all_is_one_sentence_and_no_file(tmp_path):
    with pytest.raises(TuneError, match="no tile ran correctly"):
        tune(Landscape(fails=lambda *_: ("error", "boom")), tmp_path)
    assert not list(tmp_path.rglob("*.json"))


def test_a_wrong_finalist_is_removed_and_the_next_one_taken(tmp_path):
    first = tune(Landscape(), tmp_path / "a")
    bad = {line.m: line.config.up for line in first.lines}
    second = tune(Landscape(wrong=lambda m, up, down: up == bad[m]), tmp_path / "b")
    for line in second.lines:
        assert line.config.up != bad[line.m]
    assert sum("wrong" in failure for failure in second.failures) >= len(MS)
    # Only the up tile was at fault: the down tile of an unchanged BLOCK_SIZE_M is still free to win.
    assert not any(" down " in failure and "wrong" in failure for failure in second.failures)


def test_the_budget_is_kept_and_the_table_still_complete(tmp_path, monkeypatch):
    now = [0.0]
    bench = Landscape(sleep=lambda: now.__setitem__(0, now[0] + 4.0))
    monkeypatch.setattr("kernelmux.autotune.run.Clock", lambda budget: Clock(budget, now=lambda: now[0]))
    result = tune(bench, tmp_path, budget_s=30.0, effort="full", ms=(1, 16, 64, 256, 1024, 4096))
    assert now[0] <= 6 * 2 * 4.0 + 30.0  # every M runs at least one rung a side
    assert len(result.table.keys) == 6
    assert any("the budget" in note for note in result.notes)


def test_a_finished_run_resumed_measures_nothing_and_gives_the_same_table(tmp_path):
    with Journal(tmp_path / "j.sqlite") as journal:
        bench = Landscape()
        first = tune(bench, tmp_path / "a", journal=journal)
        calls = bench.calls
        again = tune(bench, tmp_path / "b", journal=journal, resume=True)
        assert bench.calls == calls
        assert tiles_of(again) == tiles_of(first)
        assert again.counts["measured"] == 0
        afresh = tune(bench, tmp_path / "c", journal=journal)
        assert afresh.counts["recalled"] == 0


def test_a_run_cut_short_goes_on_where_it_stopped(tmp_path):
    whole = tune(Landscape(), tmp_path / "a")
    for stop in (1, 4, 9):
        left = [stop]

        def count(left=left):
            left[0] -= 1
            if left[0] < 0:
                raise DeviceLost("the GPU is gone")

        with Journal(tmp_path / f"{stop}.sqlite") as journal:
            with pytest.raises(DeviceLost):
                tune(Landscape(sleep=count), tmp_path / "b", journal=journal)
            bench = Landscape()
            resumed = tune(bench, tmp_path / "c", journal=journal, resume=True)
            assert tiles_of(resumed) == tiles_of(whole)
            assert max(bench.timed.values()) == 1
            assert resumed.counts["recalled"] > 0


def test_another_kernel_source_starts_afresh(tmp_path):
    with Journal(tmp_path / "j.sqlite") as journal:
        tune(Landscape(seed=1), tmp_path / "a", journal=journal)
        other = tune(Landscape(seed=2), tmp_path / "b", journal=journal, resume=True)
        assert other.counts["recalled"] == 0


def test_an_unwritable_folder_is_noticed_before_anything_is_measured(tmp_path):
    bench = Landscape()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="not a folder"):
        tune(bench, tmp_path / "file" / "out")
    assert bench.calls == 0


def test_a_full_disk_is_noticed_before_anything_is_measured(tmp_path, monkeypatch):
    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("kernelmux.autotune.emit.os.fsync", full)
    bench = Landscape()
    with pytest.raises(StoreError, match="disk is full"):
        tune(bench, tmp_path / "out")
    assert bench.calls == 0
    assert not list((tmp_path / "out").iterdir())


def test_a_folder_that_turns_unwritable_keeps_the_measurements_and_says_where(tmp_path, monkeypatch):
    def full(*_):
        raise StoreError("cannot write x: the disk is full. Free some space, or choose another folder.")

    monkeypatch.setattr("kernelmux.autotune.emit.write_table", full)
    with (
        Journal(tmp_path / "j.sqlite") as journal,
        pytest.raises(StoreError, match=r"disk is full.*j\.sqlite.*--resume"),
    ):
        tune(Landscape(), tmp_path, journal=journal)


def test_a_device_without_a_capability_is_refused_in_words(tmp_path):
    with pytest.raises(TuneError, match="NVIDIA GPUs only"):
        tune_moe(QWEN, resolve_device("mi300x"), bench=Landscape(), out=tmp_path)


def test_a_call_that_skips_the_sort_runs_block_m_16(tmp_path):
    bench = Landscape(shape=replace(QWEN, topk=1))
    result = tune(bench, tmp_path, ms=(1, 32))
    assert all(line.config.block_m == 16 for line in result.lines)


def test_compiling_ahead_weeds_out_and_merges_before_anything_is_timed(tmp_path, monkeypatch):
    bench = Landscape(shape=SMALL)
    monkeypatch.setattr(compiling, "Deadline", lambda: Deadline(first_s=1.0, cap_s=1.0))
    result = tune(
        bench, tmp_path, ms=(8,), workers=2, compile_with="tests.unit.autotune.fake_compilers:compile_tile",
        config=small_config(),
    )  # fmt: skip
    timed = {tile for (_, _, tile, _) in bench.timed}
    default = default_config(SMALL, 8, H100).up
    assert not [t for t in timed if t.block_n in (32, 256) or t.block_n == t.block_k == 128]
    assert not [t for t in timed if (t.block_m, t.warps) == (16, 8) and t != default]  # heavy spills
    ran = {(side, tile) for (_, side, tile, _) in bench.timed}
    assert not [t for side, t in ran if t.stages == 3 and (side, replace(t, stages=4)) in ran]  # one binary, timed once
    text = "\n".join(result.failures)
    assert "hang while compiling" in text
    assert "crash while compiling" in text
    assert "PassManager::run failed" in text


def small_config():
    from kernelmux.autotune.profiles import RaceConfig, Rung

    return RaceConfig(
        rungs=(Rung("0", 24, 3),), refine=Rung("refine", 4, 6), final=Rung("final", 2, 10), cubins=24, refine_rounds=1
    )
