"""The bytes kernelmux writes for vLLM and SGLang, and small tables of every key the engines know.

Write the exported ones anew with ``python tests/golden/test_engine_files.py``.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kernelmux.tuning_configs.check import check
from kernelmux.tuning_configs.engines import foreign, sglang, vllm
from kernelmux.tuning_configs.engines.question import Question
from kernelmux.tuning_configs.engines.writer import write_for
from kernelmux.tuning_configs.names import TableName
from kernelmux.tuning_configs.table import MoeConfig, MoeTable
from kernelmux.tuning_configs.tile import Tile

GOLDEN = Path(__file__).parent / "engines"
TABLE = MoeTable.of(
    {
        1: MoeConfig(Tile(16, 64, 128, 1, 4, 4), Tile(16, 128, 64, 1, 4, 3)),
        64: MoeConfig(Tile(16, 64, 128, 1, 4, 4), Tile(16, 128, 128, 8, 4, 3, True)),
        4096: MoeConfig(Tile(128, 128, 64, 16, 8, 3), Tile(128, 256, 64, 8, 8, 3, True)),
    }
)
NAMES = (
    TableName(256, 128, "NVIDIA_H100_80GB_HBM3", "fp8_w8a8", (128, 128)),
    TableName(128, 384, "NVIDIA_H200"),
)


def write(folder: Path) -> list[Path]:
    found = []
    for name in NAMES:
        for engine in ("vllm", "sglang"):
            files = write_for(engine, folder / engine, name, TABLE, "3.6.0")
            found += [path for path in files if path is not None]
    return found


def test_the_files_written_today_are_the_golden_ones(tmp_path: Path) -> None:
    for path in write(tmp_path):
        assert path.read_bytes() == (GOLDEN / path.relative_to(tmp_path)).read_bytes()


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_every_golden_table_is_sound_and_rendered_to_its_bytes(engine: str) -> None:
    reports = check([GOLDEN / engine], engine)
    assert [report.path.name for report in reports if not report.ok] == []
    assert len(reports) >= 5
    for report in reports:
        table = foreign.read(report.path).table
        assert table is not None
        assert table.render() == report.path.read_bytes()


def test_both_engines_rules_find_the_golden_tables_at_every_m() -> None:
    for name in NAMES:
        question = Question(name.E, name.N, name.device_name.replace("_", " "), name.dtype, name.block_shape)
        for m in range(1, 8193):
            key = min(TABLE.keys, key=lambda k, m=m: abs(k - m))
            answer = vllm.lookup(question, m, GOLDEN / "vllm")
            assert (answer.key, answer.entry) == (key, TABLE.up[key].to_json())
            pair = sglang.lookup(question, m, GOLDEN / "sglang", "3.6.0")
            assert pair.down is not None
            assert (pair.entry, pair.down.entry) == (TABLE.up[key].to_json(), TABLE.down[key].to_json())


def _by_hand() -> None:
    """Tables as others' tuners wrote them: AMD's and Intel's keys, no warps and stages, white space of all kinds."""
    base = {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 1}
    whole = {**base, "num_warps": 4, "num_stages": 2}
    amd = {**whole, "waves_per_eu": 0, "matrix_instr_nonkdim": 16, "kpack": 2}
    split = {**base, "SPLIT_K": 1, "num_warps": 4, "num_stages": 2, "matrix_instr_nonkdim": 16}
    flydsl = json.dumps({"1": {"tile_m": 16, "tile_n": 64, "tile_k": 256, "tile_n2": 128, "tile_k2": 128}}) + "\n\n"
    ctas = {**base, "num_warps": 4, "num_ctas": 1, "num_stages": 3}
    int8 = json.dumps({"1": ctas}, indent=4)[:-1] + "  }"
    vllm_files = {
        "E=8,N=64,device_name=AMD_Instinct_MI300X.json": json.dumps({"1": amd, "2": split}, indent=2),
        "E=8,N=64,device_name=Intel(R)_Arc(TM)_Pro_B70_Graphics.json": json.dumps(
            {"triton_version": "3.7.1", "1": {**whole, "grf_mode": "256"}}, indent=4
        ),
        "E=8,N=64,device_name=AMD_Instinct_MI350X,dtype=int4_w4a16,backend=flydsl.json": flydsl,
        "E=8,N=64,device_name=NVIDIA_A100-SXM4-80GB,dtype=int8_w8a16.json": int8,
    }  # fmt: skip
    sglang_files = {
        "E=8,N=64,device_name=NVIDIA_A800-SXM4-80GB,dtype=int8_w8a8,per_channel_quant=True.json": {"63": base},
        "E=8,N=64,device_name=AMD_Instinct_MI325X.json": {"1": amd},
    }
    for name, text in vllm_files.items():
        (GOLDEN / "vllm" / name).write_text(text)
    for name, table in sglang_files.items():
        path = GOLDEN / "sglang" / "configs" / "triton_3_1_0" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    for each in write(GOLDEN):
        print(each)
    _by_hand()
    for lock in GOLDEN.rglob("*.lock"):
        lock.unlink()
