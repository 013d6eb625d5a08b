from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from kernelmux.cli import main
from kernelmux.reports.tuning_files import report_of, shipped_from
from kernelmux.tuning_configs.tile import Tile
from kernelmux.tuning_configs.write import render as table_text
from tests.unit.reports.small import OTHER, TILE, WIDE, measured

ROOT = Path(__file__).parents[3]
PACKAGED = ROOT / "kernelmux/tuning_configs/configs/triton_3_6_0"
NAME = "E=128,N=384,device_name=NVIDIA_H200"


@pytest.fixture
def output(tmp_path):
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps(measured()))
    return path


def test_an_output_of_tune_makes_a_report_with_its_fingerprint(output):
    value = report_of(output)
    made = value["provenance"]
    assert (made["driver"], made["versions"]["triton"], made["kernel"]["source_hash"]) == (
        "580.1",
        "3.6.0",
        "caf429aedcc1a603",
    )
    assert value["device"]["torch_name"] == "NVIDIA H200"


@pytest.mark.parametrize("end", [".json", "_down.json", ".meta.json"])
def test_a_table_its_other_half_and_its_sidecar_make_the_same_report(end):
    value = report_of(PACKAGED / (NAME + end))
    assert value == report_of(PACKAGED / (NAME + ".json"))
    assert value["source"] == "measured"
    assert value["provenance"]["kernel"]["source_hash"]
    assert value["rows"][0]["default"]


def test_a_run_reports_the_same_at_once_and_from_its_table_afterwards(tmp_path):
    from kernelmux.autotune.run import tune_moe
    from kernelmux.reports.tuning import of_result
    from tests.unit.autotune.landscape import H100, SMALL, Landscape

    result = tune_moe(
        SMALL, H100, bench=Landscape(shape=SMALL), effort="quick", out=tmp_path, ms=(1, 64), compile_with=None
    )
    now, later = of_result(result), report_of(result.paths[0])
    same = ("shape", "quant", "rows", "discards", "failures", "notes", "seconds", "conditions", "source", "ceilings")
    for row in (*now["rows"], *later["rows"]):
        row.pop("default")  # the sidecar keeps its time, not its tiles
        row["verdict"] = {"same": "tie"}.get(row["verdict"], row["verdict"])
    assert {key: now[key] for key in same} == {key: later[key] for key in same}


def test_measured_ceilings_of_another_gpu_are_refused(output, tmp_path):
    from kernelmux.errors import ConfigFileError

    path = tmp_path / "ceilings.json"
    path.write_text(json.dumps({"device": "NVIDIA L4", "ceilings": {"bf16_tflops": 100.0, "copy_gbs": 250.0}}))
    with pytest.raises(ConfigFileError, match="measured on NVIDIA L4, the tiles are for NVIDIA H200"):
        report_of(output, ceilings=path)


def test_a_shipped_table_is_read_at_its_nearest_key(tmp_path):
    path = tmp_path / (NAME + ".json")
    path.write_text(table_text({1: Tile.from_json(TILE), 64: Tile.from_json(OTHER), 4096: Tile.from_json(WIDE)}))
    shipped = shipped_from(path, [1, 40, 3000], "vllm")
    assert [shipped.tiles[m]["up"] for m in (1, 40, 3000)] == [TILE, OTHER, WIDE]
    assert shipped.table_of == "NVIDIA_H200"


def report(*words):
    return main(["report", "tuning", *map(str, words)])


def test_the_command_prints_markdown_and_writes_each_format(output, tmp_path, capsys):
    assert report(output) == 0
    assert capsys.readouterr().out.startswith("# Tuned tiles: E=128,N=384,K=2048,topk=8,silu,bfloat16 on NVIDIA H200\n")
    for name, start in (("r.md", "# Tuned"), ("r.html", "<!DOCTYPE html>"), ("r.json", "{")):
        assert report(output, "--out", tmp_path / name) == 0
        assert (tmp_path / name).read_text(encoding="utf-8").startswith(start)
        assert capsys.readouterr().out == f"wrote {tmp_path / name}\n"


def test_the_command_prints_the_value_as_json(output, capsys):
    assert report(output, "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(report_of(output)))


def test_plots_are_written_beside_markdown(output, tmp_path, capsys):
    assert report(output, "--out", tmp_path / "r.md", "--plots") == 0
    assert (tmp_path / "r-time.svg").exists()
    assert "![Time over M](r-time.svg)" in (tmp_path / "r.md").read_text(encoding="utf-8")


def write(path, text):
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "make, code, said",
    [
        (lambda d: [d / "none.json"], 1, "Give a tuned table"),
        (lambda d: [write(d / "x.json", "[1]")], 1, "no JSON object"),
        (lambda d: [write(d / "x.json", "{")], 1, "Give a tuned table"),
        (lambda d: [write(d / "x.json", "{}")], 1, "neither a tuned table nor an output of tune"),
        (lambda d: [write(d / f"{NAME}.json", "{}")], 1, "has no sidecar"),
        (lambda d: [d / "good.json", "--out", d / "x.txt"], 2, "must end in .md, .html or .json"),
        (lambda d: [d / "good.json", "--plots"], 2, "--plots needs --out"),
        (lambda d: [d / "good.json", "--plots", "--out", d / "x.html"], 2, "--plots goes with Markdown"),
        (lambda d: [d / "good.json", "--ceilings", d / "good.json"], 1, "at ceilings: this object is missing"),
        (lambda d: [d / "good.json", "--shipped", d / "good.json"], 1, "that vLLM or SGLang ships"),
        (lambda d: [write(d / "x.json", json.dumps({**measured(), "table": [{"m": 1}]}))], 1, "no up"),
        (lambda d: [write(d / "x.json", json.dumps({**measured(), "shape": {"E": 0}}))], 1, "lacks N, K, topk"),
        (lambda d: [write(d / "x.json", json.dumps({**measured(), "discards": {"up": 3}}))], 1, "no tuning report"),
        (lambda d: [write(d / "x.json", json.dumps({**measured(), "seconds": {"total": "x"}}))], 1, "no tuning report"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(make, code, said, tmp_path, capsys):
    (tmp_path / "good.json").write_text(json.dumps(measured()))
    assert report(*make(tmp_path)) == code
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert said in errors[0]


def test_an_edited_table_is_not_reported_as_tuned(tmp_path, capsys):
    for end in (".json", "_down.json", ".meta.json"):
        shutil.copy(PACKAGED / (NAME + end), tmp_path)
    path = tmp_path / (NAME + ".json")
    path.write_text(path.read_text().replace('"num_warps": 4', '"num_warps": 8', 1))
    assert report(path) == 1
    assert "not the file that was tuned" in capsys.readouterr().err


def test_tune_writes_its_reports(tmp_path, capsys):
    words = ["tune", "--shape", "E=8,N=1024,K=1024,topk=2", "--device", "h100-sxm", "--offline", "--budget", "1",
             "--m", "1", "--workers", "1", "--out", tmp_path / "out", "--json"]  # fmt: skip
    reports = [tmp_path / "r.md", tmp_path / "r.html"]
    assert main([str(w) for w in (*words, *(x for path in reports for x in ("--report", path)))]) == 0
    assert "Predicted tiles" in reports[0].read_text(encoding="utf-8")
    assert reports[1].read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    json.loads(capsys.readouterr().out)


def test_tune_refuses_an_unknown_report_format_before_it_starts(tmp_path, capsys):
    assert main(["tune", "--shape", "E=8,N=1024,K=1024,topk=2", "--report", str(tmp_path / "r.pdf")]) == 2
    assert "must end in .md, .html or .json" in capsys.readouterr().err
