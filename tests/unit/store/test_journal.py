from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelmux.errors import StoreError
from kernelmux.registry import epoch
from kernelmux.registry.measurement import Measurement
from kernelmux.store.journal import Journal, read_rows
from kernelmux.store.records import CompileFact, Row, canonical, run_key

FINGERPRINT = {"device": "NVIDIA H100 80GB HBM3", "triton": "3.6.0"}
SHAPE = {"E": 8, "N": 64, "K": 128, "topk": 2}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "journal.sqlite"


def filled(path: Path) -> str:
    with Journal(path) as journal:
        run = journal.start_run(FINGERPRINT, SHAPE, "space")
        journal.record(*(Row(run, m, "up", "{}", "0", samples_us=(1.0, 2.0)) for m in range(1, 200)))
    return run


def test_a_recorded_step_is_found_with_its_samples(path: Path) -> None:
    with Journal(path) as journal:
        run = journal.start_run(FINGERPRINT, SHAPE, ["a"])
        row = Row(
            run, 64, "up", canonical({"BLOCK_SIZE_M": 16}), "1", samples_us=(10.5, 11.25), cubin="ab", created=1.0
        )
        journal.record(row)
        assert journal.find(run, 64, "up", row.tile, 1) == row
        assert journal.has(run, 64, "up", row.tile, "1")
        assert not journal.has(run, 64, "up", row.tile, "2")
        assert not journal.has(run, 64, "down", row.tile, "1")
        assert not journal.has("nobody", 64, "up", row.tile, "1")


def test_a_reopened_journal_finds_the_same_run(path: Path) -> None:
    run = filled(path)
    with Journal(path) as journal:
        assert journal.start_run(dict(reversed(FINGERPRINT.items())), SHAPE, "space") == run
        assert len(journal.rows(run)) == 199
        assert [r.m for r in journal.rows(run, m=7, side="up", rung=0)] == [7]
        assert journal.rows(run, side="down") == []
        assert [(r.key, r.shape, r.space) for r in journal.runs()] == [(run, SHAPE, "space")]


@pytest.mark.parametrize("change", [({"triton": "3.7"}, SHAPE, "s"), (FINGERPRINT, {}, "s"), (FINGERPRINT, SHAPE, "t")])
def test_another_fingerprint_shape_or_space_is_another_run(change: tuple[dict, dict, str]) -> None:
    assert run_key(*change) != run_key(FINGERPRINT, SHAPE, "s")


def test_a_step_recorded_again_replaces_the_first(path: Path) -> None:
    with Journal(path) as journal:
        run = journal.start_run(FINGERPRINT, SHAPE, "s")
        journal.record(Row(run, 1, "up", "{}", "0", "hang", "60 s"))
        journal.record(Row(run, 1, "up", "{}", "0", samples_us=(3.0,)))
        (row,) = journal.rows(run)
        assert (row.status, row.samples_us) == ("ok", (3.0,))


@given(
    samples=st.lists(st.floats(0, 1e9), max_size=5),
    reason=st.text(max_size=20).filter(lambda t: "\0" not in t and t.isprintable()),
)
def test_any_row_is_read_back_identical(samples: list[float], reason: str, tmp_path_factory) -> None:
    with Journal(tmp_path_factory.mktemp("j") / "j.sqlite") as journal:
        run = journal.start_run({}, {}, None)
        row = Row(run, 2, "pair", "t", "final", "wrong", reason, tuple(samples), None, {"k": [1, None]}, 5.0)
        journal.record(row)
        assert journal.rows(run) == [row]


def test_rows_of_one_call_are_kept_all_or_none(path: Path) -> None:
    with Journal(path) as journal:
        run = journal.start_run(FINGERPRINT, SHAPE, "s")
        with pytest.raises(ValueError, match="never started"):
            journal.record(Row(run, 1, "up", "{}", "0"), Row("stranger", 1, "up", "{}", "0"))
        assert journal.rows(run) == []
        journal.record(Row(run, 1, "up", "{}", "0"))
        assert len(journal.rows(run)) == 1


def test_compile_facts_are_kept_per_version_arch_and_source(path: Path) -> None:
    fact = CompileFact("3.6.0", "sm_90", "abc", "up", "{}", "silu", "ok", "", 1024, 128, 0, "ff", 1.5)
    other = CompileFact("3.6.0", "sm_120", "abc", "up", "{}", "silu", "error", "PassManager::run failed")
    with Journal(path) as journal:
        journal.record_compiled(fact, other)
        assert journal.compiled(triton="3.6.0", arch="sm_90", source="abc") == [fact]
        assert journal.compiled(triton="3.6.0", arch="sm_120", source="abc", side="up", variant="silu") == [other]
        assert journal.compiled(triton="3.6.0", arch="sm_90", source="abc", variant="relu2") == []


def test_a_newer_measurement_of_the_same_thing_replaces_the_older(path: Path) -> None:
    def measured(us: float, kernel: str = "a", triton: str = "3.6.0") -> Measurement:
        shape = (("E", 8), ("K", 128))
        return Measurement(
            op="op", device="GPU", scheme="none", dtype="bfloat16", shape=shape, activation=None, m_lo=1, m_hi=64,
            kernel=kernel, us=us, versions={"triton": triton}, when="2026-11-22T08:00:00Z",
        )  # fmt: skip

    with Journal(path) as journal:
        journal.record_measurement(measured(2.0), measured(5.0, "b"), measured(7.0, triton="3.7.0"))
        before = epoch.value
        journal.record_measurement(measured(1.0))
        assert epoch.value > before  # selections are made anew
        kept = [measured(5.0, "b"), measured(7.0, triton="3.7.0"), measured(1.0)]
        assert journal.measurements("op", "GPU") == kept
        assert journal.measurements("other") == journal.measurements(device="other") == []


def test_a_killed_writer_loses_nothing_recorded(path: Path) -> None:
    code = """
        import os, signal, sys
        from kernelmux.store.journal import Journal
        from kernelmux.store.records import Row
        journal = Journal(sys.argv[1])
        run = journal.start_run({}, {}, None)
        for m in range(1, 31):
            journal.record(Row(run, m, "up", "{}", "0", samples_us=(1.0,)))
        print(run, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(path)], capture_output=True, text=True)
    assert done.returncode == -9
    with Journal(path, wait_s=5) as journal:
        assert len(journal.rows(done.stdout.strip())) == 30


def test_a_second_writer_waits_then_names_the_first(path: Path) -> None:
    with Journal(path), pytest.raises(StoreError, match=f"in use by process {os.getpid()}"):
        Journal(path, wait_s=0.1)
    Journal(path, wait_s=0.1).close()


def test_readers_do_not_wait_for_the_writer(path: Path) -> None:
    run = filled(path)
    with Journal(path), Journal(path, read_only=True) as reader:
        assert len(reader.rows(run)) == 199
        with pytest.raises(StoreError, match="reading only"):
            reader.record(Row(run, 1, "up", "{}", "9"))
    assert len(read_rows(path)[run]) == 199


def test_reading_changes_nothing_and_makes_nothing(path: Path) -> None:
    with pytest.raises(StoreError, match="no journal at"):
        Journal(path, read_only=True)
    assert not path.parent.exists()
    filled(path)
    before = path.read_bytes()
    Journal(path, read_only=True).close()
    assert path.read_bytes() == before


def test_threads_may_share_a_journal(path: Path) -> None:
    with Journal(path) as journal:
        run = journal.start_run({}, {}, None)

        def work(side: str) -> None:
            for m in range(1, 26):
                journal.record(Row(run, m, side, "{}", "0"))

        threads = [threading.Thread(target=work, args=(side,)) for side in ("up", "down", "pair")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(journal.rows(run)) == 75


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("content", [b"not a database at all", b"{}" * 5000, b"\0" * 4096, b"SQLite format 3\0broken"])
def test_a_foreign_file_is_named_and_left_alone(content: bytes, read_only: bool, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"journal\.sqlite"):
        Journal(path, read_only=read_only)
    assert path.read_bytes() == content


@pytest.mark.parametrize("read_only", [False, True])
def test_another_programs_database_is_named_and_left_alone(read_only: bool, path: Path) -> None:
    path.parent.mkdir()
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE bookmarks (url)")
    db.commit()
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program's database"):
        Journal(path, read_only=read_only)
    assert path.read_bytes() == before


def test_a_truncated_journal_is_named(path: Path) -> None:
    filled(path)
    path.write_bytes(path.read_bytes()[:8192])
    with pytest.raises(StoreError, match=r"damaged.*Move it away"):
        Journal(path)


def test_a_journal_damaged_in_the_middle_is_named(path: Path) -> None:
    filled(path)
    data = bytearray(path.read_bytes())
    data[4096 * 5 : 4096 * 12] = os.urandom(4096 * 7)
    path.write_bytes(data)
    with pytest.raises(StoreError, match="damaged"):
        Journal(path)


def test_a_newer_schema_is_named(path: Path) -> None:
    filled(path)
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match="newer kernelmux"):
        Journal(path)


def test_an_empty_file_becomes_a_journal(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    filled(path)


def test_a_folder_in_place_of_the_file_is_explained(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(StoreError, match="is a folder"):
        Journal(path)


def test_a_path_below_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot"):
        Journal(tmp_path / "file" / "journal.sqlite")
    with pytest.raises(StoreError, match=r"cannot|no journal"):
        Journal(tmp_path / "file" / "journal.sqlite", read_only=True)


def test_a_full_disk_is_explained_and_keeps_what_was_recorded(path: Path) -> None:
    with Journal(path) as journal:
        run = journal.start_run({}, {}, None)
        journal.record(Row(run, 1, "up", "{}", "0"))
        journal._db.execute(f"PRAGMA max_page_count = {journal._db.execute('PRAGMA page_count').fetchone()[0]}")
        with pytest.raises(StoreError, match=r"the disk is full\. Free some space"):
            journal.record(*(Row(run, m, "up", "x" * 200, "0") for m in range(2, 500)))
        assert len(journal.rows(run)) == 1


def test_a_real_write_failure_is_explained(path: Path) -> None:
    code = """
        import resource, signal, sys
        from kernelmux.errors import StoreError
        from kernelmux.store.journal import Journal
        from kernelmux.store.records import Row
        journal = Journal(sys.argv[1])
        run = journal.start_run({}, {}, None)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, resource.RLIM_INFINITY))
        try:
            for m in range(1, 2000):
                journal.record(Row(run, m, "up", "x" * 500, "0"))
        except StoreError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(path)], capture_output=True, text=True)
    assert "journal.sqlite" in done.stdout, done.stderr
    with Journal(path) as journal:
        assert journal.rows(journal.runs()[0].key)


def test_a_closed_journal_says_so(path: Path) -> None:
    journal = Journal(path)
    journal.close()
    journal.close()
    with pytest.raises(StoreError, match="closed"):
        journal.runs()


def test_a_file_in_place_of_the_folder_is_explained(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(StoreError, match=r"a file stands where a folder should be\. Choose another folder"):
        Journal(tmp_path / "cache" / "journal.sqlite")


def test_a_journal_that_cannot_be_begun_leaves_no_empty_file(path: Path) -> None:
    code = "import resource, sys; from kernelmux.store.journal import Journal\n"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512)); Journal(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert "StoreError" in done.stderr
    assert "ulimit -f" in done.stderr
    assert "network share" not in done.stderr
    assert not path.exists()


def test_a_page_that_was_overwritten_is_told_in_one_line(path: Path) -> None:
    with Journal(path) as journal:
        assert journal.runs() == []  # the tables alone fill several pages
    data = bytearray(path.read_bytes())
    data[4096:8192] = b"\x5a" * 4096
    path.write_bytes(data)
    with pytest.raises(StoreError, match="is damaged") as error:
        Journal(path)
    assert "\n" not in str(error.value)
    assert "Move it away" in str(error.value)
