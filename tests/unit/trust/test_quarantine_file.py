"""The file of verdicts: whole, shared by processes, and no obstacle where it is damaged or cannot be written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from kernelmux.errors import StoreError
from kernelmux.registry import epoch
from kernelmux.store import quarantine
from kernelmux.store.quarantine import Book, Verdict
from tests.unit.trust import planted
from tests.unit.trust.world import choose

ROOT = Path(__file__).parents[3]


def verdict(kernel: str = "a.b[triton]", status: str = "quarantined", driver: str = "580", **changes: str) -> Verdict:
    facts = {"op": "rms_norm", "scheme": "none", "dtype": "bfloat16", "reason": "NaN", "when": "2026-01-01T00:00:00Z"}
    return Verdict(
        kernel=kernel, activation=None, fingerprint={"device": "NVIDIA H200", "driver": driver}, status=status,
        **{**facts, **changes},
    )  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "quarantine.json"


def test_what_is_recorded_is_read_by_others(path: Path) -> None:
    book = Book(path)
    assert book.record(verdict())
    assert book.record(verdict(status="trusted", driver="590").but(evidence={"cases": [{"m": 8, "error": 0.1}]}))
    again = Book(path)
    assert sorted(v.status for v in again) == ["quarantined", "trusted"]
    found = again.find(verdict(driver="590").key)
    assert found is not None
    assert found.evidence == {"cases": [{"m": 8, "error": 0.1}]}
    assert again.speaks_of("a.b[triton]")
    assert not again.speaks_of("a.c[triton]")
    assert not list(path.parent.glob("*.tmp"))


def test_a_newer_verdict_replaces_the_one_on_the_same_thing(path: Path) -> None:
    book = Book(path)
    book.record(verdict())
    book.record(verdict(status="trusted"))
    assert [v.status for v in Book(path)] == ["trusted"]


def test_two_writers_keep_what_both_found(path: Path) -> None:
    first, second = Book(path), Book(path)
    first.record(verdict("a[triton]"))
    second.record(verdict("b[triton]"))
    assert {v.kernel for v in Book(path)} == {"a[triton]", "b[triton]"}
    first.reload()
    assert first.speaks_of("b[triton]")


def test_processes_that_write_at_once_lose_nothing(path: Path) -> None:
    code = (
        "import sys\nfrom kernelmux.store.quarantine import Book, Verdict\nbook = Book(sys.argv[1])\n"
        "for i in range(8):\n"
        "    book.record(Verdict(f'{sys.argv[2]}{i}', 'op', '', '', None, {'device': 'x'}, 'trusted', '', 'now'))\n"
    )
    children = [subprocess.Popen([sys.executable, "-c", code, str(path), name], cwd=ROOT) for name in "abc"]
    assert [child.wait(60) for child in children] == [0, 0, 0]
    assert len(Book(path)) == 24


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"schema": 1}', '{"schema": 1, "verdicts": [{"kernel": 3}]}', "\x00\xff", '{"verdicts": 1}'],
)
def test_a_damaged_file_costs_one_warning_and_is_moved_aside(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_bytes(text.encode("latin-1"))
    with pytest.warns(RuntimeWarning, match=r"quarantine\.json is damaged.*checked anew"):
        book = Book(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        book.reload()
    assert not len(book)
    assert book.record(verdict())
    assert len(Book(path)) == 1
    assert Path(f"{path}.damaged").read_bytes() == text.encode("latin-1")


def test_a_damaged_file_stops_no_selection() -> None:
    path = quarantine.quarantine_path()
    path.parent.mkdir(parents=True)
    path.write_text("{half a fi")
    with pytest.warns(RuntimeWarning, match="is damaged"):
        selection = choose(planted.kernel("right"))
    selection.check()
    assert selection.kernel == "planted.right[triton]"
    assert [v.status for v in Book(path)] == ["trusted"]


def test_a_file_of_a_newer_kernelmux_is_left_as_it_is(path: Path) -> None:
    path.parent.mkdir()
    whole = json.dumps({"schema": 99, "verdicts": ["of another form"]})
    path.write_text(whole)
    with pytest.warns(RuntimeWarning, match="written by a newer kernelmux"):
        book = Book(path)
    assert not book.record(verdict())
    assert path.read_text() == whole
    assert book.find(verdict().key) is not None, "in this process it holds"


def test_where_nothing_can_be_written_the_verdict_holds_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(os.environ["KERNELMUX_CACHE_DIR"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("a file where the folder should be")
    kernels = [planted.kernel("twice"), planted.kernel("right")]
    selection = choose(kernels)
    with pytest.warns(RuntimeWarning) as said:
        selection.check()
    assert selection.kernel == "planted.right[triton]"
    assert len([one for one in said if "holds in this process only" in str(one.message)]) == 1
    ran = dict(planted.runs)
    epoch.bump()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = choose(kernels, shape={"M": 5, "H": 192})
        again.check()
    assert again.kernel == "planted.right[triton]"
    assert planted.runs == ran


def test_what_is_dropped_is_gone_for_all(path: Path) -> None:
    book, other = Book(path), Book(path)
    for v in (verdict(), verdict(driver="590"), verdict(driver="600", status="trusted"), verdict("b[triton]")):
        book.record(v)
    before = epoch.value
    gone = other.forget("a.b[triton]")
    assert {v.fingerprint["driver"] for v in gone} == {"580", "590"}
    assert epoch.value > before
    assert {(v.kernel, v.status) for v in Book(path)} == {("a.b[triton]", "trusted"), ("b[triton]", "quarantined")}
    assert other.forget("a.b[triton]") == []


def test_what_cannot_be_dropped_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = Book(path)
    book.record(verdict())

    def full(*_: object) -> None:
        raise StoreError("cannot write: the disk is full.")

    monkeypatch.setattr(quarantine, "write_whole", full)
    with pytest.raises(StoreError, match="disk is full"):
        book.forget("a.b[triton]")


def test_a_file_holds_a_bounded_number_and_keeps_quarantines(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "_MOST", 3)
    book = Book(path)
    book.record(verdict("bad[triton]", when="2020"))
    for year in range(2021, 2026):
        book.record(verdict(f"good{year}[triton]", status="trusted", when=str(year)))
    assert {v.kernel for v in Book(path)} == {"bad[triton]", "good2024[triton]", "good2025[triton]"}


def test_a_quarantine_makes_selections_anew_and_trust_does_not(path: Path) -> None:
    book, before = Book(path), epoch.value
    book.record(verdict(status="trusted"))
    assert epoch.value == before
    book.record(verdict())
    assert epoch.value == before + 1


# the command


def run(*args: str) -> tuple[int, str]:
    from click.testing import CliRunner

    from kernelmux.cli.app import kernelmux

    result = CliRunner().invoke(kernelmux, args)
    return result.exit_code, result.output


def test_doctor_lists_what_was_checked() -> None:
    assert "No kernel has been checked on a GPU yet" in run("doctor")[1]
    selection = choose([planted.kernel("nan_at_8"), planted.kernel("right")])
    with pytest.warns(RuntimeWarning):
        selection.check()
    code, text = run("doctor")
    assert code == 0
    assert "planted.nan_at_8[triton]" in text
    assert "NaN in 1 of 1536 elements" in text
    assert "kernelmux doctor --retry KERNEL" in text
    data = json.loads(run("doctor", "--json")[1])["trust"]
    assert data["mode"] == "strict"
    assert [one["kernel"] for one in data["quarantined"]] == ["planted.nan_at_8[triton]"]
    assert [one["kernel"] for one in data["trusted"]] == ["planted.right[triton]"]
    assert data["quarantined"][0]["current"] is True
    assert data["quarantined"][0]["evidence"]["cases"][0]["fault"]


def test_doctor_tries_a_kernel_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = planted.kernel("nan_at_8")
    with pytest.warns(RuntimeWarning):
        choose(kernel).check()
    code, text = run("doctor", "--retry", kernel.name)
    assert code == 1
    assert "quarantined: M=8: NaN" in text
    assert choose(kernel).backend == "torch"
    monkeypatch.setattr(planted, "mended", True)
    code, text = run("doctor", "--retry", kernel.name, "--json")
    assert code == 0
    assert [one["status"] for one in json.loads(text)["retried"]] == ["trusted"]
    assert choose(kernel).kernel == kernel.name


def test_doctor_drops_what_stands_against_a_kernel_whose_gpu_is_elsewhere() -> None:
    quarantine.book().record(verdict("flashinfer.mm_fp4[cudnn]"))
    code, text = run("doctor", "--retry", "flashinfer.mm_fp4[cudnn]")
    assert code == 0
    assert "dropped: its GPU is not here" in text
    assert not len(quarantine.book())


def test_doctor_knows_no_such_quarantined_kernel() -> None:
    from kernelmux.cli.app import run as main

    quarantine.book().record(verdict("flashinfer.mm_fp4[cudnn]"))
    assert main(["doctor", "--retry", "flashinfer.mm_fp4"]) == 2
