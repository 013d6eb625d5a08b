from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelmux.errors import ConfigFileError
from kernelmux.tuning_configs.document import MAX_BYTES, read
from kernelmux.tuning_configs.tile import Tile
from kernelmux.tuning_configs.write import render

from .test_tile import tiles

ENTRY = '{"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 64, "GROUP_SIZE_M": 1}'
WHOLE = '{"1": ' + ENTRY + ', "2": ' + ENTRY + "}"


def codes(path: Path, content: str | bytes) -> list[str]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return [fault.code for fault in read(path).faults]


@given(made=st.dictionaries(st.integers(1, 200_000), tiles(), min_size=1, max_size=20))
def test_a_rendered_table_is_read_back_identical(made: dict[int, Tile], tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("d") / "t.json"
    path.write_text(render(made))
    document = read(path).checked()
    assert document.tiles == made
    assert document.order == tuple(sorted(made))


@given(cut=st.integers(0, len(WHOLE) - 1))
def test_a_table_cut_anywhere_is_a_fault_and_never_a_table(cut: int, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("d") / "t.json"
    assert len(codes(path, WHOLE[:cut])) == 1


@given(content=st.binary(max_size=200))
def test_no_bytes_crash_the_reader(content: bytes, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("d") / "t.json"
    path.write_bytes(content)
    document = read(path)
    assert bool(document.faults) != bool(document.tiles)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("", "not_json"),
        (WHOLE[:-20], "truncated"),
        ('{"1": "abc', "truncated"),
        ("\ufeff" + WHOLE, "bom"),
        (b"\xff\xfe", "not_json"),
        ("[1, 2]", "not_a_table"),
        ("3", "not_a_table"),
        ("{}", "no_entries"),
        ('{"1": NaN}', "not_json"),
        ('{"1": ' + "9" * 5000 + "}", "not_json"),
        ("[" * 100_000, "not_json"),
        ('{"M": ' + ENTRY + "}", "key_not_integer"),
        ('{"0": ' + ENTRY + "}", "key_not_integer"),
        ('{"-1": ' + ENTRY + "}", "key_not_integer"),
        ('{"01": ' + ENTRY + "}", "key_not_integer"),
        ('{"1.5": ' + ENTRY + "}", "key_not_integer"),
        ('{"99999999999": ' + ENTRY + "}", "key_not_integer"),
        ('{"1": ' + ENTRY + ', "1": ' + ENTRY + "}", "duplicate_key"),
        ('{"1": ' + ENTRY.replace("}", ', "BLOCK_SIZE_M": 32}') + "}", "duplicate_key"),
        ('{"1": 5}', "not_a_tile"),
        ('{"1": ' + ENTRY.replace("16", "17") + "}", "bad_value"),
        ('{"1": ' + ENTRY.replace("16", "-16") + "}", "bad_value"),
        ('{"1": ' + ENTRY.replace("GROUP_SIZE_M", "GROUP") + "}", "unknown_key"),
        ('{"1": {"BLOCK_SIZE_M": 16}}', "missing_key"),
    ],
)
def test_each_thing_wrong_is_one_named_fault(content: str | bytes, code: str, tmp_path: Path) -> None:
    assert codes(tmp_path / "t.json", content) == [code]


def test_every_faulty_entry_is_listed_up_to_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    assert len(codes(path, json.dumps(dict.fromkeys(range(1, 2000), 1)))) == 51
    assert codes(path, json.dumps(dict.fromkeys(range(1, 10_000), 1))) == ["too_many_keys"]


def test_what_is_no_table_file_is_refused_unread(tmp_path: Path) -> None:
    huge, pipe = tmp_path / "huge", tmp_path / "pipe"
    with huge.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    os.mkfifo(pipe)
    for path, code in [
        (huge, "too_large"), (pipe, "not_a_file"), (tmp_path, "not_a_file"), (tmp_path / "absent", "unreadable"),
    ]:  # fmt: skip
        assert [fault.code for fault in read(path).faults] == [code]


def test_windows_line_ends_are_fine(tmp_path: Path) -> None:
    assert codes(tmp_path / "t.json", WHOLE.replace(", ", ",\r\n")) == []


def test_a_fault_names_file_and_place(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text('{"64": ' + ENTRY.replace("16", "17") + "}")
    with pytest.raises(ConfigFileError, match=r"t\.json at 64\.BLOCK_SIZE_M: 17 is no power of two\. Correct"):
        read(path).checked()
