from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelmux.errors import ConfigFileError
from kernelmux.tuning_configs.tile import JSON_KEYS, Tile


def powers(low: int, high: int) -> st.SearchStrategy[int]:
    return st.sampled_from([1 << p for p in range(11) if low <= 1 << p <= high])


def tiles(**fixed: st.SearchStrategy[object]) -> st.SearchStrategy[Tile]:
    parts: dict[str, st.SearchStrategy[object]] = {
        "block_m": powers(16, 256),
        "block_n": powers(16, 256),
        "block_k": powers(16, 256),
        "group_m": powers(1, 64),
        "warps": powers(1, 16),
        "stages": st.integers(1, 8),
        "use_tma": st.booleans(),
    }
    return st.builds(Tile, **{**parts, **fixed})


ENTRY = {"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 128, "BLOCK_SIZE_K": 64, "GROUP_SIZE_M": 16}


@given(tiles())
def test_a_tile_read_back_from_its_json_is_the_same(tile: Tile) -> None:
    assert Tile.from_json(tile.to_json()) == tile


@given(tiles())
def test_a_tile_survives_pickling(tile: Tile) -> None:
    assert pickle.loads(pickle.dumps(tile)) == tile


def test_keys_are_written_in_the_order_of_public_files() -> None:
    assert list(Tile(64, 128, 64, use_tma=True).to_json()) == list(JSON_KEYS)


def test_use_tma_is_written_only_when_true() -> None:
    assert "USE_TMA" not in Tile(64, 128, 64).to_json()


def test_missing_warps_and_stages_are_tritons_defaults() -> None:
    tile = Tile.from_json(ENTRY)
    assert (tile.warps, tile.stages) == (4, 3)


def test_an_unknown_key_is_named_and_never_ignored() -> None:
    with pytest.raises(ConfigFileError, match=r"table\.json at 64: unknown key waves_per_eu, zzz"):
        Tile.from_json({**ENTRY, "zzz": 1, "waves_per_eu": 0}, "64", "table.json")


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigFileError, match="no BLOCK_SIZE_K, GROUP_SIZE_M"):
        Tile.from_json({"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 128}, "64", "table.json")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("BLOCK_SIZE_M", 48, "no power of two"),
        ("BLOCK_SIZE_M", -64, "outside"),
        ("BLOCK_SIZE_N", 64.0, "no integer"),
        ("BLOCK_SIZE_N", True, "no integer"),
        ("BLOCK_SIZE_K", "64", "no integer"),
        ("GROUP_SIZE_M", 0, "outside"),
        ("num_warps", 6, "no power of two"),
        ("num_stages", 99, "outside"),
        ("num_stages", None, "no integer"),
        ("USE_TMA", 1, "neither true nor false"),
        ("BLOCK_SIZE_M", 10**400, "outside"),
    ],
)
def test_a_value_no_launch_takes_is_named_with_its_place(key: str, value: object, said: str) -> None:
    with pytest.raises(ConfigFileError, match=said) as caught:
        Tile.from_json({**ENTRY, key: value}, "64", "table.json")
    assert caught.value.where == f"64.{key}"
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("entry", [None, 3, [], "64x64x64"])
def test_what_is_no_object_is_no_tile(entry: object) -> None:
    with pytest.raises(ConfigFileError, match="is no tile"):
        Tile.from_json(entry, "64", "table.json")


def test_a_tile_made_in_code_is_validated_too() -> None:
    with pytest.raises(ValueError, match="block_m"):
        Tile(17, 64, 64)


def test_short_reads_as_one_line() -> None:
    assert Tile(64, 128, 64, 16, 8, 3, True).short() == "64x128x64 g16 w8 s3 tma"
    assert Tile(16, 32, 64).short() == "16x32x64 g1 w4 s3"
