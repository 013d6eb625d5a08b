"""The identity of the CUDA kernels' code: what must change it, and what must not."""

import shutil
from pathlib import Path

import pytest

from kernelmux.backends.jit_cuda import source
from kernelmux.registry.discovery import registry
from kernelmux.registry.lazy import load

KERNELS = [k for k in registry() if k.backend == "jit_cuda" and k.source and ".jit_cuda." in k.source]


@pytest.fixture
def copy(tmp_path, monkeypatch):
    folder = tmp_path / "jit_cuda"
    shutil.copytree(source.HERE, folder)
    monkeypatch.setattr(source, "HERE", folder)
    source._identity.cache_clear()
    yield folder
    source._identity.cache_clear()


def test_every_small_cuda_kernel_has_one():
    assert len(KERNELS) >= 16
    assert all(len(load(kernel.source)()) == 16 for kernel in KERNELS)


@pytest.mark.parametrize(
    "file, changes",
    [
        ("csrc/common.cuh", {"norms", "activations", "fp8_epilogues"}),
        ("csrc/norms.cu", {"norms"}),
        ("csrc/formulas.cuh", {"activations", "fp8_epilogues"}),
        ("csrc/activations.cu", {"activations"}),
        ("norm_geometry.py", {"norms"}),
        ("cache.py", set()),
    ],
)
def test_only_what_decides_the_code_changes_it(copy, file, changes):
    functions = {name: getattr(source, name) for name in ("norms", "activations", "fp8_epilogues")}
    before = {name: function() for name, function in functions.items()}
    path = Path(copy / file)
    path.write_bytes(path.read_bytes() + b"\n")
    source._identity.cache_clear()
    assert {name for name, function in functions.items() if function() != before[name]} == changes
