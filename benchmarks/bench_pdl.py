"""Programmatic dependent launch: dependent pairs of jit_cuda kernels timed on and off; is a late writer waited for?

    python benchmarks/bench_pdl.py --out benchmarks/results/pdl-h200.json

A pair is rms_norm, then relu2 of its result: 64 pairs in a CUDA graph, so that every kernel depends on the one before.
On and off are two processes of their own, in turn, several times. ``--check`` times nothing: a producer lets its
dependents start at once, waits, and then writes the tensor that the kernel reads (or reads the one that it writes).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PAIRS, REPLAYS, TURNS = 64, 30, 3
SHAPES = ((1, 4096), (16, 4096), (64, 4096), (256, 4096), (1024, 4096), (1, 8192), (256, 2688))
NORMS = ("rms_norm", "fused_add_rms_norm", "gated_rms_norm", "rms_norm_fp8")
LATE = """
extern "C" __global__ void late(const unsigned* source, unsigned* target, long long words, long long wait) {
  asm volatile("griddepcontrol.launch_dependents;");
  const long long begun = clock64();
  while (clock64() - begun < wait) {}
  const long long step = (long long)gridDim.x * blockDim.x;
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < words; i += step) target[i] = source[i];
}
"""
WAIT = 200_000  # clocks, about 100 us


def switch_off() -> None:
    """From here on no launcher asks for programmatic dependent launch."""
    from kernelmux.backends.jit_cuda import launch

    begin = launch.Launcher.__init__

    def without(self: Any, function: Any, signature: str, *, block: int, shared: int = 0, pdl: bool = True) -> None:
        begin(self, function, signature, block=block, shared=shared, pdl=False)

    launch.Launcher.__init__ = without  # type: ignore[method-assign]


def kernels(names: tuple[str, ...] = ()) -> list[Any]:
    """Our jit_cuda kernels of the small ops, or those of these ops."""
    from kernelmux.measure.small_point import small_ops
    from kernelmux.registry.discovery import registry

    known = registry()
    return [
        kernel
        for op in small_ops(known.ops())
        if not names or op.name in names
        for kernel in known.kernels(op.name)
        if kernel.backend == "jit_cuda" and kernel.name.startswith("kernelmux.")
    ]


def time_pairs() -> dict[str, list[float]]:
    """Microseconds of a pair at each shape."""
    import torch

    from kernelmux.registry.lazy import load

    norm = next(load(k.load) for k in kernels(("rms_norm",)) if "fp32_mul" in k.numerics.promises)
    relu2 = load(kernels(("relu2",))[0].load)
    found = {}
    for m, h in SHAPES:
        x = torch.randn(m, h, device="cuda", dtype=torch.bfloat16)
        weight = torch.ones(h, device="cuda", dtype=torch.bfloat16)
        y, z = torch.empty_like(x), torch.empty_like(x)

        def pair(x: Any = x, weight: Any = weight, y: Any = y, z: Any = z) -> None:
            norm(x, weight, config=None, out=y)
            relu2(y, None, config=None, out=z)

        pair()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(PAIRS):
                pair()
        graph.replay()
        marks = []
        torch.cuda._sleep(20_000_000)
        for _ in range(REPLAYS):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            marks.append((start, end))
        torch.cuda.synchronize()
        found[f"{m}x{h}"] = [round(a.elapsed_time(b) * 1e3 / PAIRS, 4) for a, b in marks]
    return found


def check() -> dict[str, str]:
    """Kernel and tensor -> "right", or what is wrong, with producers that write (or read) late."""
    import cupy
    import numpy
    import torch

    from kernelmux.measure import small_check
    from kernelmux.measure.small_contestants import run_arguments
    from kernelmux.measure.small_point import Point, draw
    from kernelmux.registry.discovery import registry
    from kernelmux.registry.lazy import load

    late = cupy.RawKernel(LATE, "late")
    said = {}

    def run_late(source: Any, target: Any) -> None:
        words = source.numel() * source.element_size() // 4
        with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
            late((32,), (256,), (source.data_ptr(), target.data_ptr(), numpy.int64(words), numpy.int64(WAIT)))

    for kernel in kernels():
        op = registry().op(kernel.op)
        point = Point(op.name, 64, 2048)
        old, new = draw(op, point, 1, "cuda", seed=1)[0], draw(op, point, 1, "cuda", seed=2)[0]
        run = load(kernel.load)
        x, weights, rest = run_arguments(op, old)
        run(x, weights, config=None, **rest)  # compiled and loaded: the next launch is at once
        torch.cuda.synchronize()
        before = {name: value.clone() for name, value in old.given.items() if isinstance(value, torch.Tensor)}
        for name in before:
            for other, value in before.items():
                old.given[other].copy_(value)
            old.poison()
            torch.cuda.synchronize()
            run_late(new.given[name], old.given[name])
            run(x, weights, config=None, **rest)
            torch.cuda.synchronize()
            want = small_check.reference(op, {**old.given, name: new.given[name]})
            verdict = small_check.judge(op, point.dtype, old.outs, want)
            said[f"{kernel.name}: {name} written late"] = "right" if verdict.ok else verdict.reason
        for i, out in enumerate(old.outs):
            out.view(torch.uint8).fill_(0x11)
            copy = torch.zeros_like(out)
            torch.cuda.synchronize()
            run_late(out, copy)
            run(x, weights, config=None, **rest)
            torch.cuda.synchronize()
            whole = copy.numel() * copy.element_size() // 4 * 4
            kept = bool((copy.view(torch.uint8).flatten()[:whole] == 0x11).all())
            said[f"{kernel.name}: result {i} read late"] = "right" if kept else "written before its reader was done"
    return said


def worker(mode: str, checking: bool) -> Any:
    """This script in a process of its own."""
    line = [sys.executable, __file__, "--worker", mode, *(["--check"] if checking else [])]
    ran = subprocess.run(line, capture_output=True, text=True, env=os.environ)
    if ran.returncode:
        raise SystemExit(f"with PDL {mode}: {ran.stderr.strip()[-2000:]}")
    return json.loads(ran.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--check", action="store_true", help="only whether results are right, with late producers")
    parser.add_argument("--worker", choices=["on", "off"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        if options.worker == "off":
            switch_off()
        print(json.dumps(check() if options.check else time_pairs()))
        return
    checked = {mode: worker(mode, True) for mode in ("on", "off")}
    wrong = [
        f"PDL {mode}: {what}: {word}"
        for mode, all_ in checked.items()
        for what, word in all_.items()
        if word != "right"
    ]
    print("\n".join(wrong) or f"right with late producers, PDL on and off: {len(checked['on'])} cases each")
    if options.check:
        sys.exit(1 if wrong else 0)
    samples: dict[str, dict[str, list[float]]] = {"on": {}, "off": {}}
    for turn in range(2 * TURNS):
        mode = ("on", "off")[turn % 2]
        for shape, us in worker(mode, False).items():
            samples[mode].setdefault(shape, []).extend(us)
    from kernelmux.device import detect

    device = detect(0)
    import torch

    rows = []
    for shape in samples["on"]:
        on, off = (statistics.median(samples[mode][shape]) for mode in ("on", "off"))
        rows.append({"shape": shape, "on_us": on, "off_us": off, "off_over_on": round(off / on, 4)})
        print(f"{shape}: a pair takes {on:.2f} us with PDL, {off:.2f} us without ({off / on:.3f})")
    if options.out:
        result = {
            "benchmark": "programmatic dependent launch", "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "command": "python benchmarks/bench_pdl.py --out FILE", "device": device.torch_name,
            "capability": str(device.capability), "driver": device.driver,
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
            "what": f"rms_norm then relu2 of its result, bf16, {PAIRS} pairs in a CUDA graph, us of a pair",
            "rows": rows, "late_producers": checked, "samples_us": samples,
        }  # fmt: skip
        options.out.write_text(json.dumps(result) + "\n")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
