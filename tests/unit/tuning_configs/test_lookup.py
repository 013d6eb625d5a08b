from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.device import Device, resolve_device
from kernelmux.quant import Scheme
from kernelmux.registry import epoch
from kernelmux.registry.config import ConfigChoice
from kernelmux.registry.packages import Packages
from kernelmux.registry.problem import Problem
from kernelmux.tuning_configs.choice import MoeChoice
from kernelmux.tuning_configs.document import KernelmuxConfigWarning
from kernelmux.tuning_configs.folders import distance, version_of
from kernelmux.tuning_configs.lookup import find, provider
from kernelmux.tuning_configs.shared_law import fits
from kernelmux.tuning_configs.table import MoeConfig, MoeTable
from kernelmux.tuning_configs.tile import Tile

from .worlds import SHAPE, SMALL, TABLE, h100, put

ONE = MoeTable.of({1: SMALL})


def look(
    folder: Path | list[Path], device: Device | None = None, triton: str = "3.6.0", shape: MoeShape = SHAPE
) -> MoeChoice:
    epoch.bump()  # files were moved by hand
    return find(device or h100(), triton, shape, folder if isinstance(folder, list) else [folder])


def test_nothing_tuned_gives_the_heuristic_and_says_so(tmp_path: Path) -> None:
    choice = look(tmp_path / "absent")
    assert isinstance(choice, ConfigChoice)
    assert (choice.source, choice.grade, choice.path) == ("heuristic", "heuristic", None)
    assert "no tuned table for E=128,N=384,K=2048,topk=8" in choice.why
    assert choice.at(8).block_m == 16
    assert set(choice.to_json(8)) == {"up", "down"}
    assert len(choice.to_json(None)) == 18


def test_a_table_of_this_device_and_triton_is_exact(tmp_path: Path) -> None:
    written = put(tmp_path)
    choice = look(tmp_path)
    assert isinstance(choice, ConfigChoice)
    assert (choice.source, choice.grade, choice.path) == ("measured", "exact", written.up)
    assert choice.at(4096) == TABLE.at(4096)
    assert list(choice.to_json(None)) == ["1", "64", "4096"]
    assert choice.notes == ()


def test_a_local_build_of_triton_matches_its_release(tmp_path: Path) -> None:
    put(tmp_path)
    assert look(tmp_path, triton="3.6.0+git1a2b").grade == "exact"


@pytest.mark.parametrize("change", [{"K": 4096}, {"topk": 4}, {"activation": "gelu"}])
def test_a_table_of_another_k_topk_or_activation_is_never_used(change: dict, tmp_path: Path) -> None:
    put(tmp_path)
    choice = look(tmp_path, shape=replace(SHAPE, **change))
    assert choice.source == "heuristic"
    assert "so it does not count here" in choice.notes[0]


def test_bf16_and_fp16_stand_in_for_each_other_with_a_note(tmp_path: Path) -> None:
    put(tmp_path)
    choice = look(tmp_path, shape=SHAPE.with_dtype("float16"))
    assert choice.source == "measured"
    assert "same element size" in choice.notes[0]
    assert look(tmp_path, shape=SHAPE.with_dtype("float32")).source == "heuristic"


def test_a_family_table_is_named_as_such_and_fits(tmp_path: Path) -> None:
    put(tmp_path, device=resolve_device("h200"))
    choice = look(tmp_path)
    assert (choice.source, choice.grade) == ("measured", "family")
    assert "NVIDIA_H200" in choice.why
    assert "stands in for h100-sxm" in choice.why


def test_a_family_table_is_made_to_fit_the_device(tmp_path: Path) -> None:
    big = MoeConfig(Tile(128, 256, 64, 1, 8, 4), Tile(128, 256, 64, 1, 8, 4))
    put(tmp_path, table=MoeTable.of({1: big}), device=resolve_device("h200"))
    small = replace(h100(), shared_bytes=101_376)
    with pytest.warns(KernelmuxConfigWarning, match="shared memory"):
        choice = look(tmp_path, small)
    assert fits(choice.at(1).up, small)
    assert fits(choice.at(1).down, small)
    assert choice.at(1).block_m == 128


def test_another_family_is_no_stand_in(tmp_path: Path) -> None:
    put(tmp_path, device=resolve_device("a100-sxm-80gb"))
    assert look(tmp_path).source == "heuristic"


def test_a_mig_slice_does_not_take_the_whole_gpus_table(tmp_path: Path) -> None:
    put(tmp_path)
    slice_ = replace(h100(), torch_name="NVIDIA H100 80GB HBM3 MIG 1g.10gb", sm_count=16)
    assert look(tmp_path, slice_).source == "heuristic"


def test_the_nearest_triton_stands_in_and_says_so(tmp_path: Path) -> None:
    for version in ("3.1.0", "3.5.1", "3.9.0"):
        put(tmp_path, triton=version)
    choice = look(tmp_path)
    assert choice.grade == "triton-version"
    assert choice.path.parent.name == "triton_3_5_1"
    assert "Triton 3.5.1" in choice.why
    assert "3.6.0" in choice.why


def test_a_tie_between_versions_goes_to_the_newer() -> None:
    assert min([(3, 4, 0), (3, 6, 0)], key=lambda v: distance(v, (3, 5, 0))) == (3, 6, 0)
    assert min([(3, 5, 9), (3, 6, 0)], key=lambda v: distance(v, (3, 5, 0))) == (3, 5, 9)
    assert min([(3, 5, 9), (3, 6, 0)], key=lambda v: distance(v, None)) == (3, 6, 0)


def test_this_triton_of_the_family_comes_before_another_triton_of_the_device(tmp_path: Path) -> None:
    put(tmp_path, triton="3.5.1")
    put(tmp_path, device=resolve_device("h200"))
    assert look(tmp_path).grade == "family"
    assert look(tmp_path, triton="3.5.1").grade == "exact"
    assert look(tmp_path, resolve_device("h200"), triton="3.7.0").grade == "triton-version"
    assert look(tmp_path, resolve_device("gh200"), triton="3.7.0").grade == "family, triton-version"


@pytest.mark.parametrize(
    "measured", [{"device": "h200"}, {"triton": "3.1.0"}, {"device": "h200", "triton": "3.1.0"}, {"root": "packaged"}]
)
def test_a_measured_table_outranks_a_predicted_one_wherever_it_is(measured: dict, tmp_path: Path) -> None:
    put(tmp_path / "user", source="predicted")
    put(
        tmp_path / measured.get("root", "user"),
        device=resolve_device(measured.get("device", "h100-sxm")),
        triton=measured.get("triton", "3.6.0"),
    )
    assert look([tmp_path / "user", tmp_path / "packaged"]).source == "measured"


def test_a_prediction_is_used_where_nothing_was_measured(tmp_path: Path) -> None:
    put(tmp_path, source="predicted")
    choice = look(tmp_path)
    assert (choice.source, choice.grade) == ("predicted", "exact")
    assert "predicted for" in choice.why


def test_the_users_folder_comes_before_the_packaged_one(tmp_path: Path) -> None:
    put(tmp_path / "packaged", table=ONE)
    mine = put(tmp_path / "user")
    assert look([tmp_path / "user", tmp_path / "packaged"]).path == mine.up
    shutil.rmtree(tmp_path / "user")
    assert look([tmp_path / "user", tmp_path / "packaged"]).table == ONE


def test_the_users_folder_is_read_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELMUX_CONFIG_DIR", str(tmp_path))
    shape = replace(SHAPE, E=3, topk=1)
    written = put(tmp_path, shape=shape)
    assert find(h100(), "3.6.0", shape).path == written.up


def test_a_table_without_sidecar_is_imported_and_comes_after_a_measured_one(tmp_path: Path) -> None:
    written = put(tmp_path)
    written.sidecar.unlink()
    choice = look(tmp_path)
    assert (choice.source, choice.table) == ("imported", TABLE)
    assert "K, topk and activation are not known" in choice.notes[0]
    put(tmp_path, source="predicted")
    assert look(tmp_path).source == "imported"
    put(tmp_path, device=resolve_device("h200"))
    assert look(tmp_path).source == "measured"


def test_an_imported_table_without_down_serves_both_without_tma(tmp_path: Path) -> None:
    written = put(tmp_path)
    written.sidecar.unlink()
    written.up.write_text(written.down.read_text())
    written.down.unlink()
    config = look(tmp_path).at(4096)
    assert config.up == TABLE.down[4096]
    assert config.down == replace(config.up, use_tma=False)


def test_an_imported_pair_that_disagrees_is_reconciled_loudly(tmp_path: Path) -> None:
    written = put(tmp_path)
    written.sidecar.unlink()
    written.down.write_text(written.down.read_text().replace('"BLOCK_SIZE_M": 16', '"BLOCK_SIZE_M": 32', 1))
    with pytest.warns(KernelmuxConfigWarning, match=r"HBM3\.json at M=1: BLOCK_SIZE_M is 16 for up and 32 for down"):
        choice = look(tmp_path)
    assert choice.at(1).block_m == 16
    assert any("at M=1" in note for note in choice.notes)


@pytest.mark.parametrize(
    ("which", "content", "said"),
    [
        ("up", "{", "ends in the middle"),
        ("up", "", "empty"),
        ("up", "[]", "JSON object"),
        ("down", '{"a": {}}', "token count"),
        ("sidecar", "{", "ends in the middle"),
        ("sidecar", "{}", "format"),
        ("up", None, "is not the file that was tuned"),
        ("down", None, "is not the file that was tuned"),
    ],
)
def test_a_broken_file_is_passed_over_loudly_and_never_raises(
    which: str, content: str | None, said: str, tmp_path: Path
) -> None:
    path: Path = getattr(put(tmp_path), which)
    path.write_text(path.read_text() + "\n" if content is None else content)
    fallback = put(tmp_path, triton="3.5.1")
    with pytest.warns(KernelmuxConfigWarning, match="passed over") as caught:
        choice = look(tmp_path)
    assert said in str(caught[0].message)
    assert str(tmp_path) in str(caught[0].message)
    assert choice.path == fallback.up
    assert any("passed over" in note for note in choice.notes)


def test_a_missing_down_file_of_a_tuned_pair_is_noticed(tmp_path: Path) -> None:
    put(tmp_path).down.unlink()
    with pytest.warns(KernelmuxConfigWarning, match="down table is missing"):
        assert look(tmp_path).source == "heuristic"


def test_odd_folder_names_do_no_harm(tmp_path: Path) -> None:
    put(tmp_path, triton="3.5.1")
    (tmp_path / "triton_3_5_1").rename(tmp_path / "triton_3_5_1+git")
    for name in ("triton_", "triton_x_y_z", "triton_3", "triton_99999999999_1_1", "other", "triton_\u0663_6_0"):
        (tmp_path / name).mkdir()
    (tmp_path / "triton_3_6_0").write_text("a file")
    assert look(tmp_path).grade == "triton-version"
    assert look(tmp_path, triton="3.5.1").grade == "exact"
    assert look(tmp_path, triton="weird").source == "measured"
    assert look(tmp_path, triton=None).grade == "triton-version"


def test_a_device_name_with_slashes_cannot_leave_the_folder(tmp_path: Path) -> None:
    evil = replace(h100(), torch_name="../../etc/x", family="none")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert look(tmp_path, evil).source == "heuristic"


@given(text=st.text(max_size=12))
def test_no_version_text_crashes(text: str) -> None:
    version_of(text)


def problem(shape: dict, activation: str | None = "silu") -> Problem:
    return Problem("fused_moe", Scheme.of(None), "bfloat16", shape, activation)


def test_the_provider_finds_the_table_of_a_whole_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELMUX_CONFIG_DIR", str(tmp_path))
    shape = replace(SHAPE, E=5, topk=1)
    put(tmp_path, shape=shape)
    axes = {"M": (1, 64), **shape.axes()}
    choice = provider(h100(), Packages({"triton": "3.6.0"}), problem(axes))
    assert (choice.source, choice.grade) == ("measured", "exact")
    assert provider(h100(), Packages.assume_all(), problem(axes)).source == "measured"
    assert provider(h100(), Packages({}), problem(axes)).source == "measured"


def test_the_provider_without_a_whole_shape_gives_the_heuristic_with_the_condition() -> None:
    choice = provider(h100(), Packages({"triton": "3.6.0"}), problem({"E": 8, "M": 4}))
    assert choice.source == "heuristic"
    assert "N, K, topk not given" in choice.conditions[0]
    assert choice.at(4).block_m == 16


def test_a_selection_says_that_its_table_was_tuned_on_another_version_of_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kernelmux.backends.triton.moe_source import source_hash
    from kernelmux.policies.select import select_backend

    monkeypatch.setenv("KERNELMUX_CONFIG_DIR", str(tmp_path))
    shape = replace(SHAPE, N=SHAPE.N + 16)  # not a packaged one
    asked = {
        "device": h100(),
        "shape": {**shape.axes(), "M": 64},
        "activation": "silu",
        "packages": Packages.assume_all(),
    }

    def said() -> bool:
        epoch.bump()
        found = select_backend("fused_moe", **asked)
        assert found.config_source == "measured"
        return any(
            f"another version of kernelmux.fused_moe[triton] (source abc, here {source_hash()})" in condition
            for condition in found.conditions
        )

    written = put(tmp_path, shape)
    assert said()
    text = written.sidecar.read_text(encoding="utf-8")
    written.sidecar.write_text(text.replace('"abc"', f'"{source_hash()}"'), encoding="utf-8")
    assert not said()
