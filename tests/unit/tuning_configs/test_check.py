from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from kernelmux.cli.app import run
from kernelmux.tuning_configs.check import FileReport, check
from kernelmux.tuning_configs.folders import PACKAGED

from .worlds import SHAPE, put

ENTRY = {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 64, "GROUP_SIZE_M": 1, "num_warps": 4, "num_stages": 3}
H100 = "E=128,N=384,device_name=NVIDIA_H100_80GB_HBM3"


def write(folder: Path, name: str, table: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(table if isinstance(table, str) else json.dumps(table))
    return path


def codes(reports: list[FileReport]) -> list[str]:
    return [fault.code for report in reports for fault in report.faults]


def test_a_tuned_pair_is_sound(tmp_path: Path) -> None:
    put(tmp_path)
    put(tmp_path, source="predicted")
    reports = check([tmp_path])
    assert [report.format for report in reports] == ["kernelmux"] * 4
    assert codes(reports) == []


def test_the_packaged_tables_are_sound() -> None:
    assert codes(check([PACKAGED])) == []


@pytest.mark.parametrize(
    ("name", "table", "code"),
    [
        ("table.json", {"1": ENTRY}, "malformed_name"),
        ("E=384,N=128,device_name=,dtype=int4_w4a16.json", {"1": ENTRY}, "empty_device"),
        (f"{H100}.json", {"M": ENTRY}, "key_not_integer"),
        (f"{H100}.json", {"64": ENTRY, "8": ENTRY}, "unsorted_keys"),
        (f"{H100}.json", {"1": {**ENTRY, "zz": 1}}, "unknown_key"),
        (f"{H100}.json", {"1": {**ENTRY, "BLOCK_SIZE_M": 256, "BLOCK_SIZE_N": 256, "num_stages": 5}}, "shared_memory"),
        (f"{H100}_down.json", {"1": ENTRY}, "no_up_table"),
        (f"{H100},K=2048,topk=8,activation=silu.json", {"1": ENTRY}, "no_sidecar"),
        (f"{H100}.json", '{"1": ', "truncated"),
    ],
)
def test_each_fault_is_named(name: str, table: object, code: str, tmp_path: Path) -> None:
    assert codes(check([write(tmp_path, name, table)])) == [code]


def test_a_fault_says_where_what_and_how_to_mend_it(tmp_path: Path) -> None:
    table = {"64": {**ENTRY, "BLOCK_SIZE_M": 256, "BLOCK_SIZE_N": 256, "num_stages": 5}}
    path = write(tmp_path / "triton_3_6_0", f"{H100}.json", table)
    (report,) = check([path])
    (fault,) = report.faults
    assert fault.where == "64"
    assert "needs 327,680 bytes of shared memory; h100-sxm has 232,448" in fault.message
    assert "Lower num_stages" in fault.fix


def test_a_pair_that_disagrees_is_one_fault_whichever_file_is_given(tmp_path: Path) -> None:
    up = write(tmp_path, f"{H100}.json", {"1": ENTRY, "8": ENTRY})
    down = write(tmp_path, f"{H100}_down.json", {"1": {**ENTRY, "BLOCK_SIZE_M": 32}})
    for paths in ([tmp_path], [up], [down], [up, down]):
        assert codes(check(paths)) == ["pair_block_m"]


def test_an_edited_table_is_noticed(tmp_path: Path) -> None:
    written = put(tmp_path)
    written.down.write_text(written.down.read_text().replace('"num_warps": 4', '"num_warps": 8'))
    for paths in ([tmp_path], [written.up], [written.down], [written.sidecar]):
        assert codes(check(paths)) == ["edited"]


def test_a_sidecar_without_its_table_and_a_broken_one_are_noticed(tmp_path: Path) -> None:
    written = put(tmp_path)
    written.sidecar.write_text("{}")
    assert codes(check([tmp_path])) == ["bad_sidecar"]
    written = put(tmp_path / "b")
    written.up.unlink()
    assert sorted(codes(check([tmp_path / "b"]))) == ["edited", "no_table", "no_up_table"]


def test_a_renamed_table_is_noticed(tmp_path: Path) -> None:
    for path in put(tmp_path):
        path.rename(path.with_name(path.name.replace("N=384", "N=768")))
    assert codes(check([tmp_path])) == ["sidecar_mismatch"]


def test_formats_are_told_apart(tmp_path: Path) -> None:
    vllm = write(tmp_path, "E=8,N=64,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128,128].json", {"1": ENTRY})
    noted = write(tmp_path, "E=8,N=64,device_name=NVIDIA_H200.json", {"triton_version": "3.6.0", "1": ENTRY})
    sglang = write(tmp_path / "triton_3_6_0", "E=8,N=64,device_name=NVIDIA_H200.json", {"1": ENTRY})
    reports = check([vllm, noted, sglang])
    assert [(report.format, report.ok) for report in reports] == [("vllm", True), ("vllm", True), ("sglang", True)]


def test_vllms_note_in_sglangs_folder_is_a_fault(tmp_path: Path) -> None:
    name = "E=8,N=64,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128]_down.json"
    write(tmp_path / "triton_3_6_0", name.replace("_down", ""), {"1": ENTRY})
    path = write(tmp_path / "triton_3_6_0", name, {"triton_version": "3.6.0", "1": ENTRY})
    assert codes(check([path])) == ["note_key"]
    assert codes(check([path], "vllm")) == ["unreachable"]


def test_a_folder_name_sglang_fails_on_is_a_fault(tmp_path: Path) -> None:
    assert codes(check([write(tmp_path / "triton_3_5_1+git", f"{H100}.json", {"1": ENTRY})])) == ["odd_folder"]


def test_a_clamped_block_k_counts_as_clamped(tmp_path: Path) -> None:
    entry = {**ENTRY, "BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 128, "BLOCK_SIZE_K": 256, "num_stages": 5}
    name = "E=8,N=64,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json"
    path = write(tmp_path, name, {"1": entry})
    assert codes(check([path], "kernelmux")) == ["clamped", "no_sidecar"]  # it fits as it runs
    assert codes(check([path], "sglang")) == ["wrong_scale"]
    assert codes(check([path], "vllm")) == ["unreachable", "clamped"]


def test_an_absent_path_is_a_fault(tmp_path: Path) -> None:
    assert codes(check([tmp_path / f"{H100}.json"])) == ["unreadable"]


def test_the_command_prints_json_and_exits_with_1_for_a_fault(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path)
    assert run(["configs", "check", str(tmp_path), "--json"]) == 0
    files = json.loads(capfd.readouterr().out)["files"]
    assert {tuple(sorted(file)) for file in files} == {("faults", "format", "ok", "path")}
    write(tmp_path, "odd.json", "{")
    assert run(["configs", "check", str(tmp_path), "--json"]) == 1
    faults = [fault for file in json.loads(capfd.readouterr().out)["files"] for fault in file["faults"]]
    assert all(sorted(fault) == ["code", "fix", "message", "where"] for fault in faults)
    assert run(["configs", "check", str(tmp_path)]) == 1
    assert "odd.json" in capfd.readouterr().out
    assert run(["configs", "check"]) == 2


def test_show_prints_a_file_and_a_choice(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = put(tmp_path)
    monkeypatch.setenv("KERNELMUX_CONFIG_DIR", str(tmp_path))
    assert run(["configs", "show", str(written.down)]) == 0
    assert "128x256x64 g8 w8 s3 tma" in capfd.readouterr().out
    assert run(["configs", "show", str(written.up), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["source"] == "measured"
    axes = ",".join(f"{axis}={size}" for axis, size in SHAPE.axes().items())
    choice = ["configs", "show", "--device", "h100-sxm", "--shape", axes, "--triton", "3.6.0"]
    assert run([*choice, "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert (shown["config_source"], shown["grade"], shown["path"]) == ("measured", "exact", str(written.up))
    assert run(choice) == 0
    assert str(written.up) in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "give a table file, or --device"),
        (["--device", "h100-sxm"], 2, "--device needs --shape"),
        (["--device", "h100-sxm", "--shape", "E=8"], 2, "lacks N, K, topk"),
        (["--device", "nope", "--shape", "E=8,N=64,K=64,topk=2"], 2, "unknown device"),
        (["/dev/null/odd.json"], 1, "odd.json: this file does not exist"),
        ([__file__], 1, "test_check.py at file name"),
        ([f"{H100}.json"], 1, "does not exist"),
    ],
)
def test_bad_input_to_show_is_one_sentence(
    arguments: list[str], code: int, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["configs", "show", *arguments]) == code
    error = capfd.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_help_names_both_commands() -> None:
    from kernelmux.cli.configs import configs

    said = CliRunner().invoke(configs, ["--help"]).output
    assert "check" in said
    assert "show" in said


def test_tables_of_other_kernels_that_engines_keep_beside_are_not_judged(tmp_path: Path) -> None:
    write(tmp_path / "triton_utils" / "configs", "causal_conv1d_fwd_sm_90.json", "[]")
    write(tmp_path / "triton_utils" / "configs" / "triton_3_6_0", f"{H100}.json", {"1": ENTRY})
    write(tmp_path / "dense", "N=1536,K=7168,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128,128].json", "{}")
    assert [(report.path.name, report.ok) for report in check([tmp_path])] == [(f"{H100}.json", True)]
