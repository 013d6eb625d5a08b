from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from kernelmux.cli import main
from kernelmux.store.journal import Journal
from kernelmux.store.records import Row, canonical
from tests.unit.autotune.landscape import SMALL, Landscape
from tests.unit.autotune.test_model_config import QWEN

SHAPE = "E=8,N=1024,K=1024,topk=2"


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("KERNELMUX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("KERNELMUX_CONFIG_DIR", str(tmp_path / "configs"))


@pytest.fixture
def recorded(tmp_path):
    from kernelmux.autotune.run import tune_moe
    from tests.unit.autotune.landscape import H100

    path = tmp_path / "recorded.sqlite"
    with Journal(path) as journal:
        tune_moe(SMALL, H100, bench=Landscape(shape=SMALL), effort="quick", out=tmp_path / "x", journal=journal,
                 ms=(1, 64), compile_with=None)  # fmt: skip
    return path


def tune(*words):
    return main(["tune", *map(str, words)])


def test_a_replayed_run_prints_one_json_object_with_paths_and_selection(recorded, tmp_path, capsys):
    assert tune("--shape", SHAPE, "--replay", recorded, "--out", tmp_path / "out", "--effort", "quick", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert [line["m"] for line in said["table"]] == [1, 64]
    assert said["config_source"] == "measured"
    assert said["selection"]["config_source"] == "measured"
    assert all((tmp_path / "out") in __import__("pathlib").Path(p).parents for p in said["paths"])


def test_a_replayed_run_ends_with_a_table_its_paths_and_the_selection(recorded, tmp_path, capsys):
    assert tune("--shape", SHAPE, "--replay", recorded, "--out", tmp_path / "out", "--effort", "quick") == 0
    shown = capsys.readouterr()
    assert "gain over default" in shown.out
    assert "wrote " in shown.out
    assert "select_backend now picks kernelmux.fused_moe[triton] with measured tiles" in shown.out
    assert "left, best" in shown.err
    assert "±" in shown.err


@pytest.mark.parametrize(
    "words, code, said",
    [
        (["--shape", SHAPE], 1, "--offline"),
        (["--shape", SHAPE, "--device", "h100-sxm"], 1, "add --offline"),
        (["--shape", SHAPE, "--offline"], 2, "needs --device"),
        (["--shape", "E=8,N=1024"], 2, "lacks K, topk"),
        (["--shape", SHAPE + ",M=4"], 2, "has no M"),
        (["--shape", SHAPE + ",Q=4"], 2, "takes E, N, K and topk"),
        (["--shape", SHAPE, "--tp", "2"], 2, "--tp goes with CONFIG.json"),
        ([], 2, "give either"),
        (["none.json"], 2, "there is no file"),
        (["--shape", SHAPE, "--quant", "nonsense"], 2, "unknown quant"),
        (["--shape", SHAPE, "--quant", "nvfp4"], 2, "no fused kernel for quantized experts"),
        (["--shape", SHAPE, "--format", "vllm"], 2, "VLLM_TUNED_CONFIG_FOLDER"),
        (["--shape", SHAPE, "--engine-path", "x"], 2, "--format vllm or sglang"),
        (["--shape", SHAPE, "--format", "sglang", "--out", "x", "--quant", "nvfp4"], 2, "int8_w8a16"),
        (["--shape", SHAPE, "--dtype", "int3"], 2, "unknown dtype"),
        (["--shape", SHAPE, "--dtype", "float32"], 2, "--dtype bfloat16 or float16"),
        (["--shape", SHAPE, "--m", "1,x"], 2, "no list of token counts"),
        (["--shape", SHAPE, "--device", "h1000", "--offline"], 2, "unknown device"),
        (["--shape", SHAPE, "--device", "mi300x", "--offline"], 1, "NVIDIA GPUs only"),
        (["--shape", SHAPE, "--replay", "none.sqlite"], 2, "needs --out"),
        (["--shape", SHAPE, "--replay", "none.sqlite", "--out", "x", "--resume"], 2, "needs --journal"),
        (["--shape", SHAPE, "--replay", "none.sqlite", "--out", "x"], 1, "there is no journal"),
        (["--shape", SHAPE, "--effort", "huge"], 2, "huge"),
    ],
)
def test_a_mistake_is_one_sentence(words, code, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kernelmux.livegpu._probe", list)
    assert tune(*words) == code
    shown = capsys.readouterr()
    errors = [line for line in shown.err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert "Traceback" not in shown.err
    assert not list(tmp_path.rglob("*.meta.json"))


def test_an_unwritable_out_is_refused_before_any_work(recorded, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert tune("--shape", SHAPE, "--replay", recorded, "--out", tmp_path / "file") == 1
    shown = capsys.readouterr().err
    assert "not a folder" in shown
    assert "left, best" not in shown


def test_offline_reads_a_models_config_and_divides_by_tp(tmp_path, capsys, monkeypatch):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(QWEN))
    seen = {}

    def predict(shape, device, **options):
        seen.update(shape=asdict(shape), device=device.name, effort=options["effort"])
        raise KeyboardInterrupt

    monkeypatch.setattr("kernelmux.autotune.predict.predict_moe", predict)
    assert tune(config, "--tp", 2, "--device", "sm120", "--offline") == 130
    assert seen["shape"]["N"] == 384
    assert seen["effort"] == "full"


@pytest.mark.parametrize(
    "device, words, dtype",
    [("t4", [], "float16"), ("t4", ["--dtype", "bf16"], "bfloat16"), ("h100-sxm", [], "bfloat16")],
)
def test_a_gpu_without_bfloat16_units_is_tuned_in_float16_unless_asked_otherwise(device, words, dtype, monkeypatch):
    seen = {}

    def predict(shape, device, **options):
        seen["dtype"] = shape.dtype
        raise KeyboardInterrupt

    monkeypatch.setattr("kernelmux.autotune.predict.predict_moe", predict)
    assert tune("--shape", SHAPE, "--device", device, "--offline", *words) == 130
    assert seen["dtype"] == dtype


def test_a_prediction_that_a_measured_table_outranks_says_whose_tiles_are_picked(tmp_path, monkeypatch, capsys):
    """The H200's packaged table of this shape stands in for the H100."""
    from kernelmux.autotune import predict

    def quick(shape, device, **options):
        options.update(compile_with=None, ms=(64,))
        return real(shape, device, **options)

    real = predict.predict_moe
    monkeypatch.setattr(predict, "predict_moe", quick)
    assert tune("--shape", "E=128,N=384,K=2048,topk=8", "--device", "h100-sxm", "--offline") == 0
    said = capsys.readouterr().out
    assert "with measured tiles" in said
    assert "They are those of" in said
    assert "device_name=NVIDIA_H200.json, not the ones just predicted" in said
    assert tune("--shape", "E=128,N=416,K=2048,topk=8", "--device", "h100-sxm", "--offline") == 0
    said = capsys.readouterr().out
    assert "with predicted tiles" in said
    assert "They are those of" not in said


def test_a_journal_of_another_shape_names_what_it_holds(recorded, tmp_path, capsys):
    assert tune("--shape", "E=8,N=512,K=1024,topk=2", "--replay", recorded, "--out", tmp_path / "o") == 1
    assert "it holds E=8,N=1024" in capsys.readouterr().err


def test_a_foreign_journal_is_refused(tmp_path, capsys):
    (tmp_path / "j.sqlite").write_text("not a database at all, but long enough to be looked at by sqlite" * 20)
    assert tune("--shape", SHAPE, "--replay", tmp_path / "j.sqlite", "--out", tmp_path / "o") == 1
    assert "not a kernelmux journal" in capsys.readouterr().err


def test_a_row_of_the_journal_is_keyed_by_the_canonical_tile(recorded):
    with Journal(recorded, read_only=True) as journal:
        row: Row = journal.rows(journal.runs()[0].key, side="up")[0]
    assert row.tile == canonical(json.loads(row.tile))
