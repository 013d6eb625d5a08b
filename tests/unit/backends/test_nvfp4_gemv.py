"""The CUDA C++ kernel for NVFP4 weights and few tokens: compiled for GPUs that are not here, its launches as data."""

import ctypes
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from kernelmux.backends.jit_cuda.compiler import SOURCES
from kernelmux.backends.jit_cuda.nvfp4_gemv_rules import (
    ENTRY,
    MOST_TOKENS,
    SOURCE,
    GemvTile,
    candidates,
    defines,
    fault,
    heuristic,
)

SHAPES = ((4096, 4096), (14336, 4096), (4096, 14336), (10240, 5120), (28672, 4096))


@pytest.fixture
def compiled():
    pytest.importorskip("cupy_backends", reason="NVRTC comes with CuPy")
    from kernelmux.backends.jit_cuda.compiler import compile_source

    def compile_one(tile, m, arch, dtype="bfloat16", out_dtype="bfloat16"):
        return compile_source(SOURCE, ENTRY, dict(defines(tile, m, dtype, out_dtype)), arch)

    return compile_one


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"])
def test_it_compiles_without_spills(compiled, arch):
    cluster = 4 if arch in ("sm_90", "sm_100", "sm_120") else 1
    for m in (8, 16, 32):
        made = compiled(GemvTile(cluster=cluster), m, arch)
        assert made.spills == 0 and made.registers <= 168
    assert compiled(GemvTile(cluster=cluster), 8, arch, "float16", "float32").spills == 0


def test_every_candidate_of_hopper_compiles_without_spills(compiled):
    kinds = {
        (tile.warps, tile.row_tiles, m) for m in (8, 16, 32) for n, k in SHAPES for tile in candidates(m, n, k, (9, 0))
    }
    assert len(kinds) >= 12
    for warps, row_tiles, m in kinds:
        assert compiled(GemvTile(warps, row_tiles, 2), m, "sm_90").spills == 0


def test_the_inner_loop_spends_few_instructions_on_a_value(compiled, tmp_path):
    knobs = pytest.importorskip("triton.knobs")
    path = tmp_path / "gemv.cubin"
    path.write_bytes(compiled(GemvTile(4, 2, 4), 8, "sm_90").code)
    said = subprocess.run([knobs.nvidia.nvdisasm.path, "-c", str(path)], capture_output=True, text=True, check=True)
    blocks = re.split(r"^\.L\S+:", said.stdout, flags=re.MULTILINE)
    loop = max(blocks, key=lambda block: block.count("HMMA"))
    found = Counter(re.findall(r"^\s+/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\d+ )?([A-Z0-9]+)(?:\.[A-Z0-9_.]+)?", loop, re.M))
    values = 2 * 2 * 2 * 4 * 8 // 8  # in eights: tiles, rows, pieces, registers of a chunk of a lane
    assert found["HMMA"] == 2 * values // 2
    assert sum(found.values()) <= 18 * values  # 17: nine to place the bits, four to scale, one to multiply, the rest
    wide = re.findall(r"LDG\S*\.128", loop)
    assert len(wide) == 8 and len(re.findall(r"LDG\S*\.64", loop)) == 4  # 16 bytes a load, scales 8


def test_a_launch_that_cannot_be_says_why():
    assert "32 at most" in fault(GemvTile(), MOST_TOKENS + 1, 4096, (9, 0))
    assert "clusters" in fault(GemvTile(cluster=2), 1, 4096, (8, 0))
    assert "shared memory" in fault(GemvTile(cluster=1), 32, 14336, (9, 0))
    assert fault(GemvTile(cluster=1), 8, 4096, (8, 0)) is None


def test_a_choice_keeps_every_multiprocessor_busy():
    for n, k in SHAPES:
        for m in (1, 8, 16, 32):
            tile = heuristic(m, n, k, 132, (9, 0))
            assert tile is not None and tile.grid(n) >= 120 and tile.grid(n) % tile.cluster == 0
    assert heuristic(33, 4096, 4096, 132, (9, 0)) is None
    assert heuristic(4, 4096, 4096, 108, (8, 0)).cluster == 1


def on_host(folder, tile, m, x, weights, out):
    """Runs the kernel's own source on the host."""
    given = dict(defines(tile, m, str(x.dtype)[6:], str(out.dtype)[6:]))
    source = (SOURCES / f"{SOURCE}.cu").read_text()
    kernel = folder / "kernel.cu"
    kernel.write_text(re.sub(r"^#include .*$", "", source, flags=re.MULTILINE))
    library = folder / f"{tile.short().replace(' ', '')}-{m}-{x.dtype}.so"
    made = subprocess.run(
        ["g++", "-O1", "-std=c++17", "-march=native", "-w", "-shared", "-fPIC", f"-DGEMV=\"{kernel}\"",
         *(f"-D{name}={value}" for name, value in given.items()), "-o", str(library),
         str(Path(__file__).parent / "nvfp4_gemv_on_host.cpp")], capture_output=True, text=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr[-3000:]
    tensors = (x, weights.words, weights.scales, weights.factor)
    pointers = [ctypes.c_uint64(t.data_ptr()) for t in (*tensors, out)]
    numbers = [ctypes.c_int32(v) for v in (m, weights.n, weights.k, weights.words.shape[1])]
    strides = [ctypes.c_int64(x.stride(0)), ctypes.c_int64(out.stride(0))]
    values = [*pointers, *numbers, *strides]
    array = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    ends = [end for t in tensors for end in (t.data_ptr(), t.data_ptr() + _reach(t))]
    ranges = (ctypes.c_uint64 * len(ends))(*ends)
    ctypes.CDLL(str(library)).run(tile.grid(weights.n), tile.shared_bytes(m, weights.k), array, ranges, len(tensors))


def _reach(t):
    return (sum((size - 1) * step for size, step in zip(t.shape, t.stride(), strict=True)) + 1) * t.element_size()


@pytest.mark.parametrize(
    ("m", "n", "k", "tile", "dtype"),
    [
        (1, 64, 256, GemvTile(2, 2, 1), "bfloat16"),
        (5, 136, 784, GemvTile(2, 2, 2), "bfloat16"),  # rows beyond N, a part of a chunk, uneven parts of K
        (16, 64, 1024, GemvTile(4, 1, 4), "bfloat16"),
        (11, 72, 512, GemvTile(2, 1, 4), "float16"),  # more blocks in a cluster than chunks
        (29, 64, 512, GemvTile(2, 2, 2), "bfloat16"),
    ],
)
def test_its_source_multiplies_right_when_run_on_the_host(tmp_path, m, n, k, tile, dtype):
    torch = pytest.importorskip("torch")
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    from kernelmux.backends.triton.nvfp4_planes import prepare
    from kernelmux.contracts.nvfp4_math import gemm_reference, quantize_reference

    generator = torch.Generator().manual_seed(m)
    wide = torch.randn(m, k + 16, generator=generator).to(getattr(torch, dtype))
    spread = torch.exp(torch.randn(n, k // 16, generator=generator)).repeat_interleave(16, 1)
    weight = torch.randn(n, k, generator=generator) * spread * k**-0.5
    factor = (weight.abs().amax() / (448 * 6)).reshape(1)
    w, w_scale = quantize_reference(weight, factor)
    out = torch.full((m, n + 3), float("nan"))
    x = wide[:, :k]
    on_host(tmp_path, tile, m, x, prepare(w=w, w_scale=w_scale, w_global_scale=factor), out)
    want = gemm_reference(x, w, w_scale, factor)
    assert float((out[:, :n] - want).norm() / want.norm()) <= 1e-6
    assert out[:, n:].isnan().all()
