"""The native NVFP4 GEMM compiled for GPUs that are not here: its PTX multiplies e2m1 with block scales of 16."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernelmux.backends.triton.nvfp4_native_rules import ROOM, SPACE, NativeTile, candidates, family, heuristic

pytest.importorskip("triton", reason="Triton compiles")

ROOT = Path(__file__).parents[3]
NEWEST = "KERNELMUX_NEWEST_TRITON"

SCRIPT = """
import json, sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("no torch here", name="torch")
sys.meta_path.insert(0, NoTorch())
from kernelmux.backends.triton.nvfp4_native_compile import compile_native
from kernelmux.backends.triton.nvfp4_native_rules import NativeTile
from kernelmux.backends.triton.stand_in import resources
from kernelmux.device import Capability
for said, tile in json.loads(sys.argv[1]):
    kernel = compile_native(NativeTile(**tile), Capability.parse(said))
    ptx = kernel.asm["ptx"]
    print(json.dumps([said, tile["use_tma"], kernel.metadata.shared, *resources(kernel.asm["cubin"]),
                      any("kind::mxf4nvf4.block_scale." + each in ptx for each in ("scale_vec::4X", "block16")),
                      "tcgen05.mma" in ptx,
                      "cp.async.bulk.tensor" in ptx]))
"""


def test_it_compiles_to_block_scaled_products_for_every_blackwell_that_this_triton_knows():
    jobs = []
    for capability, kind in (("10.0", "tcgen05"), ("10.3", "tcgen05"), ("12.0", "mma")):
        wide = SPACE[kind][3]
        for use_tma in (True, False):
            jobs.append((capability, NativeTile(*SPACE[kind][0][:3], 8, 1, *SPACE[kind][0][3:], use_tma).to_json()))
        jobs.append((capability, NativeTile(*wide[:3], 8, 2, *wide[3:], True).to_json()))
    done = subprocess.run([sys.executable, "-c", SCRIPT, json.dumps(jobs)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(jobs)
    for capability, use_tma, shared, registers, stack, scaled, tcgen05, tma in rows:
        kind = family(tuple(map(int, capability.split("."))))
        assert scaled and tcgen05 == (kind == "tcgen05") and tma == use_tma
        assert shared <= ROOM[kind] and registers <= 255 and stack <= 16


@pytest.mark.skipif(not os.environ.get(NEWEST), reason=f"{NEWEST} names no folder with a later Triton")
def test_a_later_triton_compiles_it_for_every_blackwell():
    """``pip install --target FOLDER --no-deps 'triton>=3.9'``, then set the variable to FOLDER."""
    kinds = {"10.0": "tcgen05", "10.3": "tcgen05", "11.0": "tcgen05", "12.0": "mma", "12.1": "mma"}
    jobs = [
        (capability, NativeTile(*SPACE[kind][0][:3], 8, 1, *SPACE[kind][0][3:], use_tma).to_json())
        for capability, kind in kinds.items()
        for use_tma in (True, False)
    ]
    path = os.pathsep.join((os.environ[NEWEST], str(ROOT)))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(jobs)], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(jobs)
    for capability, _, _, registers, stack, scaled, tcgen05, _ in rows:
        assert scaled and tcgen05 == (kinds[capability] == "tcgen05") and registers <= 255 and stack <= 32


def test_candidates_fit_and_hold_the_choice():
    for capability in ((10, 0), (12, 0)):
        for m in (1, 128, 4096):
            found = list(candidates(m, 14336, 4096, capability, 148))
            assert len(found) == len(set(found)) >= 4
            assert all(tile.shared_bytes(family(capability)) <= ROOM[family(capability)] for tile in found)
            chosen = heuristic(m, 14336, 4096, capability, 148)
            assert chosen.split <= 8 and chosen.block_k * chosen.split <= 4096
