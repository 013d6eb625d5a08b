"""Tables of engines as values, and files of every hostile kind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelmux.tuning_configs.check import check
from kernelmux.tuning_configs.engines.entry import faults, with_tile
from kernelmux.tuning_configs.engines.foreign import ForeignTable, read
from kernelmux.tuning_configs.names import TableName
from kernelmux.tuning_configs.tile import Tile

from .test_check import ENTRY, H100, codes, write
from .test_tile import tiles

AMD = {**ENTRY, "waves_per_eu": 2, "matrix_instr_nonkdim": 16, "kpack": 1}
BARE = {key: value for key, value in ENTRY.items() if not key.startswith("num_")}


@pytest.mark.parametrize("indent", [4, 2, 1, None])
@pytest.mark.parametrize("tail", ["\n", "", "\n\n"])
@pytest.mark.parametrize("table", [{"1": ENTRY}, {"triton_version": "3.6.0", "64": AMD, "8": BARE}])
def test_a_file_is_rendered_to_its_bytes(indent: int | None, tail: str, table: dict, tmp_path: Path) -> None:
    path = tmp_path / f"{H100}.json"
    path.write_text(json.dumps(table, indent=indent) + tail)
    reading = read(path)
    assert reading.faults == ()
    assert reading.table is not None
    assert reading.table.render() == path.read_bytes()


@pytest.mark.parametrize(
    "text",
    [
        '{\n    "1": {\n      "BLOCK_SIZE_M": 16,\n      "BLOCK_SIZE_N": 64\n    }\n  }',
        '{\n    "1": {"BLOCK_SIZE_M": 16},\n\n    "2": {"BLOCK_SIZE_M": 16}\n}\n',
        '{"1":{"BLOCK_SIZE_M":16}}',
        '\n{ "1" :\t{} }',
    ],
)
def test_white_space_set_by_hand_is_kept(text: str, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    table = read(path).table
    assert table is not None
    assert table.render() == text.encode()
    changed = table.with_pairs({**dict(table.pairs), "9999": ENTRY})
    assert json.loads(changed.render())["9999"] == ENTRY


@given(st.dictionaries(st.integers(1, 9999), tiles(), min_size=1), st.sampled_from([None, "3.6.0"]))
def test_a_table_made_here_is_read_back_whole(tmp_path_factory, side, triton) -> None:
    path = tmp_path_factory.mktemp("t") / "t.json"
    made = ForeignTable.of({m: tile.to_json() for m, tile in side.items()}, triton)
    path.write_bytes(made.render())
    assert read(path).table == made


def test_engines_write_four_blanks_ascending_and_one_line_feed() -> None:
    text = ForeignTable.of({8: ENTRY, 1: ENTRY}, "3.6.0").render().decode()
    assert text == json.dumps({"triton_version": "3.6.0", "1": ENTRY, "8": ENTRY}, indent=4) + "\n"


def test_a_tile_put_into_an_entry_keeps_its_keys_and_order() -> None:
    tile = Tile(64, 128, 32, 8, 8, 2)
    assert list(with_tile(AMD, tile)) == list(AMD)
    assert with_tile(AMD, tile)["kpack"] == 1
    assert list(with_tile({**BARE, "kpack": 1}, tile)) == [*ENTRY, "kpack"]


@pytest.mark.parametrize(
    ("key", "value", "engine", "vendor", "code"),
    [
        ("USE_TMA", True, "vllm", "nvidia", "foreign_key"),
        ("USE_TMA", True, "sglang", "nvidia", None),
        ("USE_TMA", 1, "sglang", "nvidia", "bad_value"),
        ("SPLIT_K", 1, "sglang", "nvidia", "foreign_key"),
        ("SPLIT_K", 1, "vllm", "amd", None),
        ("waves_per_eu", 0, "vllm", "amd", None),
        ("waves_per_eu", 0, "vllm", "nvidia", "foreign_key"),
        ("matrix_instr_nonkdim", 17, "vllm", "amd", "bad_value"),
        ("grf_mode", "256", "vllm", "intel", None),
        ("grf_mode", "256", "vllm", "nvidia", "foreign_key"),
        ("num_ctas", 1, "vllm", None, None),
        ("num_warps", 3, "vllm", None, "bad_value"),
        ("BLOCK_SIZE_N", -64, "vllm", None, "bad_value"),
        ("BLOCK_SIZE_M", True, "vllm", None, "bad_value"),
        ("BLOCK_SIZE_M", 16.0, "vllm", None, "bad_value"),
    ],
)
def test_each_key_is_taken_where_a_launch_takes_it(key, value, engine, vendor, code) -> None:
    found = [fault.code for fault in faults("1", {**ENTRY, key: value}, engine, vendor)]
    assert found == ([] if code is None else [code])


def test_flydsl_tables_have_keys_and_values_of_their_own(tmp_path: Path) -> None:
    name = "E=384,N=256,device_name=AMD_Instinct_MI350X,dtype=int4_w4a16,backend=flydsl.json"
    sound = {"tile_m": 16, "tile_n": 64, "tile_k": 256, "tile_n2": 128, "tile_k2": 128}
    assert TableName.parse(name).format() == name
    assert codes(check([write(tmp_path, name, {"1": sound})])) == []
    assert codes(check([write(tmp_path, name, {"1": {**sound, "tile_k": 512}})])) == ["clamped"]
    assert codes(check([write(tmp_path, name, {"1": ENTRY})]))[0] == "missing_key"


def nested(depth: int) -> str:
    return '{"1": ' * depth + "1" + "}" * depth


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (nested(10_000), "not_json"),
        (nested(400), "missing_key"),
        ("[" * 1_000_000, "not_json"),
        ('{"1": {"BLOCK_SIZE_M": NaN}}', "not_json"),
        ('{"1": {"BLOCK_SIZE_M": Infinity}}', "not_json"),
        ("{" + ",".join(f'"{i}": 1' for i in range(100_000)) + "}", "too_many_keys"),
        ("{" + ",".join(f'"{i}": 1' for i in range(1_000_000)) + "}", "too_large"),
        (json.dumps({"1": {**ENTRY, "BLOCK_SIZE_M": -16}}), "bad_value"),
        (json.dumps({"1": {**ENTRY, "BLOCK_SIZE_M": 10**4000}}), "bad_value"),
        ('{"1": ' + json.dumps(ENTRY) + ', "1": ' + json.dumps(ENTRY) + "}", "duplicate_key"),
        ("\ufeff" + json.dumps({"1": ENTRY}), "bom"),
        (json.dumps({"1": ENTRY}, indent=4).replace("\n", "\r\n"), "crlf"),
        ('{"\\u0031": ' + json.dumps(ENTRY) + "}", "odd_spelling"),
        ('{"\\ud800": ' + json.dumps(ENTRY) + "}", "odd_spelling"),
        ('{"1": {"' + "x" * 1_000_000 + '": 1}}', "missing_key"),
        ("\x00" * 100, "not_json"),
        ("", "not_json"),
    ],
)
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_hostile_file_is_one_fault_first(content: str, code: str, engine: str, tmp_path: Path) -> None:
    path = tmp_path / "triton_3_6_0" / f"{H100}.json"
    path.parent.mkdir()
    path.write_bytes(content.encode())
    (report,) = check([path], engine)
    assert report.faults[0].code == code
    assert all(len(fault.message) < 400 for fault in report.faults)


def test_a_gigabyte_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / f"{H100}.json"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    assert codes(check([path])) == ["too_large"]


def test_links_pipes_and_folders_are_one_fault_each(tmp_path: Path) -> None:
    for number, make in enumerate(
        (
            lambda p: p.symlink_to(p),
            lambda p: p.symlink_to(tmp_path / "nowhere"),
            lambda p: p.symlink_to("/dev/zero"),
            lambda p: os.mkfifo(p),
        )
    ):
        path = tmp_path / f"E={number + 1},N=384,device_name=NVIDIA_H200.json"
        make(path)
        found = codes(check([path]))
        assert found in (["unreadable"], ["not_a_file"], ["symlink", "not_a_file"])


def test_a_file_without_permission_is_one_fault(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    path = write(tmp_path, f"{H100}.json", {"1": ENTRY})
    path.chmod(0)
    assert codes(check([path])) == ["unreadable"]


@pytest.mark.parametrize("name", ["E=1,N=2,device_name=..", "E=1,N=2,device_name=a b", "E=-1,N=2,device_name=x", "E=1"])
def test_a_malformed_name_is_named(name: str, tmp_path: Path) -> None:
    found = codes(check([write(tmp_path, f"{name}.json", {"1": ENTRY})]))
    assert found in (["malformed_name"], [])  # ".." is a name like another: no separator, so it leads nowhere
