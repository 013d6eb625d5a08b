"""Compiling the plain MoE GEMMs ahead, every scheme, for GPUs that are not here."""

import json
import subprocess
import sys
from itertools import product

import pytest

from kernelmux.contracts.moe_quant import MoeQuant
from kernelmux.device import catalog
from kernelmux.tuning_configs.shared_law import lower_bound
from kernelmux.tuning_configs.tile import Tile

pytest.importorskip("triton", reason="Triton compiles")

SMALL, LARGE, WIDE = Tile(16, 64, 128, 1, 4, 3), Tile(64, 128, 64, 8, 4, 3), Tile(128, 128, 128, 16, 8, 3)
DOWN_TMA = Tile(64, 128, 128, 8, 4, 3, True)

# In a process of its own: compiling replaces Triton's driver, and torch must not be needed.
SCRIPT = """
import json, sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("no torch here", name="torch")
sys.meta_path.insert(0, NoTorch())
from kernelmux.backends.triton.moe_compile import compile_tile
from kernelmux.backends.triton.moe_variant import MoeVariant
from kernelmux.contracts.moe_quant import MoeQuant
from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.device import Capability
from kernelmux.errors import UsageError
from kernelmux.tuning_configs.tile import Tile
for structure, scheme, side, tile, capability, direct in json.loads(sys.argv[1]):
    try:
        c = compile_tile(MoeShape(256, 128, 7168, 8), side, Tile(*tile), Capability.parse(capability), direct,
            MoeVariant(structure, MoeQuant.of(scheme)))
        print(json.dumps([c.shared_bytes, c.registers, c.sha256]))
    except UsageError as error:
        print(json.dumps(str(error)))
"""


def compiled(cases):
    asked = [[*case[:3], [getattr(case[3], f) for f in Tile.__slots__], *case[4:]] for case in cases]
    done = subprocess.run([sys.executable, "-c", SCRIPT, json.dumps(asked)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_scheme_compiles_for_every_generation_and_fits_what_the_law_says_at_least():
    device = {"8.0": "a100-sxm-80gb", "8.9": "l40s", "9.0": "h100-sxm", "12.0": "rtx-pro-6000-server"}
    schemes = {
        "8.0": ("none", "int8_w8a8", "int8_w8a16"),
        "8.9": ("fp8_tensor", "fp8_block"),
        "9.0": ("none", "fp8_channel", "fp8_block", "int8_w8a16"),
        "12.0": ("none", "fp8_tensor", "fp8_channel", "fp8_block", "int8_w8a8", "int8_w8a16"),
    }
    cases = [
        ("vllm" if nth % 2 else "sglang", scheme, side, tile, capability, False)
        for capability, names in schemes.items()
        for nth, (scheme, (side, tile)) in enumerate(product(names, (("up", SMALL), ("down", LARGE))))
    ]
    for (_, scheme, _, tile, capability, _), (shared, registers, _) in zip(cases, compiled(cases), strict=True):
        quant = MoeQuant.of(scheme)
        gpu = catalog()[device[capability]]
        least = lower_bound(tile, gpu.capability, quant.element_bytes_a, quant.element_bytes_b)
        assert least <= shared <= gpu.shared_bytes, (scheme, capability, tile)
        if capability == "12.0":
            assert shared <= 101_376
        assert 0 < registers <= 255


def test_what_a_tile_means_follows_the_engine():
    clamped = Tile(64, 128, 256, 8, 4, 3)
    rows = compiled(
        [
            ("vllm", "fp8_block", "up", Tile(64, 128, 128, 8, 4, 3), "9.0", False),
            ("vllm", "fp8_block", "up", clamped, "9.0", False),
            ("sglang", "fp8_block", "up", clamped, "9.0", False),
            ("vllm", "fp8_block", "up", SMALL, "9.0", False),
            ("vllm", "fp8_block", "up", SMALL, "12.0", False),
            ("vllm", "none", "up", SMALL, "9.0", False),
            ("vllm", "none", "up", SMALL, "9.0", True),
            ("sglang", "fp8_block", "down", DOWN_TMA, "9.0", False),
            ("vllm", "fp8_block", "up", SMALL, "8.0", False),
        ]
    )
    assert rows[0] == rows[1], "vLLM clamps BLOCK_SIZE_K: one binary"
    assert "clamp" in rows[2]
    slab = (16 + 64) * 128
    assert rows[3][0] == 3 * slab, "operands swapped: wgmma holds every stage"
    assert rows[4][0] == 2 * slab, "mma.sync holds one less"
    assert rows[5][2] != rows[6][2], "an unsorted launch is a kernel of its own"
    assert 3 * (64 + 128) * 128 <= rows[7][0] <= 3 * (64 + 128) * 128 + 1024
    assert "e4m3" in rows[8]


@pytest.mark.parametrize("structure", ["vllm", "sglang"])
def test_wide_tiles_too(structure):
    rows = compiled([(structure, scheme, "down", WIDE, "9.0", False) for scheme in ("fp8_block", "int8_w8a8")])
    assert all(shared <= catalog()["h100-sxm"].shared_bytes for shared, _, _ in rows)
