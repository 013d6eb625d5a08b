"""Times every geometry of the jit_cuda norms, and writes which is fastest where.

    python benchmarks/sweep_norm_geometry.py --part 1/2 --out sweep-1.json      on a GPU; parts share nothing
    python benchmarks/sweep_norm_geometry.py --emit sweep-1.json sweep-2.json   writes norm_geometries.json, no GPU

A point is (op, H, M). Its candidates are captured into CUDA graphs of many launches on different rows, and replayed in
turns, each replay after the L2 was overwritten. Every candidate must give the bits that the first one gives, and the
first must be right. Times are microseconds a launch: the median of the replays.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

HIDDEN = (128, 512, 2048, 2688, 2880, 4096, 5120, 5376, 7168, 8192, 16384)
FEWER = (2048, 2688, 4096, 8192)  # of the ops other than rms_norm
ROWS = (1, 16, 256, 4096, 16384)
TENSORS = {"rms_norm": 2, "fused_add_rms_norm": 4, "gated_rms_norm": 3}
ORDER = {"rms_norm": "fp32_mul", "fused_add_rms_norm": "fp32_mul", "gated_rms_norm": "fp32_mul"}
CLOSE = 1.01  # a geometry this near to the best may stand for it, if that saves one


def main() -> None:
    options = arguments()
    if options.emit:
        emit([json.loads(path.read_text()) for path in options.emit], options.table)
    else:
        measure(options)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", type=lambda text: tuple(text.split(",")), default=tuple(TENSORS))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--hidden", type=sizes, help="of every op  [default: the grid of the benchmark]")
    parser.add_argument("--rows", type=sizes, default=ROWS)
    parser.add_argument("--part", type=part, default=(1, 1), metavar="I/N")
    parser.add_argument("--replays", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=240.0, help="start no point after that time")
    parser.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1))
    parser.add_argument("--out", type=Path, default=Path("norm-geometries.json"))
    parser.add_argument("--emit", type=Path, nargs="+", metavar="JSON")
    parser.add_argument("--table", type=Path, help="with --emit: where to  [default: the packaged table]")
    return parser.parse_args()


def sizes(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def part(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    return int(index), int(count)


def compile_one(arch: str, given: dict[str, str | int]) -> None:
    from kernelmux.backends.jit_cuda import cache
    from kernelmux.backends.jit_cuda.norm_variants import ENTRY, SOURCE

    cache.fetch(SOURCE, ENTRY, given, arch)


def candidates(op, hidden, dtype, rows, capability):
    """For few rows only those that a few rows can tell apart."""
    from kernelmux.backends.jit_cuda import norm_geometry

    found = norm_geometry.geometries(op, hidden, dtype, capability)
    if rows > 64:
        return found
    return tuple(g for g in found if g.blocks == 0 and g.unroll == 1 and g.stores == "keep") or found


def measure(options: argparse.Namespace) -> None:
    from kernelmux.backends.jit_cuda import driver, norm_variants
    from kernelmux.backends.jit_cuda.norm_geometry import ITEM_BYTES
    from kernelmux.backends.jit_cuda.norm_variants import Variant

    begun = time.perf_counter()
    capability = driver.capability(0)
    pairs = [(op, hidden) for op in options.ops for hidden in options.hidden or (HIDDEN if op == "rms_norm" else FEWER)]
    index, count = options.part
    pairs = pairs[index - 1 :: count]
    jobs = {}
    for op, hidden in pairs:
        variant = Variant(op, ORDER[op])
        for geometry in {g for rows in options.rows for g in candidates(op, hidden, options.dtype, rows, capability)}:
            access = norm_variants.aligned_to(hidden * ITEM_BYTES[options.dtype], 32 if capability.major >= 10 else 16)
            given = norm_variants.defines(variant, options.dtype, hidden, 1, 0, geometry, capability, access=access)
            jobs[given] = dict(given)
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        for future in [pool.submit(compile_one, capability.arch, given) for given in jobs.values()]:
            future.result()
    compiled = time.perf_counter() - begun
    print(f"{len(jobs)} kernels compiled in {compiled:.1f} s", flush=True)

    import torch

    bench = Bench(options.dtype, options.replays)
    points, left = [], []
    for op, hidden in pairs:
        for rows in options.rows:
            if time.perf_counter() - begun > options.seconds:
                left.append((op, hidden, rows))
                continue
            points.append(bench.point(op, hidden, rows, candidates(op, hidden, options.dtype, rows, capability)))
            print(line(points[-1]), flush=True)
    result = {
        "device": torch.cuda.get_device_name(), "capability": str(capability), "torch": torch.__version__,
        "dtype": options.dtype, "compile_seconds": round(compiled, 1), "points": points, "left_out": left,
        "seconds": round(time.perf_counter() - begun, 1),
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1))
    wrong = [name for point in points for name in point["wrong"]]
    print(f"{len(points)} points in {result['seconds']} s, {len(left)} left out, {len(wrong)} wrong", flush=True)


def line(point) -> str:
    best = sorted(point["us"], key=point["us"].get)[:3]
    moved = point["bytes"] / point["us"][best[0]] / 1e3
    words = ", ".join(f"{name} {point['us'][name]:.2f}" for name in best)
    rule = f"rule {point['rule']} {point['us'].get(point['rule'], math.nan):.2f}"
    wrong = f"  WRONG: {' '.join(point['wrong'])}" if point["wrong"] else ""
    where = f"{point['op']} H={point['H']} M={point['M']}"
    return f"{where}: {words}; {rule}; copy {point['copy_us']:.2f}; {moved:.0f} GB/s{wrong}"


class Bench:
    """Buffers and timing on the current GPU."""

    def __init__(self, dtype: str, replays: int):
        import torch

        self.torch, self.dtype, self.replays = torch, getattr(torch, dtype), replays
        self.properties = torch.cuda.get_device_properties(0)
        self.flush = torch.empty(4 * self.properties.L2_cache_size, dtype=torch.uint8, device="cuda")
        self.stream = torch.cuda.Stream()
        self.pools: dict[str, object] = {}

    def rows(self, name: str, copies: int, rows: int, hidden: int):
        """``copies`` blocks of rows in a buffer of that name, which only grows; each aligned to 512 bytes."""
        each = -(-rows * hidden // 256) * 256
        pool = self.pools.get(name)
        if pool is None or pool.numel() < copies * each:
            self.pools.pop(name, None)
            pool = self.pools[name] = self.torch.randn(copies * each, dtype=self.dtype, device="cuda")
        return [pool[i * each :][: rows * hidden].view(rows, hidden) for i in range(copies)]

    def point(self, op: str, hidden: int, rows: int, geometries) -> dict[str, object]:
        from kernelmux.backends.jit_cuda import norm_geometry
        from kernelmux.backends.jit_cuda.driver import capability
        from kernelmux.backends.jit_cuda.norm_variants import Variant
        from kernelmux.backends.jit_cuda.norms import bind_with

        torch = self.torch
        item = torch.finfo(self.dtype).bits // 8
        moved = item * hidden * (TENSORS[op] * rows + 1)
        copies = max(3, min(64, 2**30 // moved))
        names = {"rms_norm": ("x", "out"), "fused_add_rms_norm": ("x", "second", "out", "total")}
        weights = [each[0] for each in self.rows("weight", copies, 1, hidden)]
        columns = [self.rows(name, copies, rows, hidden) for name in names.get(op, ("x", "second", "out"))]
        inputs = 1 if op == "rms_norm" else 2
        sets = [(*row[:inputs], weight, *row[inputs:]) for *row, weight in zip(*columns, weights, strict=True)]
        variant, scalars = Variant(op, ORDER[op]), {"eps": 1e-6}

        calls, first, wrong = {}, None, []
        for geometry in geometries:
            call = bind_with(variant, scalars, sets[0], geometry)
            sets[0][inputs + 1].fill_(math.nan)
            call(*sets[0])
            got = sets[0][inputs + 1].clone()
            if first is None:
                first = got
                if not self.right(op, sets[0], got):
                    wrong.append(f"{geometry.name}:reference")
            elif not torch.equal(got, first):
                wrong.append(geometry.name)
            calls[geometry.name] = self.graph(call, sets)
        calls["copy"] = self.graph(lambda *tensors: tensors[inputs + 1].copy_(tensors[0]), sets)
        times = self.times(calls, copies)
        copied = times.pop("copy")
        device = capability(0)
        rule = norm_geometry.choose(
            op, hidden, str(self.dtype).removeprefix("torch."), rows, device, self.properties.multi_processor_count
        )
        return {
            "op": op, "H": hidden, "M": rows, "bytes": moved, "launches": copies, "rule": rule.name,
            "copy_us": copied, "us": times, "wrong": wrong,
        }  # fmt: skip

    def right(self, op: str, tensors, got) -> bool:
        from kernelmux.contracts import norms_math
        from kernelmux.contracts.rounding import exact_share

        few = slice(0, 64)
        if op == "rms_norm":
            x, weight, _ = tensors
            want = norms_math.rms_norm_rounded(x[few], weight, ORDER[op], 1e-6)
        elif op == "gated_rms_norm":
            x, z, weight, _ = tensors
            want = norms_math.gated_rms_norm_rounded(x[few], z[few], weight, ORDER[op], 1e-6)
        else:
            x, residual, weight, _, total = tensors
            want, kept = norms_math.fused_add_rms_norm_rounded(
                x[few], residual[few], weight, ORDER[op], "residual_rounded", 1e-6
            )
            if not self.torch.equal(total[few], kept):
                return False
        return exact_share(got[few], want) >= 0.99 and not bool(got.isnan().any())

    def graph(self, call, sets):
        """A graph with a launch on each set. Begun by hand: torch.cuda.graph() collects garbage first."""
        torch, graph = self.torch, self.torch.cuda.CUDAGraph()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            call(*sets[0])
            torch.cuda.synchronize()
            graph.capture_begin()
            for tensors in sets:
                call(*tensors)
            graph.capture_end()
        torch.cuda.current_stream().wait_stream(self.stream)
        return graph

    def times(self, graphs, launches: int) -> dict[str, float]:
        """Replays in turns, so that what drifts meets them all. The first turn is for warming up."""
        torch = self.torch
        events = {name: [] for name in graphs}
        for turn in range(self.replays + 1):
            for name, graph in graphs.items():
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                self.flush.zero_()
                begin.record()
                graph.replay()
                end.record()
                if turn:
                    events[name].append((begin, end))
        torch.cuda.synchronize()
        return {
            name: round(1e3 * statistics.median(begin.elapsed_time(end) for begin, end in pairs) / launches, 4)
            for name, pairs in events.items()
        }


def emit(results, table: Path | None) -> None:
    """The table of the fastest: as few geometries a length as stay within CLOSE of the best at every M."""
    from kernelmux.backends.jit_cuda.norm_geometry import ITEM_BYTES, MEASURED

    path = table or MEASURED
    whole = json.loads(path.read_text()) if path.exists() else {"geometries": {}}
    lengths: dict[tuple[str, str, str, str], dict[int, dict[str, float]]] = {}
    for result in results:
        for point in result["points"]:
            key = (result["capability"], point["op"], str(ITEM_BYTES[result["dtype"]]), str(point["H"]))
            right = {name: us for name, us in point["us"].items() if name not in point["wrong"]}
            lengths.setdefault(key, {})[point["M"]] = right
    for (capability, op, item, length), by_rows in sorted(lengths.items()):
        rows = sorted(by_rows)
        taken = best_of(rows, by_rows)
        bounds = [math.isqrt(low * high) for low, high in pairwise(rows)]
        steps = [[bound, name] for bound, name in zip([*bounds, None], taken, strict=True)]
        steps = [step for i, step in enumerate(steps) if i + 1 == len(steps) or steps[i + 1][1] != step[1]]
        whole["geometries"].setdefault(capability, {}).setdefault(op, {}).setdefault(item, {})[length] = steps
    whole["device"] = ", ".join(sorted({result["device"] for result in results}))
    path.write_text(json.dumps(whole, indent=1) + "\n")
    print(f"{len(lengths)} lengths written to {path}")


def best_of(rows: list[int], by_rows: dict[int, dict[str, float]]) -> list[str]:
    """A geometry for each number of rows, from many to few, kept while it is close to the best."""
    taken: list[str] = []
    for count in reversed(rows):
        us = by_rows[count]
        close = {name for name, time in us.items() if time <= CLOSE * min(us.values())}
        taken.append(taken[-1] if taken and taken[-1] in close else min(us, key=us.__getitem__))
    return taken[::-1]


if __name__ == "__main__":
    main()
