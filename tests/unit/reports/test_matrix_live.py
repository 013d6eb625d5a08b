"""The live matrix on the CPU, in real processes: a kernel that fails costs its own cells, each with an explanation."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from msgspec.structs import replace

pytest.importorskip("torch")

from kernelmux.errors import DeviceNotFound, UsageError
from kernelmux.registry import discovery, packages
from kernelmux.reports import matrix_journal
from kernelmux.reports.matrix import Matrix
from kernelmux.reports.matrix_allow import sort_out
from kernelmux.reports.matrix_cases import Filter
from kernelmux.reports.matrix_diff import compare
from kernelmux.reports.matrix_live import live
from kernelmux.reports.matrix_pool import Answer, Job, run

from .matrix_toys import MODES, name

HERE = Path(__file__).parent
TOY, OWN = name("right"), "kernelmux.relu2[torch]"
NOT_HANGING = [mode for mode in MODES if mode != "hang"]


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An installed package whose entry point brings the toy kernel, for this process and the probes."""
    info = tmp_path / "site" / "toy_kernels-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-kernels\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[kernelmux.kernels]\ntoy = matrix_toys:KERNELS\n")
    root = Path(matrix_journal.__file__).parents[2]
    path = [str(info.parent), str(HERE), str(root), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
    monkeypatch.setenv("KERNELMUX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.syspath_prepend(str(info.parent))
    packages.forget()
    discovery.forget()
    yield
    monkeypatch.undo()
    packages.forget()
    discovery.forget()


def relu2(kernel: str = TOY, tokens: tuple[int, ...] = (1, 64), **more: object) -> Matrix:
    filters = [Filter.parse("op=relu2"), Filter.parse(f"kernel={kernel}")]
    options: dict[str, object] = {"tokens": tokens, "filters": filters, "jobs": 2, "limit_s": 20.0, **more}
    return live("cpu", **options)  # type: ignore[arg-type]


def test_a_right_kernel_is_checked_timed_and_weighed(toys: None) -> None:
    lines: list[str] = []
    found = relu2(f"{TOY},{OWN}", say=lines.append)
    assert {cell.outcome.kernel for cell in found.cells} == {TOY, OWN}
    assert len(found.cells) == len(lines) == 4 and lines[-1].endswith("0 cells left")
    for cell in found.cells:
        result = cell.result
        assert result is not None and result.status == "ok" and result.correct and result.deterministic
        assert result.checked is not None and result.checked >= 10 and (result.error or 0) <= 1
        assert result.time_us is not None and 0 < result.time_us.low <= result.time_us.median <= result.time_us.high
        assert result.first_call_ms is not None and result.floor_us and result.bound == "memory"
        assert result.capture is None and result.peak_bytes is None
    chosen = [cell for cell in found.cells if cell.outcome.why.startswith("chosen: ")]
    assert {cell.outcome.kernel for cell in chosen} == {OWN}


def test_what_a_kernel_does_wrong_is_red_with_an_explanation_and_reported(toys: None) -> None:
    found = relu2(",".join(map(name, NOT_HANGING)))
    by_mode = {mode: [cell for cell in found.cells if cell.outcome.kernel == name(mode)] for mode in NOT_HANGING}
    right = {cell.m: cell.result for cell in by_mode["right"]}
    before = replace(found, cells=tuple(replace(cell, result=right[cell.m]) for cell in found.cells))
    changes = compare(before, found)
    for mode, cells in by_mode.items():
        status = [cell.result.status for cell in cells if cell.result]
        assert status == (["ok", "crash"] if mode == "crash at 64" else [MODES[mode]] * 2), mode
        for cell in cells:
            assert cell.result is not None
            assert cell.result.status == "ok" or len(cell.result.explanation) > 10, mode
        codes = {change.code for change in changes if change.cell and change.cell.outcome.kernel == name(mode)}
        assert MODES[mode] in codes or MODES[mode] == "ok", mode
        assert "slower" in codes or mode != "slow"
    assert sort_out(changes, ()).failed
    (said, *_) = [cell.result.explanation for cell in by_mode["exit"] if cell.result]
    assert "exit code 7" in said and "the library gives up" in said
    assert "SIGSEGV" in by_mode["segfault"][0].result.explanation  # type: ignore[union-attr]


def test_a_kernel_that_hangs_is_given_up(toys: None) -> None:
    found = relu2(name("hang"), tokens=(1,), limit_s=0.5)
    assert [cell.result.status for cell in found.cells if cell.result] == ["hang"]
    assert "while it was making its first call" in found.cells[0].result.explanation  # type: ignore[union-attr]


def test_a_run_that_was_stopped_goes_on(toys: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(Exception):
        pass

    def stop(line: str) -> None:
        raise Stop

    with pytest.raises(Stop):
        relu2(say=stop)
    (left,) = matrix_journal.folder().iterdir()
    left.write_bytes(left.read_bytes() + b'{"key": "cut')
    monkeypatch.setenv("TOY_MODE", "zeros")  # what was measured is not measured again
    lines: list[str] = []
    found = relu2(resume=True, say=lines.append)
    assert lines[0] == "1 cells were measured before"
    assert [cell.result.status for cell in found.cells if cell.result] == ["ok", "wrong"]
    assert not list(matrix_journal.folder().iterdir())
    with pytest.raises(UsageError, match="nothing to resume"):
        relu2(resume=True)


def test_a_budget_leaves_the_rest_for_later(toys: None) -> None:
    found = relu2(f"{TOY},{name('hang')}", tokens=(1,), budget_s=12.0, limit_s=60.0)
    status = {cell.outcome.kernel: cell.result for cell in found.cells}
    hung = status[name("hang")]
    assert hung is not None and hung.status == "skipped" and "--budget" in hung.explanation
    assert len(list(matrix_journal.folder().iterdir())) == 1


def test_what_cannot_be_is_said(toys: None) -> None:
    with pytest.raises(UsageError, match="no cell is left"):
        relu2("none.such[kernel]")
    with pytest.raises(DeviceNotFound, match="--device cpu"):
        live("cuda:0", tokens=(1,))
    with pytest.raises(DeviceNotFound, match="described device"):
        live("h200", tokens=(1,))


def test_probes_that_die_at_once_are_red_one_by_one() -> None:
    job = Job({"kind": "no such kind", "cells": []}, (3, 4), "broken")
    found = list(run([job], width=2, limit_s=5.0))
    assert [answer.cell for answer in found] == [3, 4]
    assert all(isinstance(answer, Answer) and answer.result["status"] == "crash" for answer in found)
    assert "Error" in found[0].result["explanation"]
