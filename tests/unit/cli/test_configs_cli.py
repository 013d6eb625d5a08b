"""``kernelmux configs``: exit codes, the JSON of DESIGN's contract, and words for people."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kernelmux.cli.app import run
from tests.unit.tuning_configs.test_check import ENTRY, write
from tests.unit.tuning_configs.worlds import put

NAME = "E=128,N=384,device_name=NVIDIA_H100_80GB_HBM3.json"


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELMUX_CONFIG_DIR", str(tmp_path / "mine"))
    monkeypatch.delenv("VLLM_TUNED_CONFIG_FOLDER", raising=False)
    monkeypatch.delenv("SGLANG_MOE_CONFIG_DIR", raising=False)


def call(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = run(["configs", *map(str, args)])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_check_prints_the_contracts_json_and_exits_with_1_on_a_fault(tmp_path: Path, capsys) -> None:
    path = write(tmp_path / "t", NAME, {"64": ENTRY, "8": ENTRY})
    code, out, _ = call(capsys, "check", tmp_path / "t", "--json")
    (file,) = json.loads(out)["files"]
    assert code == 1
    assert (file["path"], file["format"], file["ok"]) == (str(path), "vllm", False)
    assert set(file["faults"][0]) == {"code", "where", "message", "fix"}


def test_fix_mends_says_what_and_exits_with_0_when_nothing_is_left(tmp_path: Path, capsys) -> None:
    path = write(tmp_path / "t", NAME, {"64": ENTRY, "8": ENTRY})
    code, out, _ = call(capsys, "check", "--fix", path)
    assert code == 0
    assert "mended unsorted_keys" in out
    assert path.with_name(NAME + ".bak").exists()
    code, out, _ = call(capsys, "check", "--fix", path, "--json")
    assert (code, json.loads(out)["mended"]) == (0, [])


def test_as_says_whose_rules_hold(tmp_path: Path, capsys) -> None:
    name = NAME.replace(".json", ",dtype=fp8_w8a8,block_shape=[128, 128].json")
    path = write(tmp_path / "triton_3_6_0", name, {"8": ENTRY})
    assert call(capsys, "check", path)[0] == 0
    assert call(capsys, "check", "--as", "vllm", path)[0] == 1
    code, out, _ = call(capsys, "check", "--as", "vllm", "--fix", path)
    assert code == 0
    assert "block_shape=[128,128].json" in out


def test_show_as_vllm_names_the_file_the_entry_and_what_would_change(tmp_path: Path, capsys, monkeypatch) -> None:
    bundled = write(tmp_path / "bundled", NAME, {"256": ENTRY})
    mine = write(tmp_path / "own", NAME, {"512": ENTRY})
    monkeypatch.setenv("VLLM_TUNED_CONFIG_FOLDER", str(tmp_path / "own"))
    args = ("show", bundled.parent, "--as", "vllm", "--device", "h100-sxm", "--shape", "E=128,N=384", "--m", 300)
    code, out, _ = call(capsys, *args, "--json")
    data = json.loads(out)
    assert code == 0
    assert (data["path"], data["key"], data["distance"], data["entry"]) == (str(mine), 512, 212, ENTRY)
    unset = next(each for each in data["changes"] if each["if"] == "VLLM_TUNED_CONFIG_FOLDER not set")
    assert unset["answer"]["path"] == str(bundled)
    assert "212 away" in call(capsys, *args)[1]


def test_show_as_sglang_follows_the_triton_version_and_names_stand_ins(tmp_path: Path, capsys) -> None:
    write(tmp_path / "configs" / "triton_3_4_0", NAME, {"256": ENTRY})
    args = ("show", tmp_path, "--as", "sglang", "--shape", "E=128,N=384", "--m", "300", "--triton-version", "3.6.0")
    code, out, _ = call(capsys, *args, "--device", "NVIDIA H100 80GB HBM3")
    assert code == 0
    assert "the newest that has it, 3.4.0" in out
    code, out, _ = call(capsys, *args, "--device", "h100-nvl", "--json")
    data = json.loads(out)
    assert data["source"] == "default"
    assert data["stand_ins"][0]["path"].endswith(NAME)
    assert data["stand_ins"][0]["grade"] == "stand-in"


@pytest.mark.parametrize(
    "args",
    [
        ("show", "--as", "vllm", "--device", "h100-sxm", "--m", "1"),
        ("show", ".", "--as", "vllm", "--device", "h100-sxm", "--shape", "E=8", "--m", "1"),
        ("show", ".", "--as", "vllm", "--device", "nothing", "--shape", "E=8,N=64", "--m", "1"),
        ("show", ".", "--as", "vllm", "--device", "h100-sxm", "--shape", "E=8,N=64", "--m", "0"),
        ("show", ".", "--as", "vllm", "--device", "h100", "--shape", "E=8,N=64", "--m", "1", "--block-shape", "x"),
        ("import", "nowhere", "--from", "vllm"),
        ("import", ".", "--from", "trtllm"),
        ("import", ".", "--from", "vllm", "--shape", "M=4"),
        ("export", ".", "--to", "vllm"),
        ("export", ".", "--to", "vllm", "--out", "x", "--triton-version", "../.."),
        ("merge", "."),
        ("diff", "."),
    ],
)
def test_a_usage_error_is_one_sentence_and_2(args: tuple[str, ...], tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *args)
    assert (code, out) == (2, "")
    assert err.startswith("Error: ")
    assert "Traceback" not in err


def test_import_writes_to_the_users_tables_and_select_finds_them(tmp_path: Path, capsys) -> None:
    name = NAME.replace("NVIDIA_H100_80GB_HBM3", "NVIDIA_L40S")
    path = write(tmp_path / "theirs", name, {"triton_version": "3.6.0", "64": ENTRY})
    more = ("--shape", "K=2048,topk=8", "--activation", "silu")
    code, out, _ = call(capsys, "import", path.parent, "--from", "vllm", *more)
    assert code == 0
    assert "1 imported, 0 refused" in out
    shape = "E=128,N=384,K=2048,topk=8"
    code, out, _ = call(capsys, "show", "--device", "l40s", "--shape", shape, "--triton", "3.6.0", "--json")
    assert json.loads(out)["config_source"] == "imported"
    assert (
        run(["select", "fused_moe", "--device", "l40s", "--quant", "none", "--shape", f"M=64,{shape}", "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["config_source"] == "imported"


def test_a_refused_table_is_said_and_exits_with_1(tmp_path: Path, capsys) -> None:
    write(tmp_path / "theirs", NAME, {"64": {**ENTRY, "num_warps": 3}})
    code, out, err = call(capsys, "import", tmp_path / "theirs", "--from", "vllm")
    assert code == 1
    assert "3 is no power of two" in err
    code, out, _ = call(capsys, "import", tmp_path / "theirs", "--from", "vllm", "--json")
    assert json.loads(out)["tables"][0]["written"] == []


def test_export_says_how_to_point_the_engine_at_it(tmp_path: Path, capsys) -> None:
    put(tmp_path / "ours")
    code, out, err = call(capsys, "export", tmp_path / "ours", "--to", "sglang", "--out", tmp_path / "s")
    assert code == 0
    assert f"SGLANG_MOE_CONFIG_DIR={tmp_path / 's'}" in out
    assert "measured on kernelmux's fused kernel" in err
    assert (tmp_path / "s" / "configs" / "triton_3_6_0" / NAME).exists()


def test_diff_and_merge_answer_in_words_and_json(tmp_path: Path, capsys) -> None:
    write(tmp_path / "a", NAME, {"64": ENTRY})
    write(tmp_path / "b", NAME, {"64": {**ENTRY, "num_warps": 8}})
    code, out, _ = call(capsys, "diff", tmp_path / "a", tmp_path / "b")
    assert code == 0
    assert "M=64: num_warps 4 -> 8" in out
    assert call(capsys, "diff", tmp_path / "a", tmp_path / "b", "--exit-code")[0] == 1
    assert json.loads(call(capsys, "diff", tmp_path / "a", tmp_path / "a", "--json")[1])["same"] == 1
    code, out, _ = call(capsys, "merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c", "--json")
    assert code == 0
    assert json.loads(out)["conflicts"][0]["place"] == NAME
