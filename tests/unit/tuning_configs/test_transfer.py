"""Import, export, merge and diff."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelmux.contracts.moe_quant import MoeQuant
from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.device import resolve_device
from kernelmux.errors import StoreError
from kernelmux.tuning_configs import sidecar as sidecars
from kernelmux.tuning_configs.check import check
from kernelmux.tuning_configs.diff import diff
from kernelmux.tuning_configs.engines import sglang, vllm
from kernelmux.tuning_configs.engines.question import Question
from kernelmux.tuning_configs.engines.writer import write_for
from kernelmux.tuning_configs.exports import export_tables
from kernelmux.tuning_configs.imports import Wanted, import_tables, translate
from kernelmux.tuning_configs.lookup import find
from kernelmux.tuning_configs.merge import merge
from kernelmux.tuning_configs.names import TableName
from kernelmux.tuning_configs.sidecar import Point
from kernelmux.tuning_configs.table import MoeTable
from kernelmux.tuning_configs.tile import Tile

from .test_check import ENTRY, codes, write
from .worlds import LARGE, SHAPE, SMALL, TABLE, h100, put, sidecar

NAME = "E=128,N=384,device_name=NVIDIA_H100_80GB_HBM3.json"
WHOLE = Wanted({"K": 2048, "topk": 8}, "silu")


@st.composite
def moe_tables(draw: st.DrawFn, one_tile: bool = False) -> MoeTable:
    """Tables that fit an H100: nothing has to be repaired on the way."""
    small = st.builds(
        Tile,
        st.sampled_from([16, 32, 64]),
        st.sampled_from([32, 64, 128]),
        st.sampled_from([32, 64]),
        st.integers(1, 64),
        st.sampled_from([1, 4, 8]),
        st.integers(1, 4),
        st.booleans(),
    )
    up = draw(st.dictionaries(st.integers(1, 5000), small, min_size=1, max_size=6))
    if one_tile:
        up = {m: replace(tile, use_tma=False) for m, tile in up.items()}
        return MoeTable(up, up)
    return MoeTable(up, {m: replace(draw(small), block_m=tile.block_m) for m, tile in up.items()})


@settings(max_examples=60, deadline=None)
@given(moe_tables(), st.sampled_from([None, (128, 128)]))
def test_import_of_an_export_for_sglang_is_the_identity(tmp_path_factory, table, block) -> None:
    folder = tmp_path_factory.mktemp("x")
    dtype = "fp8_w8a8" if block else None
    name = TableName(8, 64, "NVIDIA_H100_80GB_HBM3", dtype, block)
    written = write_for("sglang", folder, name, table, "3.6.0")
    made = translate(written.up, TableName.parse(written.up.name), "sglang")
    assert (made.table, made.notes, made.triton) == (table, (), "3.6.0")


@settings(max_examples=60, deadline=None)
@given(moe_tables(one_tile=True))
def test_import_of_an_export_for_vllm_is_the_identity(tmp_path_factory, table) -> None:
    folder = tmp_path_factory.mktemp("x")
    written = write_for("vllm", folder, TableName(8, 64, "NVIDIA_H100_80GB_HBM3"), table, "3.6.0")
    made = translate(written.up, TableName.parse(written.up.name), "vllm")
    assert (made.table, made.notes, made.triton) == (table, (), "3.6.0")
    assert codes(check([folder])) == []


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_an_imported_table_is_found_as_imported(engine: str, tmp_path: Path) -> None:
    put(tmp_path / "ours")
    (exported,) = export_tables([tmp_path / "ours"], engine, tmp_path / "theirs")
    assert exported.written is not None
    (imported,) = import_tables([tmp_path / "theirs"], engine, tmp_path / "back", WHOLE)
    assert imported.written is not None
    choice = find(h100(), "3.6.0", SHAPE, [tmp_path / "back"])
    assert (choice.source, choice.grade) == ("imported", "exact")
    assert choice.path == imported.written.up
    assert choice.at(1).up == SMALL.up
    meta = sidecars.load(imported.written.sidecar)
    assert meta.report["from"] == engine
    assert "BLOCK_SIZE_N counts columns of the stacked [2N]" in meta.report["block_size_n"]
    assert set(meta.report["files"]) == {path.name for path in exported.written if path}
    assert codes(check([tmp_path / "back"])) == []


def test_a_measured_table_outranks_an_imported_one_and_that_a_predicted_one(tmp_path: Path) -> None:
    write(tmp_path / "theirs", NAME, {"1": ENTRY})
    put(tmp_path, source="predicted")
    import_tables([tmp_path / "theirs"], "vllm", tmp_path, WHOLE)
    assert find(h100(), "3.6.0", SHAPE, [tmp_path]).source == "imported"
    put(tmp_path)
    assert find(h100(), "3.6.0", SHAPE, [tmp_path]).source == "measured"


def test_axes_that_nobody_said_fit_any_and_the_choice_says_so(tmp_path: Path) -> None:
    write(tmp_path / "theirs", NAME, {"1": ENTRY})
    (done,) = import_tables([tmp_path / "theirs"], "vllm", tmp_path, Wanted({"K": 2048}))
    assert "topk, activation not given" in done.notes[-1]
    choice = find(h100(), "3.6.0", SHAPE, [tmp_path])
    assert choice.source == "imported"
    assert any("does not say its topk, activation" in note for note in choice.notes)
    assert find(h100(), "3.6.0", replace(SHAPE, K=4096), [tmp_path]).source == "heuristic"


def test_an_imported_tile_is_made_to_fit_the_gpu_it_is_found_on(tmp_path: Path) -> None:
    wide = {**ENTRY, "BLOCK_SIZE_M": 128, "BLOCK_SIZE_N": 256, "num_stages": 4}
    write(tmp_path / "theirs", NAME.replace("NVIDIA_H100_80GB_HBM3", "NVIDIA_A100-SXM4-40GB"), {"1": wide})
    import_tables([tmp_path / "theirs"], "vllm", tmp_path, WHOLE)
    choice = find(resolve_device("a100-sxm-80gb"), "3.6.0", SHAPE, [tmp_path])
    assert choice.source == "imported"
    assert choice.grade == "family, triton-version"
    assert "92 of 108 public entries" in choice.why


def test_a_quantized_table_is_found_by_its_form_only(tmp_path: Path) -> None:
    name = NAME.replace(".json", ",dtype=fp8_w8a8,block_shape=[128,128].json")
    write(tmp_path / "theirs", name, {"1": {**ENTRY, "BLOCK_SIZE_K": 256}})
    (done,) = import_tables([tmp_path / "theirs"], "vllm", tmp_path, WHOLE)
    assert done.written is not None
    block = MoeQuant("fp8_w8a8", (128, 128))
    choice = find(h100(), "3.6.0", SHAPE, [tmp_path], quant=block)
    assert (choice.source, choice.at(1).up.block_k) == ("imported", 128)
    assert find(h100(), "3.6.0", SHAPE, [tmp_path]).source == "heuristic"
    assert find(h100(), "3.6.0", SHAPE, [tmp_path], quant=MoeQuant("fp8_w8a8")).source == "heuristic"
    assert sidecars.load(done.written.sidecar).quant == block


def test_what_cannot_be_imported_is_refused_with_a_sentence_and_the_rest_goes_on(tmp_path: Path) -> None:
    amd = NAME.replace("NVIDIA_H100_80GB_HBM3", "AMD_Instinct_MI300X")
    write(tmp_path, NAME, {"1": ENTRY})
    write(tmp_path, amd, {"1": {**ENTRY, "waves_per_eu": 2}})
    write(tmp_path, amd.replace(".json", ",dtype=int4_w4a16.json"), {"1": ENTRY})
    write(tmp_path, amd.replace(".json", ",dtype=int4_w4a16,backend=flydsl.json"), {"1": {}})
    write(tmp_path, NAME.replace("128", "64"), {"1": {**ENTRY, "num_warps": 3}})
    write(tmp_path, NAME.replace("128", "32"), "{")
    write(tmp_path, NAME.replace("128", "4"), {"1": ENTRY})  # topk=8 of 4 experts
    done = {each.path.name: each for each in import_tables([tmp_path], "vllm", tmp_path / "out", WHOLE)}
    assert len(done) == 7
    assert {name for name, each in done.items() if each.written} == {NAME, amd}
    assert "waves_per_eu left out" in done[amd].notes[0]
    for each in done.values():
        assert each.written or (str(each.path.name) in each.refused) or "topk" in each.refused
        assert not (each.written and each.refused)


def test_the_device_may_be_said_where_the_name_lacks_it(tmp_path: Path) -> None:
    path = write(tmp_path, "E=128,N=384,device_name=.json", {"1": ENTRY})
    (done,) = import_tables([path], "vllm", tmp_path, WHOLE)
    assert "--device" in done.refused
    wanted = replace(WHOLE, device_name="NVIDIA_H200", triton="3.6.0")
    (done,) = import_tables([path], "vllm", tmp_path, wanted)
    assert done.written is not None
    assert find(resolve_device("h200"), "3.6.0", SHAPE, [tmp_path]).grade == "exact"


def test_engines_find_what_is_exported_for_them(tmp_path: Path) -> None:
    put(tmp_path / "ours", device=resolve_device("h200-nvl"))
    (done,) = export_tables([tmp_path / "ours"], "vllm", tmp_path / "v")
    answer = vllm.lookup(Question(128, 384, "NVIDIA H200 NVL"), 70, tmp_path / "nowhere", tmp_path / "v")
    assert (answer.key, answer.entry) == (64, SMALL.up.to_json())
    assert "down's own at M=" in done.notes[0]
    export_tables([tmp_path / "ours"], "sglang", tmp_path / "s")
    pair = sglang.lookup(Question(128, 384, "NVIDIA H200 NVL"), 9999, tmp_path / "s", "3.6.0")
    assert pair.down is not None
    assert (pair.entry, pair.down.entry) == (LARGE.up.to_json(), LARGE.down.to_json())


def test_two_shapes_of_one_engine_name_are_not_exported_over_each_other(tmp_path: Path) -> None:
    put(tmp_path / "ours")
    put(tmp_path / "ours", shape=replace(SHAPE, K=4096))
    done = export_tables([tmp_path / "ours"], "vllm", tmp_path / "v")
    assert sorted(bool(each.refused) for each in done) == [False, True]
    name = TableName.parse(NAME)
    write_for("vllm", tmp_path / "w", name, TABLE, "3.6.0", sidecar())
    with pytest.raises(StoreError, match="another K, topk or activation"):
        write_for("vllm", tmp_path / "w", name, TABLE, "3.6.0", sidecar(replace(SHAPE, K=4096)))


def test_a_form_the_engine_never_asks_for_is_not_exported(tmp_path: Path) -> None:
    quant = MoeQuant("int8_w8a8", None, True)
    name = TableName.of("NVIDIA_H200", SHAPE, quant=quant)
    with pytest.raises(StoreError, match="never asks for dtype=int8_w8a8"):
        write_for("vllm", tmp_path, name, TABLE, "3.6.0")


def test_a_table_tuned_for_an_engine_keeps_its_sidecar_and_is_that_engines(tmp_path: Path) -> None:
    for engine in ("vllm", "sglang"):
        folder = tmp_path / engine
        files = write_for(engine, folder, TableName.parse(NAME), TABLE, "3.6.0", sidecar())
        assert files.sidecar is not None
        assert sidecars.load(files.sidecar).reader == engine
        reports = check([folder])
        assert {report.format for report in reports} == {engine}
        assert codes(reports) == []


def measured(folder: Path, created: str, gain: float, shape: MoeShape = SHAPE, tile: Tile = SMALL.up) -> Path:
    meta = replace(
        sidecar(shape), created=created, points={1: Point(10.0, 10.0, 20.0 * gain), 64: Point(10.0, 10.0, 20.0 * gain)}
    )
    from kernelmux.tuning_configs.write import write_table

    return write_table(folder, h100(), shape, MoeTable({1: tile}, {1: tile}), meta).up


@pytest.mark.parametrize(
    ("first", "second", "wins"),
    [
        (("2026-01-01", 1.2), ("2026-02-01", 1.1), 0),
        (("2026-01-01", 1.1), ("2026-02-01", 1.2), 1),
        (("2026-01-01", 1.200), ("2026-02-01", 1.199), 1),
        (("2026-02-01", 1.200), ("2026-01-01", 1.201), 0),
    ],
)
def test_the_better_measured_wins_and_on_a_draw_the_newer(first, second, wins: int, tmp_path: Path) -> None:
    paths = [
        measured(tmp_path / "a", *first, tile=SMALL.up),
        measured(tmp_path / "b", *second, tile=replace(SMALL.up, warps=8)),
    ]
    found = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    (conflict,) = found.conflicts
    assert conflict.kept == paths[wins]
    assert conflict.dropped == (paths[1 - wins],)
    assert codes(check([tmp_path / "out"])) == []
    out = tmp_path / "out" / paths[wins].relative_to(tmp_path / "ab"[wins])
    assert out.read_bytes() == paths[wins].read_bytes()


def test_merging_again_changes_nothing(tmp_path: Path) -> None:
    measured(tmp_path / "a", "2026-01-01", 1.2)
    put(tmp_path / "b", source="predicted")
    assert len(merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out").written) == 6
    again = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert (again.written, again.conflicts, again.faulty) == ((), (), ())


def test_a_faulty_table_is_passed_over_and_named(tmp_path: Path) -> None:
    path = measured(tmp_path / "a", "2026-01-01", 1.2)
    path.write_text(path.read_text().replace("16", "32"))
    found = merge([tmp_path / "a"], tmp_path / "out")
    assert [each for each, _ in found.faulty] == [path]
    assert found.written == ()


def test_engine_folders_merge_by_place_and_the_first_named_stays(tmp_path: Path) -> None:
    write(tmp_path / "a" / "triton_3_6_0", NAME, {"1": ENTRY})
    write(tmp_path / "b" / "triton_3_6_0", NAME, {"2": ENTRY})
    write(tmp_path / "b" / "triton_3_5_1", NAME, {"2": ENTRY})
    found = merge([tmp_path / "a", tmp_path / "b" / "triton_3_6_0", tmp_path / "b"], tmp_path / "out")
    assert "the first one named stays" in found.conflicts[0].why
    assert json.loads((tmp_path / "out" / "triton_3_6_0" / NAME).read_text()) == {"1": ENTRY}
    assert (tmp_path / "out" / "triton_3_5_1" / NAME).exists()


def test_a_diff_names_each_changed_value(tmp_path: Path) -> None:
    a = write(tmp_path / "a", NAME, {"1": ENTRY, "2": ENTRY})
    b = write(tmp_path / "b", NAME, {"1": {**ENTRY, "num_warps": 8, "USE_TMA": True}, "4": ENTRY})
    (found,) = diff(a, b).differing
    assert [change.words for change in found.changes] == [
        "num_warps 4 -> 8, USE_TMA - -> True",
        "only in the first",
        "only in the second",
    ]
    assert diff(a, a).equal
    b.write_text(a.read_text() + "\n")
    assert diff(a, b).differing[0].text_only


def test_folders_of_two_engines_are_matched_by_name(tmp_path: Path) -> None:
    spelled = NAME.replace(".json", ",dtype=fp8_w8a8,block_shape=[128,128].json")
    write(tmp_path / "v", spelled, {"1": ENTRY})
    write(tmp_path / "v", NAME, {"1": ENTRY})
    write(tmp_path / "s" / "triton_3_6_0", spelled.replace("[128,128]", "[128, 128]"), {"1": ENTRY})
    found = diff(tmp_path / "v", tmp_path / "s")
    assert (found.same, found.only_a, found.only_b) == (1, (tmp_path / "v" / NAME,), ())
