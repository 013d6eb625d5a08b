"""What is declared of NVFP4 in Triton and CUDA C++, and the launch each gets."""

import pytest

from kernelmux.backends.jit_cuda import declare_nvfp4 as jit_cuda
from kernelmux.backends.jit_cuda.nvfp4_gemv_rules import GemvTile
from kernelmux.backends.triton import declare_nvfp4 as triton
from kernelmux.backends.triton import nvfp4_configs
from kernelmux.backends.triton.nvfp4_rules import Nvfp4Tile
from kernelmux.contracts.nvfp4 import OPS as CONTRACTS
from kernelmux.device import resolve_device
from kernelmux.quant import Scheme
from kernelmux.registry import Packages, Problem, Rejected

OPS = {op.name: op for op in CONTRACTS}
KERNELS = {kernel.name: kernel for kernel in (*triton.KERNELS, *jit_cuda.KERNELS)}
HERE = Packages({"torch": "2.11.0+cu130", "triton": "3.6.0", "cupy-cuda13x": "14.2.0", "nvidia-cuda-nvrtc": "13.0.88"})


def problem(scheme="nvfp4_w4a16", m=8, n=14336, k=4096):
    return Problem("nvfp4_gemm", Scheme.of(scheme), "bfloat16", {"M": m, "N": n, "K": k}, None, frozenset())


def judged(name, device, packages=HERE, **how):
    return KERNELS[name].judge(OPS["nvfp4_gemm"], resolve_device(device), packages, problem(**how))


def test_declarations_have_no_faults():
    for kernel in KERNELS.values():
        assert kernel.faults() == [] and kernel.op in OPS


def test_tensor_cores_decide_who_runs():
    native, weight_only = "kernelmux.nvfp4_gemm[triton]", "kernelmux.nvfp4_weight_only[triton]"
    for device in ("h100-sxm", "sm80", "sm89"):
        assert isinstance(judged(native, device, scheme="nvfp4"), Rejected)
        assert not isinstance(judged(weight_only, device), Rejected)
        assert not isinstance(judged("kernelmux.nvfp4_weight_only[jit_cuda]", device), Rejected)
    assert not isinstance(judged(native, "sm100", scheme="nvfp4"), Rejected)
    assert isinstance(judged(native, "sm100"), Rejected)  # W4A16: x is not to be quantized
    old = judged(native, "sm121", scheme="nvfp4")
    assert isinstance(old, Rejected) and "3.6.0" in old.reason
    newer = Packages({"torch": "2.11.0+cu130", "triton": "3.9.0"})
    assert not isinstance(judged(native, "sm121", newer, scheme="nvfp4"), Rejected)


def test_few_tokens_run_in_cuda_and_many_in_triton():
    device = resolve_device("h100-sxm")
    choice = nvfp4_configs.few_tokens(device, HERE, problem())
    assert isinstance(choice.at(1), GemvTile) and isinstance(choice.at(16), GemvTile)
    assert isinstance(choice.at(64), Nvfp4Tile) and choice.at(64).kind == "tile"
    assert isinstance(nvfp4_configs.weight_only(device, HERE, problem()).at(1), Nvfp4Tile)
    assert choice.to_json(1)["cluster"] >= 1 and choice.to_json(None)["4096"]["kind"] in ("tile", "decode")


@pytest.fixture
def table(monkeypatch, tmp_path):
    import json

    tile = Nvfp4Tile(64, 16, 64, 0, 2, 4, 4, True)
    few = {"warps": 8, "row_tiles": 1, "cluster": 2}
    kinds = {"triton": {"16": tile.to_json(), "64": Nvfp4Tile(64, 64, 64).to_json()}, "gemv": {"16": few}}
    path = tmp_path / "tiles.json"
    path.write_text(json.dumps({"launches": {"9.0": {"4096,4096": kinds}}}))
    monkeypatch.setattr(nvfp4_configs, "TABLE", path)
    caches = (nvfp4_configs._table, nvfp4_configs.tile_at, nvfp4_configs.few_at)
    for cache in caches:
        cache.cache_clear()
    yield tile
    for cache in caches:
        cache.cache_clear()


def test_a_swept_shape_takes_its_launch_and_another_the_nearest_ones_blocks(table):
    device = resolve_device("h100-sxm")
    choice = nvfp4_configs.weight_only(device, HERE, problem(n=4096))
    assert (choice.source, choice.grade) == ("measured", "exact")
    assert choice.at(3) == table and choice.at(20).block_m == 64 and choice.at(5000).block_m == 64
    other = nvfp4_configs.weight_only(device, HERE, problem(n=8192, k=4096))
    assert other.grade == "family" and other.at(3).split == 1 and not other.at(3).pdl
    few = nvfp4_configs.few_tokens(device, HERE, problem(n=4096))
    assert few.at(3) == GemvTile(8, 1, 2) and few.at(17).block_m == 64


def test_what_the_declarations_name_is_there():
    pytest.importorskip("torch")
    from kernelmux.registry.lazy import load

    for kernel in KERNELS.values():
        for name in ("load", "prepare", "configs", "warmup", "source", "compile"):
            if getattr(kernel, name) is not None:
                assert callable(load(getattr(kernel, name)))
    assert len({load(kernel.source)() for kernel in KERNELS.values() if kernel.source}) == 2
    jobs = list(
        load(KERNELS["kernelmux.nvfp4_weight_only[jit_cuda]"].compile)(resolve_device("h100-sxm"), "bfloat16", {})
    )
    assert 3 <= len(jobs) == len({job.what for job in jobs})
