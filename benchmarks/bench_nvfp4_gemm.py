"""Weight-only NVFP4 GEMM beside cuBLAS in bf16 and beside dequantize-then-multiply, in one process and one run.

CUDA graphs of all contenders are replayed in turn, in an order drawn anew each round. Each graph goes once through
copies of the weight that together are several times the L2, so that every call finds its weight in device memory.
A ratio above 1 says that ours is faster; it is the median time of cuBLAS over ours.

    python benchmarks/bench_nvfp4_gemm.py --out result.json
    python benchmarks/bench_nvfp4_gemm.py --sweep [--part 1/2] --out sweep.json    # every candidate; the best is named
    python benchmarks/bench_nvfp4_gemm.py --write-table sweep.json ...    # what launches take from then on
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import math
import multiprocessing
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import triton

from kernelmux.backends.jit_cuda import cache as jit_cache
from kernelmux.backends.jit_cuda import nvfp4_gemv
from kernelmux.backends.jit_cuda import nvfp4_gemv_rules as gemv_rules
from kernelmux.backends.jit_cuda.nvfp4_gemv_rules import GemvTile
from kernelmux.backends.triton import nvfp4_configs, nvfp4_planes, nvfp4_weight_only
from kernelmux.backends.triton.nvfp4_compile import compile_facts
from kernelmux.backends.triton.nvfp4_rules import DECODE, Nvfp4Tile, candidates
from kernelmux.contracts.nvfp4_math import dequantize, quantize_reference
from kernelmux.device import Capability, detect

SHAPES = ((4096, 4096), (14336, 4096), (4096, 14336), (10240, 5120), (28672, 4096))
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
SWEPT = (1, 16, 32, 64, 128, 256, 512, 1024, 2048)
FEW_ROUNDS, ROUNDS = 3, 30
KEEP_WITHIN = 1.25  # of the best after FEW_ROUNDS
Call = Callable[[int], torch.Tensor]


class Weight:
    """One weight of random values: copies of the packed form and of bf16, and the fp32 product of any x."""

    def __init__(self, n: int, k: int, cold_bytes: int):
        generator = torch.Generator(device="cuda").manual_seed(n + k)
        dense = torch.randn(n, k, device="cuda", generator=generator) * k**-0.5
        factor = (dense.abs().amax() / (448 * 6)).reshape(1)
        packed, scale = quantize_reference(dense, factor)
        del dense
        self.n, self.k = n, k
        self.exact = dequantize(packed, scale, factor)
        first = nvfp4_planes.prepare(w=packed, w_scale=scale, w_global_scale=factor)
        self.packed_bytes = sum(t.numel() * t.element_size() for t in first[:3])
        self.calls = max(4, math.ceil(cold_bytes / self.packed_bytes))
        self.planes = [first] + [first._replace(words=first.words.clone(), scales=first.scales.clone())
                                 for _ in range(self.calls - 1)]  # fmt: skip
        dense16 = self.exact.bfloat16()
        few = max(2, min(self.calls, math.ceil(cold_bytes / (2 * n * k))))
        self.dense = [dense16] + [dense16.clone() for _ in range(few - 1)]


def capture(call: Call, calls: int) -> torch.cuda.CUDAGraph:
    call(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for nth in range(calls):
            call(nth)
    graph.replay()
    return graph


def race(graphs: dict[str, torch.cuda.CUDAGraph], calls: int, rounds: int, seed: int) -> dict[str, list[float]]:
    """Microseconds of one call, a sample a round for each contender, in turn."""
    rng, names, marks = random.Random(seed), list(graphs), []
    torch.cuda.synchronize()
    torch.cuda._sleep(int(2e6))  # the launches below get ahead of the GPU
    for _ in range(rounds):
        rng.shuffle(names)
        for name in names:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graphs[name].replay()
            end.record()
            marks.append((name, start, end))
    torch.cuda.synchronize()
    samples: dict[str, list[float]] = {name: [] for name in graphs}
    for name, start, end in marks:
        samples[name].append(start.elapsed_time(end) * 1e3 / calls)
    return samples


def worst_row(got: torch.Tensor, want: torch.Tensor) -> float:
    return float(((got.float() - want).norm(dim=1) / want.norm(dim=1).clamp_min(1e-12)).max())


def ours(weight: Weight, x: torch.Tensor, tile: Nvfp4Tile | None) -> Call:
    return lambda nth: nvfp4_weight_only.run(x, weight.planes[nth % len(weight.planes)], config=tile)


def contenders(weight: Weight, x: torch.Tensor, tiles: list[Nvfp4Tile], gemvs: list[GemvTile]) -> dict[str, Call]:
    calls = {tile.short(): ours(weight, x, tile) for tile in tiles}
    calls["cublas bf16"] = lambda nth: x @ weight.dense[nth % len(weight.dense)].T
    calls |= gemv_contenders(weight, x, gemvs)
    return calls


def gemv_contenders(weight: Weight, x: torch.Tensor, tiles: list[GemvTile]) -> dict[str, Call]:
    planes = weight.planes

    def call(tile: GemvTile) -> Call:
        return lambda nth: nvfp4_gemv.run(x, planes[nth % len(planes)], config=tile)

    return {f"gemv {tile.short()}": call(tile) for tile in tiles}


def prove_and_capture(call: Call, calls: int, want: torch.Tensor) -> tuple[torch.cuda.CUDAGraph, float] | str:
    """A graph and the worst row's error, or why there is none."""
    try:
        error = worst_row(call(0), want)
        if not error <= 2e-2:
            return f"wrong by {error:.2e}"
        return capture(call, calls), error
    except Exception as problem:
        return f"{type(problem).__name__}: {' '.join(str(problem).split())[:160]}"


def measure(weight: Weight, m: int, tiles: list[Nvfp4Tile], gemvs: list[GemvTile], seed: int) -> dict[str, Any]:
    x = torch.randn(m, weight.k, device="cuda", generator=torch.Generator(device="cuda").manual_seed(seed)).bfloat16()
    want = x.float() @ weight.exact.T
    calls = weight.calls
    graphs, errors, failed = {}, {}, {}
    for name, call in contenders(weight, x, tiles, gemvs).items():
        made = prove_and_capture(call, calls, want)
        if isinstance(made, str):
            failed[name] = made
        else:
            graphs[name], errors[name] = made
    if graphs.keys() <= {"cublas bf16"}:
        raise SystemExit(f"N={weight.n} K={weight.k} M={m}: nothing of ours ran: {failed}")
    if len(graphs) > 8:
        samples = race(graphs, calls, FEW_ROUNDS, seed)
        middle = {name: statistics.median(us) for name, us in samples.items()}
        best = min(us for name, us in middle.items() if name != "cublas bf16")
        first = {name: round(us, 3) for name, us in middle.items()}
        graphs = {name: g for name, g in graphs.items() if middle[name] <= KEEP_WITHIN * best or name == "cublas bf16"}
        if len(graphs) > 12:
            order = sorted(graphs, key=middle.__getitem__)[:11]
            graphs = {name: graphs[name] for name in {*order, "cublas bf16"}}
    else:
        first = {}
    samples = race(graphs, calls, ROUNDS, seed + 1)
    times = {name: round(statistics.median(us), 3) for name, us in samples.items()}
    spread = {name: [round(q, 3) for q in statistics.quantiles(us, n=10)[::8]] for name, us in samples.items()}
    mine = {name: us for name, us in times.items() if name != "cublas bf16"}
    best_name = min(mine, key=mine.__getitem__)
    launches: dict[str, Any] = {tile.short(): tile.to_json() for tile in tiles}
    launches |= {f"gemv {tile.short()}": asdict(tile) for tile in gemvs}
    peak_bytes = weight.packed_bytes + 2 * m * (weight.k + weight.n)
    return {
        "n": weight.n, "k": weight.k, "m": m, "calls": calls,
        "launches": {name: launches[name] for name in times if name in launches},
        "us": times, "p10_p90": spread, "first_us": first,
        "best": best_name, "ratio": round(times["cublas bf16"] / mine[best_name], 3),
        "gbs": round(peak_bytes / mine[best_name] * 1e-3, 1),
        "tflops": round(2 * m * weight.n * weight.k / mine[best_name] * 1e-6, 1),
        "error": {name: float(f"{error:.3g}") for name, error in errors.items() if name in times}, "failed": failed,
    }  # fmt: skip


def _compile(job: tuple[Nvfp4Tile | GemvTile, int, str]) -> tuple[str, Any]:
    tile, m, said = job
    capability = Capability.parse(said)
    try:
        if isinstance(tile, Nvfp4Tile):
            return tile.short(), compile_facts(tile, capability)
        given = gemv_rules.defines(tile, m, "bfloat16", "bfloat16")
        cubin = jit_cache.fetch(gemv_rules.SOURCE, gemv_rules.ENTRY, dict(given), capability.arch)
        return f"gemv {tile.short()} M={m}", {"registers": cubin.registers, "stack_bytes": cubin.spills}
    except Exception as error:
        return tile.short(), f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def compile_ahead(wanted: dict[int, tuple[list[Nvfp4Tile], list[GemvTile]]], capability: str) -> dict[str, Any]:
    """Fill both caches by many processes; M, N, K and the number of parts of K are no compile-time constants."""
    jobs: dict[Any, tuple[Nvfp4Tile | GemvTile, int, str]] = {}
    for m, (tiles, gemvs) in wanted.items():
        for t in tiles:
            if t.kind == "tile":
                key = (t.block_n, t.block_m, t.block_j, t.group_m, t.warps, t.stages, t.split > 1, t.pdl)
                jobs[key] = (t, m, capability)
        for g in gemvs:
            jobs[g, gemv_rules.token_tiles(m)] = (g, m, capability)
    with concurrent.futures.ProcessPoolExecutor(
        os.cpu_count(), mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        return dict(pool.map(_compile, jobs.values()))


def ceilings() -> dict[str, float]:
    """What this card does in this run: a large copy (read + written) and a bf16 product of 8192^3 on random data."""
    big = torch.randn(1 << 29, device="cuda", dtype=torch.bfloat16)
    other = torch.empty_like(big)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))

    def best_ms(work: Callable[[], object]) -> float:
        graph = capture(lambda nth: work(), 4)  # type: ignore[arg-type, return-value]
        return statistics.median(race({"it": graph}, 4, 6, 0)["it"]) * 1e-3

    copy, product = best_ms(lambda: other.copy_(big)), best_ms(lambda: a @ b)
    return {"copy_gbs": 4 * big.numel() / copy * 1e-6, "bf16_tflops": 2 * 8192**3 / product * 1e-9}


def write_table(sweeps: list[Path]) -> None:
    """The fastest launch of each kind for every swept size, by capability, into the packaged table."""
    table: dict[str, Any] = {"device": "", "launches": {}}
    if nvfp4_configs.TABLE.exists():
        table = json.loads(nvfp4_configs.TABLE.read_text(encoding="utf-8"))
    for path in sweeps:
        read = json.loads(path.read_text(encoding="utf-8"))
        table["device"] = read["device"]
        shapes = table["launches"].setdefault(read["capability"], {})
        for row in read["rows"]:
            kinds = shapes.setdefault(f"{row['n']},{row['k']}", {})
            for kind in ("triton", "gemv"):
                mine = {
                    name: us for name, us in row["us"].items()
                    if name in row["launches"] and name.startswith("gemv ") == (kind == "gemv")
                }  # fmt: skip
                if not mine:
                    continue
                best = min(mine, key=mine.__getitem__)
                # From 17 tokens on the kernel for few is listed only where it wins.
                if kind == "triton" or row["m"] <= 16 or best == row["best"]:
                    kinds.setdefault(kind, {})[str(row["m"])] = row["launches"][best]
    nvfp4_configs.TABLE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"wrote {nvfp4_configs.TABLE}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", action="store_true", help="time every candidate, not only the chosen launch")
    parser.add_argument("--part", default="1/1", help="I/N: every N-th shape from the I-th on, one process a GPU")
    parser.add_argument("--tokens", type=int, nargs="*")
    parser.add_argument("--shapes", nargs="*", help="N,K ...")
    parser.add_argument("--seconds", type=float, default=100, help="start no measurement after so long")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--write-table", nargs="+", type=Path, metavar="SWEEP")
    args = parser.parse_args()
    if args.write_table:
        write_table(args.write_table)
        return
    begun = time.perf_counter()
    device = detect(0)
    capability = torch.cuda.get_device_capability()
    properties = torch.cuda.get_device_properties(0)
    nth, parts = (int(word) for word in args.part.split("/"))
    shapes = [tuple(int(w) for w in said.split(",")) for said in args.shapes] if args.shapes else list(SHAPES)
    shapes = shapes[nth - 1 :: parts]
    tokens = args.tokens or (SWEPT if args.sweep else TOKENS)

    def tiles_for(m: int, n: int, k: int) -> list[Nvfp4Tile]:
        if args.sweep:
            return list(candidates(m, n, k, capability))
        chosen = nvfp4_configs.tile_at(m, n, k, properties.multi_processor_count, capability)
        return [chosen] if chosen == DECODE else [chosen, DECODE]

    def gemvs_for(m: int, n: int, k: int) -> list[GemvTile]:
        if m > gemv_rules.MOST_TOKENS:
            return []
        if args.sweep:
            return list(gemv_rules.candidates(m, n, k, capability))
        chosen = nvfp4_configs.few_at(m, n, k, properties.multi_processor_count, capability)
        return [] if chosen is None else [chosen]

    wanted = {
        m: ([t for n, k in shapes for t in tiles_for(m, n, k)], [g for n, k in shapes for g in gemvs_for(m, n, k)])
        for m in tokens
    }
    compiled = compile_ahead(wanted, f"{capability[0]}.{capability[1]}")
    print(f"compiled {len(compiled)} kernels in {time.perf_counter() - begun:.0f} s", flush=True)
    result: dict[str, Any] = {
        "device": device.torch_name, "capability": f"{capability[0]}.{capability[1]}",
        "torch": torch.__version__, "triton": triton.__version__,
        "python": platform.python_version(), "sms": properties.multi_processor_count,
        "ceilings": ceilings(), "compiled": compiled, "rows": [],
    }  # fmt: skip
    print({name: round(value, 1) for name, value in result["ceilings"].items()}, flush=True)
    for n, k in shapes:
        weight = Weight(n, k, 3 * properties.L2_cache_size)
        for m in tokens:
            if time.perf_counter() - begun > args.seconds:
                print(f"out of time before N={n} K={k} M={m}", flush=True)
                break
            row = measure(weight, m, tiles_for(m, n, k), gemvs_for(m, n, k), seed=m)
            result["rows"].append(row)
            mine = row["us"][row["best"]]
            print(
                f"N={n:5} K={k:5} M={m:4}  {row['best']:34} {mine:8.2f} us  cuBLAS {row['us']['cublas bf16']:8.2f}  "
                f"x{row['ratio']:.2f}  {row['gbs']:6.0f} GB/s {row['tflops']:6.1f} TFLOP/s  {len(row['failed'])} bad",
                flush=True,
            )  # fmt: skip
            for name, why in list(row["failed"].items())[:2]:
                print(f"    {name}: {why}", flush=True)
        weight_share = weight.packed_bytes / (2 * n * k)
        print(
            f"N={n} K={k}: resident weights {weight_share:.3f} of bf16's; {time.perf_counter() - begun:.0f} s",
            flush=True,
        )
        del weight
        torch.cuda.empty_cache()
        if args.out:
            args.out.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
