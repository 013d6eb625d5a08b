from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelmux.errors import ConfigFileError, StoreError
from kernelmux.registry import epoch
from kernelmux.tuning_configs import sidecar as sidecars
from kernelmux.tuning_configs.document import read
from kernelmux.tuning_configs.lookup import find
from kernelmux.tuning_configs.table import MoeConfig, MoeTable
from kernelmux.tuning_configs.tile import Tile

from .test_tile import tiles
from .worlds import SHAPE, TABLE, h100, put, sidecar

moe_configs = st.tuples(tiles(), tiles()).map(lambda t: MoeConfig(t[0], replace(t[1], block_m=t[0].block_m)))
tables = st.dictionaries(st.integers(1, 100_000), moe_configs, min_size=1, max_size=12).map(MoeTable.of)


@given(table=tables)
def test_a_written_table_is_found_and_read_back_identical(table: MoeTable, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("w")
    put(folder, table=table)
    choice = find(h100(), "3.6.0", SHAPE, [folder])
    assert (choice.source, choice.grade, choice.table) == ("measured", "exact", table)


def test_the_files_are_whole_and_named_by_sglangs_grammar(tmp_path: Path) -> None:
    written = put(tmp_path)
    base = "triton_3_6_0/E=128,N=384,device_name=NVIDIA_H100_80GB_HBM3"
    assert [str(path.relative_to(tmp_path)) for path in written] == [
        f"{base}.json",
        f"{base}_down.json",
        f"{base}.meta.json",
    ]
    assert sorted(name for name in os.listdir(written.up.parent) if not name.startswith(".")) == sorted(
        path.name for path in written
    )


def test_engines_can_read_the_file(tmp_path: Path) -> None:
    """vLLM and SGLang: ``{int(key): val for key, val in json.load(f).items()}``, then the launch by keyword."""
    for path in put(tmp_path)[:2]:
        table = {int(key): value for key, value in json.loads(path.read_text()).items()}
        assert list(table) == sorted(table)
        for entry in table.values():
            assert {"BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "GROUP_SIZE_M", "num_warps", "num_stages"} <= set(
                entry
            )
            assert set(entry) <= {*Tile(16, 16, 16, use_tma=True).to_json()}


def test_a_sidecar_is_read_back_identical(tmp_path: Path) -> None:
    written = put(tmp_path)
    back = sidecars.load(written.sidecar)
    assert replace(back, sha256={}) == sidecar()
    assert back.sha256 == {"up": read(written.up).sha256, "down": read(written.down).sha256}


def test_the_same_shape_is_overwritten_and_another_gets_a_qualified_name(tmp_path: Path) -> None:
    first, again = put(tmp_path), put(tmp_path)
    other = put(tmp_path, shape=replace(SHAPE, K=4096))
    relu = put(tmp_path, shape=replace(SHAPE, activation="relu2"))
    half = put(tmp_path, shape=SHAPE.with_dtype("float16"))
    assert first == again == half
    assert other.up.name == "E=128,N=384,device_name=NVIDIA_H100_80GB_HBM3,K=4096,topk=8,activation=silu.json"
    assert other.down.name.endswith("activation=silu_down.json")
    assert relu.up.name.endswith("K=2048,topk=8,activation=relu2.json")
    for shape, written in [(SHAPE, first), (replace(SHAPE, K=4096), other), (replace(SHAPE, activation="relu2"), relu)]:
        assert find(h100(), "3.6.0", shape, [tmp_path]).path == written.up


def test_a_foreign_table_of_the_same_name_is_not_overwritten(tmp_path: Path) -> None:
    written = put(tmp_path)
    written.sidecar.unlink()
    before = written.up.read_text()
    ours = put(tmp_path)
    assert ours.up != written.up
    assert written.up.read_text() == before
    assert find(h100(), "3.6.0", SHAPE, [tmp_path]).path == ours.up


def test_a_prediction_lies_beside_the_measurement(tmp_path: Path) -> None:
    measured, predicted = put(tmp_path), put(tmp_path, source="predicted")
    assert measured.up != predicted.up
    assert predicted.up.parent == tmp_path / "predicted" / "triton_3_6_0"
    assert find(h100(), "3.6.0", SHAPE, [tmp_path]).source == "measured"


def test_writing_makes_selections_anew(tmp_path: Path) -> None:
    before = epoch.value
    assert find(h100(), "3.6.0", SHAPE, [tmp_path]).source == "heuristic"
    put(tmp_path)
    assert epoch.value > before
    assert find(h100(), "3.6.0", SHAPE, [tmp_path]).source == "measured"


def test_a_write_cut_short_is_noticed(tmp_path: Path) -> None:
    put(tmp_path)
    code = """
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[2])
        from tuning_configs import worlds
        from kernelmux.tuning_configs import write
        from kernelmux.tuning_configs.table import MoeTable
        whole = write.write_whole
        def once(path, content):
            whole(path, content)
            os.kill(os.getpid(), signal.SIGKILL)
        write.write_whole = once
        worlds.put(Path(sys.argv[1]), table=MoeTable.of({1: worlds.SMALL}))
    """
    unit = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path), unit], capture_output=True, text=True
    )
    assert done.returncode == -9, done.stderr
    epoch.bump()
    with pytest.warns(UserWarning, match="is not the file that was tuned"):
        choice = find(h100(), "3.6.0", SHAPE, [tmp_path])
    assert choice.source == "heuristic"
    put(tmp_path)
    assert find(h100(), "3.6.0", SHAPE, [tmp_path]).table == TABLE


def test_an_unwritable_folder_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot"):
        put(tmp_path / "file")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 99}, "newer kernelmux"),
        ({"schema": "1"}, "no schema number"),
        ({"format": "x"}, "'x' is not 'kernelmux'"),
        ({"source": "guessed"}, "none of measured, imported, predicted"),
        ({"shape": {"E": 8}}, "shape"),
        ({"shape": {"E": 0, "N": 1, "K": 1, "topk": 1}}, "at least 1"),
        ({"sha256": {"up": "a"}}, "the hash of the up and the down"),
        ({"device": None}, "missing"),
        ({"points": {"x": {}}}, "malformed"),
        ({"points": {"1": {"interval": [1]}}}, "malformed"),
    ],
)
def test_a_broken_sidecar_names_the_key(change: dict, said: str, tmp_path: Path) -> None:
    path = put(tmp_path).sidecar
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConfigFileError, match=said):
        sidecars.load(path)
