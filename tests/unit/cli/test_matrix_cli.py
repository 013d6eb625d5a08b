"""``kernelmux matrix``: static, filtered, sharded, compared, kept; and everything that can be wrong in its input."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from kernelmux.cli.app import run

ONLY = ["--filter", "op=rms_norm,fp8_gemm", "--device", "h100-sxm", "--device", "t4"]


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELMUX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.chdir(tmp_path)


def made(name: str, *more: str) -> Path:
    assert run(["matrix", *ONLY, "--format", "json", "--out", name, *more]) == 0
    return Path(name)


def failing(capsys: pytest.CaptureFixture[str], *args: str, code: int = 1) -> str:
    capsys.readouterr()
    assert run(["matrix", *args]) == code
    return capsys.readouterr().err


def test_json_has_the_form_that_was_promised(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["matrix", *ONLY, "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["schema"] == 1 and len(data["cells"]) == 36
    assert {"op", "scheme", "device", "m", "backend", "evidence", "why", "rejected"} <= data["cells"][0].keys()
    assert run(["matrix", *ONLY, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cells"] == data["cells"]


def test_everything_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from kernelmux.cli.app import run;"
        "code = run(['matrix', '--format', 'json', '--out', 'all.json']);"
        "assert not code; assert not {'torch', 'triton'} & set(sys.modules), 'torch or triton was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    data = json.loads((tmp_path / "all.json").read_bytes())
    assert len({cell["device"] for cell in data["cells"]}) >= 30
    assert len({cell["op"] for cell in data["cells"]}) >= 13
    for op in data["header"]["ops"]:
        assert {cell["scheme"] for cell in data["cells"] if cell["op"] == op["name"]} == set(op["schemes"])


@pytest.mark.parametrize("form", ["md", "junit", "html"])
def test_every_format_is_written_whole(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    if form == "html":
        pytest.importorskip("kernelmux.reports.matrix_html")
    assert run(["matrix", *ONLY, "--format", form, "--out", f"x.{form}"]) == 0
    text = Path(f"x.{form}").read_text(encoding="utf-8")
    assert "rms_norm" in text
    if form == "junit":
        root = ET.fromstring(text.encode())
        assert int(root.get("tests", "0")) == len(root.findall(".//testcase")) == 36


def test_a_comparison_decides_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    base = made("base.json")
    assert run(["matrix", *ONLY, "--baseline", str(base), "--fail-on-change", "--out", "m.md"]) == 0
    assert "No change" in capsys.readouterr().out
    data = json.loads(base.read_text())
    cell = next(c for c in data["cells"] if c["op"] == "rms_norm" and c["device"] == "h100-sxm")
    cell.update(kernel="kernelmux.rms_norm[<img src=x onerror=1>]", backend="triton")
    base.write_text(json.dumps(data))
    args = ["matrix", *ONLY, "--baseline", str(base), "--out", "m.md", "--changes", "pr.md"]
    assert run(args) == 0
    assert run([*args, "--fail-on-change"]) == 1
    text = Path("pr.md").read_text()
    assert "Chosen differently (1)" in text and "h100-sxm, M=1" in text
    assert "<img" not in text and "&lt;img" in text
    Path("allow.yaml").write_text("allow:\n- change: '*'\n  op: rms_norm\n  reason: it was forged by a test\n")
    assert run([*args, "--fail-on-change", "--allow", "allow.yaml"]) == 0
    assert "it was forged by a test" in Path("pr.md").read_text()
    assert run([*args, "--format", "junit", "--fail-on-change"]) == 1
    assert ET.parse("m.md").getroot().get("failures") not in (None, "0")
    assert run([*args, "--format", "json"]) == 0
    assert json.loads(Path("m.md").read_text())["changes"]["against"]


def test_bad_input_overwrites_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    base = made("base.json")
    Path("out.json").write_text("as it was")
    Path("bad.json").write_text('{"schema": 1}')
    Path("next.json").write_text('{"schema": 99, "cells": []}')
    Path("freeze.txt").write_text("torch==2.11.0\nthis is no freeze\n")
    Path("allow.yaml").write_text("allow: 1\n")
    out = ["--out", "out.json", "--format", "json"]
    cases = [
        (["--baseline", "bad.json"], 1, "bad.json: is damaged"),
        (["--baseline", "next.json"], 1, "next.json: has schema 99; this kernelmux reads schema 1"),
        (["--baseline", "none.json"], 1, "none.json: cannot be read"),
        (["--packages", "freeze.txt"], 1, "freeze.txt at line 2: 'this is no freeze' is no line of a freeze"),
        (["--baseline", str(base), "--allow", "allow.yaml"], 1, "no list of allowed changes"),
        (["--allow", "allow.yaml"], 2, "--allow needs --baseline"),
        (["--fail-on-change"], 2, "--fail-on-change needs --baseline"),
        (["--filter", "gpu=t4"], 2, "nothing called 'gpu'"),
        (["--filter", "op="], 2, "says no value"),
        (["--filter", "op=none_such"], 2, "no cell is left by op=none_such"),
        (["--device", "h101"], 2, "Did you mean"),
        (["--shard", "3/2"], 2, "is no shard"),
        (["--shard", "half"], 2, "is no shard"),
        (["--m", "0"], 2, "token counts"),
        (["--live", "--compile-only"], 2, "take one"),
        (["--live", "--packages", "freeze.txt"], 2, "--live runs what is installed"),
        (["--resume"], 2, "--resume is for"),
        (["--from", "base.json", "--device", "t4"], 2, "--from reads"),
        (["--live", "--device", "h200"], 1, "described device"),
    ]
    for args, code, says in cases:
        assert says in failing(capsys, *args, *out, code=code), args
        assert Path("out.json").read_text() == "as it was"
    assert "would write over baseline" in failing(capsys, "--baseline", "base.json", "--out", "base.json", code=2)
    assert "would write over file 1" in failing(capsys, "--from", "base.json", "--out", "./base.json", code=2)
    assert "--packed is a form of JSON" in failing(capsys, "--packed", "--format", "md", *ONLY, code=2)


def test_shards_are_merged_or_refused(capsys: pytest.CaptureFixture[str]) -> None:
    whole = made("whole.json")
    for i in (1, 2, 3):
        made(f"{i}.json", "--shard", f"{i}/3", *(["--packed"] if i == 2 else []))
    assert run(["matrix", "merge", "1.json", "2.json", "3.json", "--format", "json", "--out", "all.json"]) == 0
    assert json.loads(Path("all.json").read_text())["cells"] == json.loads(whole.read_text())["cells"]
    before = Path("all.json").read_bytes()
    out = ["--format", "json", "--out", "all.json"]
    assert "shard 3/3 is missing" in failing(capsys, "merge", "1.json", "2.json", *out, code=2)
    assert "is given twice" in failing(capsys, "merge", "1.json", "2.json", "1.json", *out, code=2)
    Path("copy.json").write_bytes(Path("1.json").read_bytes())
    assert "shard 1/3 is given twice" in failing(
        capsys, "merge", "1.json", "2.json", "3.json", "copy.json", *out, code=2
    )
    assert Path("all.json").read_bytes() == before
    assert "Merge the shards first" in failing(capsys, *ONLY, "--baseline", "1.json", code=2)
    assert "is no whole matrix" in failing(capsys, "history", "rms_norm", "--add", "1.json", code=2)


def test_a_freeze_is_judged(capsys: pytest.CaptureFixture[str]) -> None:
    Path("freeze.txt").write_text("torch==2.11.0\ntriton==3.6.0\n")
    assert run(["matrix", *ONLY, "--packages", "freeze.txt", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["header"]["packages"] == {
        "title": "the freeze freeze.txt", "everything": False, "versions": {"torch": "2.11.0", "triton": "3.6.0"},
    }  # fmt: skip
    codes = {reason["code"] for cell in data["cells"] for reason in cell["rejected"]}
    assert "package_missing" in codes


def test_a_ci_job_gets_its_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    made("base.json")
    text = summary.read_text()
    assert text.startswith("before\n") and "# Matrix of kernelmux" in text
    made("again.json", "--no-summary")
    assert summary.read_text() == text


def test_history_shows_a_cell_over_matrices(capsys: pytest.CaptureFixture[str]) -> None:
    base = made("base.json", "--record")
    data = json.loads(base.read_text())
    data["header"]["created"] = "2099-01-01T00:00:00Z"
    for cell in data["cells"]:
        if cell["op"] == "rms_norm" and cell["m"] == 64:
            cell.update(evidence="declared")
    Path("later.json").write_text(json.dumps(data))
    capsys.readouterr()
    assert run(["matrix", "history", "rms_norm", "--add", "later.json", "--note", "driver 590"]) == 0
    told = capsys.readouterr()
    assert "2 matrices" in told.out and "later.json: kept" in told.err and "never changed" in told.out
    assert run(["matrix", "history", "rms_norm", "--cell", "*/h100-sxm/64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["matrices"]) == 2 and found["matrices"][1]["note"] == "driver 590"
    assert [point["status"] for point in found["cells"][0]["points"]][1] == "declared"
    assert "no cell of 'rms'" in failing(capsys, "history", "rms", code=2)
    assert "no cell of rms_norm fits" in failing(capsys, "history", "rms_norm", "--cell", "x", code=2)
    Path("cache/matrices.sqlite").write_bytes(b"something else entirely, and long enough to be a file " * 40)
    assert "matrices.sqlite" in failing(capsys, "history", "rms_norm")


def test_history_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no history yet" in failing(capsys, "history", "rms_norm")


def test_times_over_matrices_are_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    from kernelmux.reports.matrix_files import to_json
    from tests.unit.reports import matrix_setting as setting

    for run_number in (1, 2):
        cells = setting.measured()
        found = setting.replayed(cells, seed=run_number)
        Path(f"{run_number}.json").write_bytes(
            to_json(found).replace(found.header.created.encode(), f"2026-01-0{run_number}T00:00:00Z".encode())
        )
    assert run(["matrix", "history", "rms_norm", "--add", "1.json", "--add", "2.json"]) == 0
    out = capsys.readouterr().out
    assert any(bar in out for bar in "▇█")
    pytest.importorskip("matplotlib")
    assert run(["matrix", "history", "rms_norm", "--plot", "x.svg"]) == 0
    assert "<svg" in Path("x.svg").read_text()
    assert "--plot" in failing(capsys, "history", "rms_norm", "--plot", "x.nonsense", code=2)


def test_compile_only_says_what_a_compiler_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("triton")
    args = ["--compile-only", "--filter", "op=relu2", "--device", "h100-sxm", "--device", "mi300x", "--jobs", "1"]
    assert run(["matrix", *args, "--json"]) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    by_device = {(cell["device"], cell["backend"]): cell["result"] for cell in cells}
    known = by_device["h100-sxm", "triton"]
    assert known["status"] == "ok" and known["registers"] > 8 and known["spills"] == 0 and known["arch"] == "sm_90"
    other = by_device["mi300x", "triton"]
    assert other["status"] == "unknown" and "HIP" in other["explanation"]
    assert all(cell["m"] == 0 and cell["kind"] == "compiled" for cell in cells)
