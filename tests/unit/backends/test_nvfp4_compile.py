"""The weight-only NVFP4 GEMM compiled for GPUs that are not here: no spill, a decoded weight stays in registers."""

import json
import subprocess
import sys

import pytest

from kernelmux.backends.triton.nvfp4_rules import DECODE, Nvfp4Tile, candidates, fault, heuristic, most_split

pytest.importorskip("triton", reason="Triton compiles")

# In a process of its own: compiling replaces Triton's driver, and torch must not be needed.
SCRIPT = """
import json, re, subprocess, sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("no torch here", name="torch")
sys.meta_path.insert(0, NoTorch())
from kernelmux.backends.triton.nvfp4_compile import compile_gemm
from kernelmux.backends.triton.nvfp4_rules import Nvfp4Tile
from kernelmux.backends.triton.stand_in import resources
from kernelmux.device import Capability
for said, tile, dtype in json.loads(sys.argv[1]):
    kernel = compile_gemm(Nvfp4Tile(**tile), Capability.parse(said), dtype)
    registers, stack = resources(kernel.asm["cubin"])
    ptx = kernel.asm["ptx"]
    print(json.dumps([said, kernel.metadata.shared, registers, stack,
                      "wgmma.mma_async" in ptx, kernel.asm["ttgir"].count("ttg.convert_layout"),
                      kernel.asm["ttgir"].count("tt.elementwise_inline_asm")]))
"""
ROOM = {"8.0": 163 * 1024, "8.6": 99 * 1024, "8.9": 99 * 1024, "9.0": 227 * 1024}


def chosen(capability, tokens):
    sms = {"8.0": 108, "8.6": 84, "8.9": 142, "9.0": 132}[capability]
    major, minor = capability.split(".")
    return [heuristic(m, 14336, 4096, sms, (int(major), int(minor))) for m in tokens]


def test_the_chosen_launches_compile_without_spills_and_without_moving_the_decoded_weight():
    jobs = []
    for capability in ROOM:
        tiles = {tile for tile in chosen(capability, (1, 32, 64, 128, 512)) if tile != DECODE}
        jobs += [(capability, tile.to_json(), "bfloat16") for tile in tiles]
    jobs += [("9.0", Nvfp4Tile(split=2, pdl=True).to_json(), "float16"), ("8.0", Nvfp4Tile().to_json(), "float16")]
    done = subprocess.run([sys.executable, "-c", SCRIPT, json.dumps(jobs)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(jobs)
    for (_, given, _), row in zip(jobs, rows, strict=True):
        capability, shared, registers, stack, wgmma, conversions, decodes = row
        major, minor = map(int, capability.split("."))
        assert shared == Nvfp4Tile(**given).shared_bytes((major, minor))
        assert shared <= ROOM[capability] and registers <= 255 and stack == 0
        assert wgmma == (capability == "9.0")
        assert decodes in (
            4,
            5,
        )  # one a plane (and one that lets the next kernel start), in the MMA's layout:
        assert conversions <= 1  # only the output changes its layout


def test_candidates_fit_and_hold_the_choice():
    for m in (1, 16, 64, 128, 512, 2048):
        for n, k in ((4096, 4096), (28672, 4096)):
            found = list(candidates(m, n, k, (9, 0)))
            assert len(found) == len(set(found)) and all(tile.split <= most_split(k) for tile in found)
            assert any(tile.kind == "decode" for tile in found) == (m > 64)
            assert all(fault(tile, n, k, (9, 0)) is None for tile in found)
    assert most_split(272) == 2


def test_a_choice_never_cuts_k_finer_than_its_chunks():
    for m in (1, 7, 64, 500, 5000):
        tile = heuristic(m, 64, 256, 132, (9, 0))
        assert tile.split == 1 or tile.split <= most_split(256)
