"""Every table that vLLM and SGLang ship, against their own look-up. Needs their unpacked wheels in $KERNELMUX_PEERS.

pip download --no-deps vllm==0.33.0 sglang==0.5.23 && unzip -d $KERNELMUX_PEERS/vllm vllm-*.whl   (and sglang)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernelmux.tuning_configs.check import check
from kernelmux.tuning_configs.engines import foreign, sglang, vllm
from kernelmux.tuning_configs.engines.entry import vendor_of
from kernelmux.tuning_configs.engines.question import Question
from kernelmux.tuning_configs.imports import Wanted, import_tables
from kernelmux.tuning_configs.names import TableName
from tests.golden import engine_functions

PEERS = os.environ.get("KERNELMUX_PEERS")
pytestmark = [
    pytest.mark.skipif(not PEERS, reason="KERNELMUX_PEERS names no folder with the unpacked vLLM and SGLang wheels"),
    pytest.mark.slow,
]
EVERY_M = range(1, 8193)


def tables(engine: str) -> list[Path]:
    root = Path(str(PEERS)) / engine
    if engine == "vllm":
        return sorted(path for path in (root / vllm.FOLDER).glob("*.json"))
    return sorted(path for path in (root / sglang.FOLDER / "configs").glob("triton_*/*.json"))


def test_the_wheels_hold_the_tables_that_are_expected() -> None:
    assert (len(tables("vllm")), len(tables("sglang"))) == (338, 390)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_each_is_accepted_or_named_with_its_fault_and_an_accepted_one_is_rendered_to_its_bytes(engine: str) -> None:
    reports = {report.path: report for report in check(tables(engine), engine)}
    assert len(reports) == len(tables(engine))
    for path, report in reports.items():
        reading = foreign.read(path)
        assert reading.table is not None
        if not any(fault.code == "crlf" for fault in report.faults):
            assert reading.table.render() == path.read_bytes(), path
        assert all(fault.message and fault.fix for fault in report.faults)


def questions(engine: str) -> Iterator[tuple[Question, TableName, str]]:
    """For each name that is asked for by anybody: the layer and device that ask for it, and the Triton version."""
    for path in tables(engine):
        name = TableName.parse(path.name)
        module = vllm if engine == "vllm" else sglang
        if name.backend or name.down or not name.device_name or module.unreachable(name):
            continue
        packed = 2 if engine == "sglang" and name.dtype == "int4_w4a16" else 1
        question = Question(
            name.E, name.N * packed, name.device_name.replace("_", " "), name.dtype, name.block_shape,
            name.per_channel_quant, vendor=vendor_of(name.device_name) or "nvidia", shared_bytes=232_448,
        )  # fmt: skip
        yield question, name, path.parent.name.removeprefix("triton_").replace("_", ".")


def shapes(question: Question, engine: str) -> dict[str, object]:
    n = question.N // 2 if question.dtype == "int4_w4a16" else question.N
    return {
        "w1_shape": (question.E, 2 * question.N, 2048),
        "w2_shape": (question.E, 2048, n),
        "top_k": question.topk,
        "dtype": question.dtype,
        "block_shape": list(question.block_shape) if question.block_shape else None,
    }


def test_vllms_own_look_up_takes_the_same_entry_at_every_m() -> None:
    root = Path(str(PEERS)) / "vllm"
    asked = 0
    for question, _, _ in questions("vllm"):
        theirs = engine_functions.vllm(root, question.device, vendor=question.vendor)["try_get_optimal_moe_config"]
        args = shapes(question, "vllm")
        found = vllm.find(question, root / vllm.FOLDER)
        for m in EVERY_M:
            ours = vllm.answer(question, found, m)
            assert ours.entry == theirs(M=m, **args), (question, m)
        assert ours.source == "file"
        asked += 1
    assert asked > 300


def test_sglangs_own_look_up_takes_the_same_pair_at_every_m() -> None:
    root = Path(str(PEERS)) / "sglang"
    asked = 0
    for question, _, version in questions("sglang"):
        loaded = engine_functions.sglang(root, question.device, version, question.vendor)
        theirs = loaded["try_get_optimal_moe_config"]
        args = shapes(question, "sglang") | {"per_channel_quant": question.per_channel, "return_down_config": True}
        files = sglang.find(question, root / sglang.FOLDER, version)
        for m in EVERY_M:
            ours = sglang.answer(question, files, m)
            up, (down, _) = theirs(M=m, **args)
            assert ours.entry == up, (question, m)
            assert ours.down is not None
            assert down is None or ours.down.entry == down, (question, m)
        asked += 1
    assert asked > 300


@pytest.mark.parametrize("triton", ["3.9.0", "3.4.0", "3.3.1", "2.0.0"])
def test_sglangs_fallback_to_other_triton_versions_is_followed(triton: str) -> None:
    root = Path(str(PEERS)) / "sglang"
    for question, _, _ in questions("sglang"):
        loaded = engine_functions.sglang(root, question.device, triton, question.vendor)
        args = shapes(question, "sglang") | {"per_channel_quant": question.per_channel, "return_down_config": True}
        for m in (1, 3, 17, 300, 1000, 5000):
            ours = sglang.lookup(question, m, root / sglang.FOLDER, triton)
            up, (down, _) = loaded["try_get_optimal_moe_config"](M=m, **args)
            assert ours.entry == up
            assert ours.down is not None
            assert down is None or ours.down.entry == down


@pytest.mark.parametrize("dtype", [None, "fp8_w8a8", "int8_w8a16", "int4_w4a16", "float32"])
@pytest.mark.parametrize("block", [None, (128, 128), (64, 32), (0, 64)])
@pytest.mark.parametrize("vendor", ["nvidia", "amd"])
def test_the_defaults_are_the_engines_own(dtype: str | None, block: tuple[int, int] | None, vendor: str) -> None:
    base = Path(str(PEERS))
    for experts in (8, 128):
        for low in (False, True):
            question = Question(
                experts, 96, "NVIDIA Nothing", dtype, block, vendor=vendor, shared_bytes=101_376 if low else 232_448
            )
            args = shapes(question, "vllm")
            theirs = engine_functions.vllm(base / "vllm", question.device, vendor=vendor)["try_get_optimal_moe_config"]
            loaded = engine_functions.sglang(
                base / "sglang", question.device, "3.6.0", vendor, low and vendor == "nvidia"
            )
            other = loaded["try_get_optimal_moe_config"]
            for m in (1, 2, 4, 5, 8, 9, 16, 17, 20, 33, 40, 41, 64, 65, 97, 128, 129, 512, 513, 2000, 20_000):
                ours = vllm.lookup(question, m, base / "vllm" / vllm.FOLDER)
                assert (ours.source, ours.entry) == ("default", theirs(M=m, **args))
                assert sglang.lookup(question, m, base / "sglang" / sglang.FOLDER, "3.6.0").entry == other(M=m, **args)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_every_table_of_a_form_kernelmux_has_is_imported_and_sound(engine: str, tmp_path: Path) -> None:
    faulty = {report.path for report in check(tables(engine), engine) if not report.ok}
    done = import_tables(tables(engine), engine, tmp_path, Wanted())
    refused = {each.path.name: each.refused for each in done if each.refused and each.path not in faulty}
    assert all("int4_w4a16" in name or ("int8_w8a8" in name and "block_shape" in name) for name in refused), refused
    assert sum(each.written is not None for each in done) > 300
    bad = [report for report in check([tmp_path], "kernelmux") if not report.ok]
    assert {fault.code for report in bad for fault in report.faults} <= {"dead_device"}
