"""The runtime of CUDA kernels on a GPU: other threads, other devices, graphs, a cache that is there or not."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU, or no torch for one, on this machine"),
]

from kernelmux.backends.jit_cuda import cache, compiler, driver, launch  # noqa: E402
from kernelmux.errors import FrozenError, LaunchFailed  # noqa: E402

ADD = """
#include "common.cuh"
extern "C" __global__ void add(float* out, const float* x, int n, float by) {
  pdl_launch();
  pdl_wait();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) store(out + i, from_floats<float, 1>({to_float(load<1>(x + i).v[0]) + by}));
}
"""
N, BLOCK = 100_000, 256
GRID = -(-N // BLOCK)


@pytest.fixture(autouse=True)
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "csrc"
    folder.mkdir()
    (folder / "common.cuh").write_text((compiler.SOURCES / "common.cuh").read_text())
    (folder / "add.cu").write_text(ADD)
    monkeypatch.setattr(compiler, "SOURCES", folder)
    monkeypatch.setattr(launch, "_functions", {})
    monkeypatch.setenv("KERNELMUX_CACHE_DIR", str(tmp_path / "cache"))


def adder(index: int = 0, **defines: int) -> launch.Launcher:
    given = tuple(defines.items())
    return launch.Launcher(launch.function("add", "add", given, index), "PPif", block=BLOCK)


def stream(index: int = 0) -> int:
    return launch.stream_getter()(index)


def tensors(index: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.arange(N, dtype=torch.float32, device=f"cuda:{index}")
    return x, torch.zeros_like(x)


def test_a_kernel_runs_and_its_facts_are_the_compilers() -> None:
    launcher = adder()
    assert launcher.function.capability == torch.cuda.get_device_capability(0)
    cubin = cache.fetch("add", "add", {}, launcher.function.capability.arch)
    assert launcher.function.registers == cubin.registers
    assert (launcher.function.spills, launcher.function.max_threads) == (0, 1024)
    x, out = tensors()
    launcher(GRID, stream(), out.data_ptr(), x.data_ptr(), N, 0.5)
    assert torch.equal(out, x + 0.5)
    bound = launcher.bind(GRID, ..., x.data_ptr(), N, ...)
    bound(stream(), out.data_ptr(), 2.0)
    assert torch.equal(out, x + 2.0)


def test_a_chain_of_overlapping_launches_keeps_its_order() -> None:
    launcher, (x, out) = adder(), tensors()
    other = torch.zeros_like(out)
    launcher(GRID, stream(), out.data_ptr(), x.data_ptr(), N, 0.0)
    for _ in range(200):
        launcher(GRID, stream(), other.data_ptr(), out.data_ptr(), N, 1.0)
        launcher(GRID, stream(), out.data_ptr(), other.data_ptr(), N, 1.0)
    assert torch.equal(out, x + 400.0)


def test_a_thread_that_never_touched_cuda_can_launch() -> None:
    launcher, (x, out) = adder(), tensors()
    torch.cuda.synchronize()
    failed: list[Exception] = []

    def work() -> None:
        try:
            launcher(GRID, 0, out.data_ptr(), x.data_ptr(), N, 3.0)
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    torch.cuda.synchronize()
    assert not failed
    assert torch.equal(out, x + 3.0)


@pytest.mark.skipif(torch.cuda.is_available() and torch.cuda.device_count() < 2, reason="one GPU")
@pytest.mark.parametrize("own", [False, True])
def test_the_other_gpu_may_be_the_current_one(own: bool) -> None:
    x, out = tensors(1)
    launcher = adder(1)
    with torch.cuda.device(1):
        side = torch.cuda.Stream() if own else torch.cuda.default_stream()
    torch.cuda.synchronize(1)
    with torch.cuda.device(0):
        launcher(GRID, side.cuda_stream, out.data_ptr(), x.data_ptr(), N, 4.0)
        assert torch.cuda.current_device() == 0
    torch.cuda.synchronize(1)
    assert torch.equal(out, x + 4.0)


def test_a_graph_holds_launches_and_refuses_to_load() -> None:
    launcher, (x, out) = adder(), tensors()
    middle = torch.zeros_like(out)
    launcher(GRID, stream(), out.data_ptr(), x.data_ptr(), N, 0.0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launcher(GRID, stream(), middle.data_ptr(), x.data_ptr(), N, 1.0)
        launcher(GRID, stream(), out.data_ptr(), middle.data_ptr(), N, 1.0)
        with pytest.raises(FrozenError, match="graph is being captured and this would load the CUDA kernel add"):
            adder(ANOTHER=1)
    for start in (0.0, 5.0):
        x.fill_(start)
        graph.replay()
        assert torch.equal(out, torch.full_like(out, start + 2.0))


def test_what_the_driver_refuses_is_told() -> None:
    launcher, (x, out) = adder(), tensors()
    with pytest.raises(LaunchFailed, match="launch add on GPU 0.*CUDA_ERROR_INVALID_VALUE"):
        launcher.call(0, stream(), out.data_ptr(), x.data_ptr(), N, 0.0)
    with pytest.raises(LaunchFailed, match="cannot load add onto GPU 0"):
        driver.load(b"no code", "add", 0)
    launcher(GRID, stream(), out.data_ptr(), x.data_ptr(), N, 1.0)  # neither does harm to what follows
    assert torch.equal(out, x + 1.0)
