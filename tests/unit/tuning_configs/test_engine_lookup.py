"""The engines' look-ups on small folders: precedence, nearest entry, other Triton versions, what would change."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernelmux.tuning_configs.engines import sglang, vllm
from kernelmux.tuning_configs.engines.question import Question
from kernelmux.tuning_configs.names import TableName

from .test_check import ENTRY, write

H100 = Question(8, 64, "NVIDIA H100 80GB HBM3")
NAME = "E=8,N=64,device_name=NVIDIA_H100_80GB_HBM3.json"
BLOCK = Question(8, 64, "NVIDIA H100 80GB HBM3", "fp8_w8a8", (128, 128))


def entry(block_m: int, **more: object) -> dict[str, object]:
    return {**ENTRY, "BLOCK_SIZE_M": block_m, **more}


def test_the_names_are_each_engines_own() -> None:
    assert vllm.file_name(BLOCK) == NAME.replace(".json", ",dtype=fp8_w8a8,block_shape=[128,128].json")
    assert sglang.file_name(BLOCK, down=True) == NAME.replace(
        ".json", ",dtype=fp8_w8a8,block_shape=[128, 128]_down.json"
    )
    channel = Question(8, 64, "AMD Instinct MI300X", "int8_w8a8", per_channel=True)
    assert sglang.file_name(channel).endswith("AMD_Instinct_MI300X,dtype=int8_w8a8,per_channel_quant=True.json")
    packed = Question(8, 64, "NVIDIA H200", "int4_w4a16", (0, 128))
    assert vllm.file_name(packed) == "E=8,N=64,device_name=NVIDIA_H200,dtype=int4_w4a16.json"
    assert sglang.file_name(packed) == "E=8,N=32,device_name=NVIDIA_H200,dtype=int4_w4a16.json"


def test_vllm_takes_every_h200_for_one_and_sglang_none() -> None:
    nvl = Question(8, 64, "NVIDIA H200 NVL")
    assert "device_name=NVIDIA_H200." in vllm.file_name(nvl)
    assert "device_name=NVIDIA_H200_NVL." in sglang.file_name(nvl)


def test_vllm_takes_the_users_folder_then_its_own_then_the_default(tmp_path: Path) -> None:
    bundled, mine = tmp_path / "bundled", tmp_path / "mine"
    assert vllm.lookup(H100, 300, bundled, mine).source == "default"
    write(bundled, NAME, {"triton_version": "3.6.0", "256": entry(32)})
    assert vllm.lookup(H100, 300, bundled, mine).entry == entry(32)
    write(mine, NAME, {"256": entry(64)})
    answer = vllm.lookup(H100, 300, bundled, mine)
    assert (answer.path, answer.key, answer.distance, answer.entry) == (mine / NAME, 256, 44, entry(64))
    unset = dict(vllm.changes(H100, 300, bundled, mine))[f"{vllm.ENV} not set"]
    assert unset.path == bundled / NAME


@pytest.mark.parametrize(("m", "key"), [(1, 8), (11, 8), (12, 8), (13, 16), (10**6, 16)])
def test_the_nearest_entry_is_nearest_by_difference_and_a_tie_goes_to_the_first_in_the_file(
    m: int, key: int, tmp_path: Path
) -> None:
    write(tmp_path, NAME, {"8": entry(16), "16": entry(32)})
    assert vllm.lookup(H100, m, tmp_path).key == key
    write(tmp_path, NAME, {"16": entry(32), "8": entry(16), "triton_version": "x"})
    assert vllm.lookup(H100, m, tmp_path).key == (16 if m == 12 else key)


def test_a_file_an_engine_fails_on_is_an_error_not_a_default(tmp_path: Path) -> None:
    write(tmp_path, NAME, {"8": entry(16), "tuned_by": "me"})
    assert vllm.lookup(H100, 8, tmp_path).source == "error"
    write(tmp_path / "configs" / "triton_3_6_0", NAME, {"triton_version": "3.6.0", "8": entry(16)})
    answer = sglang.lookup(H100, 8, tmp_path, "3.6.0")
    assert answer.source == "error"
    assert "reads every key as a number" in answer.why


def test_sglang_takes_its_own_triton_then_the_newest_not_the_nearest(tmp_path: Path) -> None:
    for version, block_m in (("3_2_0", 16), ("3_5_1", 32), ("3_10_0", 64)):
        write(tmp_path / "configs" / f"triton_{version}", NAME, {"8": entry(block_m)})
    assert sglang.lookup(H100, 8, tmp_path, "3.5.1").entry == entry(32)
    answer = sglang.lookup(H100, 8, tmp_path, "3.2.1")
    assert answer.entry == entry(64)
    assert "the newest that has it, 3.10.0" in answer.why
    assert [what for what, _ in sglang.changes(H100, 8, tmp_path, None, "3.2.1")] == [
        "Triton 3.10.0",
        "Triton 3.5.1",
        "Triton 3.2.0",
    ]


def test_sglangs_down_table_is_looked_for_on_its_own_and_bent_to_ups_block_m(tmp_path: Path) -> None:
    write(tmp_path / "configs" / "triton_3_6_0", NAME, {"8": entry(32)})
    answer = sglang.lookup(H100, 8, tmp_path, "3.6.0")
    assert answer.down is not None
    assert (answer.down.entry, answer.down.path) == (entry(32), answer.path)
    down = NAME.replace(".json", "_down.json")
    write(tmp_path / "configs" / "triton_3_4_0", down, {"8": entry(16, USE_TMA=True)})
    answer = sglang.lookup(H100, 8, tmp_path, "3.6.0")
    assert answer.down is not None
    assert answer.down.entry == entry(32, USE_TMA=True)
    assert "BLOCK_SIZE_M=16 is overridden" in answer.down.why


def test_a_folder_name_sglang_cannot_sort_is_an_error_where_it_looks_further(tmp_path: Path) -> None:
    write(tmp_path / "configs" / "triton_3_6_0", NAME, {"8": entry(32)})
    write(tmp_path / "configs" / "triton_3_6_0", NAME.replace(".json", "_down.json"), {"8": entry(32)})
    write(tmp_path / "configs" / "triton_3_5_1+git", NAME, {"8": entry(16)})
    assert sglang.lookup(H100, 8, tmp_path, "3.6.0").source == "file"
    assert sglang.lookup(H100, 8, tmp_path, "3.7.0").source == "error"


def test_a_device_or_version_with_a_path_in_it_leads_nowhere(tmp_path: Path) -> None:
    assert sglang.lookup(Question(8, 64, "x/../../etc"), 8, tmp_path, "3.6.0").source == "error"
    assert sglang.lookup(H100, 8, tmp_path, "../3").source == "error"
    assert "/" not in vllm.file_name(Question(8, 64, "x/../../etc"))


def test_a_mig_slice_is_asked_for_by_its_own_name(tmp_path: Path) -> None:
    write(tmp_path, NAME, {"8": entry(32)})
    slice_ = Question(8, 64, "NVIDIA H100 80GB HBM3 MIG 1g.10gb")
    assert vllm.lookup(slice_, 8, tmp_path).source == "default"
    then = dict(vllm.changes(slice_, 8, tmp_path, None))
    assert then["NVML naming the whole GPU, as it does for a MIG slice"].path == tmp_path / NAME


@pytest.mark.parametrize(
    ("name", "engine", "code"),
    [
        ("E=8,N=64,device_name=X,dtype=bf16.json", vllm, "dead_dtype"),
        ("E=8,N=64,device_name=X,dtype=int8_w8a8.json", vllm, "dead_dtype"),
        ("E=8,N=64,device_name=X,dtype=int8_w8a8.json", sglang, None),
        ("E=8,N=64,device_name=X_down.json", vllm, "unreachable"),
        ("E=8,N=64,device_name=NVIDIA_H200_NVL.json", vllm, "unreachable"),
        ("E=8,N=64,device_name=NVIDIA_H200_NVL.json", sglang, None),
        ("E=8,N=64,device_name=X,dtype=fp8_w8a8,block_shape=[128,128].json", vllm, None),
        ("E=8,N=64,device_name=X,dtype=fp8_w8a8,block_shape=[128,128].json", sglang, "unreachable"),
        ("E=8,N=64,device_name=X,dtype=fp8_w8a8,block_shape=[128, 128].json", vllm, "unreachable"),
        ("E=8,N=64,device_name=X,dtype=fp8_w8a8,per_channel_quant=True.json", vllm, "unreachable"),
        ("E=8,N=64,device_name=X,block_shape=[128,128].json", vllm, "unreachable"),
        ("E=8,N=64,device_name=X,K=2048,topk=8,activation=silu.json", sglang, "unreachable"),
    ],
)
def test_names_that_nobody_asks_for_are_told(name: str, engine: object, code: str | None) -> None:
    dead = engine.unreachable(TableName.parse(name))  # type: ignore[attr-defined]
    assert (dead[0] if dead else None) == code
