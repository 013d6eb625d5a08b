from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelmux.tuning_configs.check import check
from kernelmux.tuning_configs.fix import mend

from .test_check import ENTRY, H100, codes, write
from .test_tile import tiles
from .worlds import put

BLOCK = "E=8,N=64,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128,128].json"


@pytest.mark.parametrize(
    ("name", "content", "fault", "table"),
    [
        (f"{H100}.json", {"64": ENTRY, "8": ENTRY}, "unsorted_keys", {"8": ENTRY, "64": ENTRY}),
        (f"{H100}.json", {"8": ENTRY, "note": 3}, "key_not_integer", {"8": ENTRY}),
        (f"{H100}.json", {"8": {**ENTRY, "USE_TMA": True}}, "foreign_key", {"8": ENTRY}),
        (f"{H100}.json", {"8": {**ENTRY, "kpack": 2}}, "foreign_key", {"8": ENTRY}),
        (f"{H100}.json", "\ufeff" + json.dumps({"8": ENTRY}, indent=4), "bom", {"8": ENTRY}),
        (f"{H100}.json", json.dumps({"8": ENTRY}, indent=4).replace("\n", "\r\n"), "crlf", {"8": ENTRY}),
        (f"{H100}.json", '{"8": 1, "8": ' + json.dumps(ENTRY) + "}", "duplicate_key", {"8": ENTRY}),
        (BLOCK, {"8": {**ENTRY, "BLOCK_SIZE_K": 256}}, "clamped", {"8": {**ENTRY, "BLOCK_SIZE_K": 128}}),
    ],
)  # fmt: skip
def test_a_certain_mend_is_written_whole_with_a_backup(
    name: str, content: object, fault: str, table: object, tmp_path: Path
) -> None:
    path = tmp_path / name
    text = content if isinstance(content, str) else json.dumps(content, indent=4)
    path.write_bytes(text.encode())
    assert fault in codes(check([path]))
    (mended,) = mend([path])
    assert mended.backup.read_bytes() == text.encode()
    assert json.loads(path.read_text()) == table
    assert codes(check([path])) == []
    assert mend([path]) == []


def test_a_tile_over_shared_memory_is_shrunk_as_little_as_helps(tmp_path: Path) -> None:
    entry = {**ENTRY, "BLOCK_SIZE_M": 256, "BLOCK_SIZE_N": 256, "num_stages": 5}
    path = write(tmp_path, f"{H100}.json", {"1": entry})
    mend([path])
    assert json.loads(path.read_text())["1"] == {**entry, "num_stages": 3}


def test_a_name_spelled_for_the_other_engine_is_renamed(tmp_path: Path) -> None:
    path = write(tmp_path, BLOCK.replace("[128,128]", "[128, 128]"), {"1": ENTRY})
    (mended,) = mend([path], "vllm")
    assert mended.now.name == BLOCK
    assert not path.exists()
    (again,) = mend([mended.now], "sglang")
    assert again.now == path


def test_a_name_that_is_taken_is_not_given_twice(tmp_path: Path) -> None:
    write(tmp_path, BLOCK, {"2": ENTRY})
    path = write(tmp_path, BLOCK.replace("[128,128]", "[128, 128]"), {"1": ENTRY})
    assert mend([path], "vllm") == []
    assert path.exists()


def test_what_nobody_can_know_is_left_alone(tmp_path: Path) -> None:
    for name, content in (
        (f"{H100}.json", {"1": {**ENTRY, "num_warps": 3}}),
        ("odd.json", {"1": ENTRY}),
        (f"{H100.replace('128', '64')}.json", "{"),
    ):
        path = write(tmp_path, name, content)
        before = path.read_bytes()
        assert mend([path]) == []
        assert path.read_bytes() == before


def test_a_table_with_a_sidecar_is_what_was_measured(tmp_path: Path) -> None:
    written = put(tmp_path)
    text = written.up.read_text().replace('"num_warps": 4', '"num_warps": 8')
    written.up.write_text(text)
    assert mend([tmp_path]) == []
    assert written.up.read_text() == text


def test_a_second_backup_never_overwrites_the_first(tmp_path: Path) -> None:
    path = write(tmp_path, f"{H100}.json", {"64": ENTRY, "8": ENTRY})
    first = path.read_bytes()
    mend([path])
    path.write_text(json.dumps({"9": ENTRY, "8": ENTRY}))
    mend([path])
    assert path.with_name(path.name + ".bak").read_bytes() == first
    assert path.with_name(path.name + ".bak2").exists()


def test_a_link_out_of_the_folder_is_not_written_through(tmp_path: Path) -> None:
    target = write(tmp_path / "theirs", f"{H100}.json", {"64": ENTRY, "8": ENTRY})
    link = tmp_path / "ours" / target.name
    link.parent.mkdir()
    link.symlink_to(target)
    before = target.read_bytes()
    assert "symlink" in codes(check([link]))
    assert mend([link]) == []
    assert target.read_bytes() == before


sides = st.dictionaries(st.integers(1, 3000), tiles(), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(sides, sides)
def test_a_mended_pair_agrees_at_every_token_count(tmp_path_factory, up, down) -> None:
    folder = tmp_path_factory.mktemp("pair") / "triton_3_6_0"
    for name, side in ((f"{H100}.json", up), (f"{H100}_down.json", down)):
        write(folder, name, {str(m): {**tile.to_json(), "USE_TMA": tile.use_tma} for m, tile in sorted(side.items())})
    mend([folder])
    assert codes(check([folder])) == []
    assert mend([folder]) == []


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["1", "x", *ENTRY]), inner, max_size=4),
    max_leaves=12,
)
entries = st.fixed_dictionaries({key: st.integers(-1, 512) | values for key in ENTRY})
tables = st.dictionaries(st.sampled_from(["1", "8", "64", "triton_version", "01", "x"]), entries | values, max_size=4)


@settings(max_examples=150, deadline=None)
@given(
    tables | values, tables, st.sampled_from(["vllm", "sglang", "kernelmux", None]), st.sampled_from([H100, BLOCK[:-5]])
)
def test_whatever_a_file_holds_it_is_judged_and_mended_without_a_crash(
    tmp_path_factory, up, down, engine: str | None, name: str
) -> None:
    folder = tmp_path_factory.mktemp("any") / "triton_3_6_0"
    write(folder, f"{name}.json", json.dumps(up))
    write(folder, f"{name}_down.json", json.dumps(down))
    for report in check([folder], engine):
        assert all(fault.code and fault.message for fault in report.faults)
    mend([folder], engine)
    again = mend([folder], engine)
    assert again == []
