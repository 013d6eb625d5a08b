"""Times the candidate tiles of Triton's small ops and writes the fastest into the package.

    python benchmarks/sweep_triton_small.py --out part0.json --part 0/8        (one GPU each, about a minute)
    python benchmarks/sweep_triton_small.py --write-table part*.json           (no GPU)

Launches run in CUDA graphs, over inputs that are rotated so that they come from memory and not from the L2 cache;
candidates take turns, and the median of the rounds counts. Candidates are compiled by many processes beforehand.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from kernelmux.backends.triton import small_rules
from kernelmux.backends.triton.small_rules import Tile
from kernelmux.device import Capability

WIDE = (128, 512, 2048, 2688, 2880, 4096, 5120, 5376, 7168, 8192, 16384)
FEW = (2048, 2688, 4096, 8192)
OPS = {
    "rms_norm": ("norms:rms_norm_cast_before_mul", WIDE),
    "silu_and_mul": ("activations:silu_and_mul_fp32_mul", WIDE),
    "fused_add_rms_norm": ("norms:fused_add_rms_norm_cast_before_mul_residual_rounded", FEW),
    "gated_rms_norm": ("norms:gated_rms_norm_cast_before_mul", FEW),
    "gelu_and_mul": ("activations:gelu_and_mul_fp32_mul", FEW),
    "gelu_tanh_and_mul": ("activations:gelu_tanh_and_mul_fp32_mul", FEW),
    "relu2": ("activations:relu2", FEW),
    "rms_norm_fp8": ("fp8_epilogues:rms_norm_fp8", FEW),
    "silu_and_mul_fp8": ("fp8_epilogues:silu_and_mul_fp8", FEW),
}
MS = (1, 16, 256, 4096, 16384)
COLD_BYTES = 200 << 20
WORTH = 1.01  # what a tile must gain to be taken instead of the simpler one


def variant_of(op: str) -> Any:
    from kernelmux.registry.lazy import load

    return load(f"kernelmux.backends.triton.{OPS[op][0]}")


def sums_rows(op: str) -> bool:
    return "norm" in op


def size_of(op: str, m: int, hidden: int) -> tuple[int, int]:
    """(rows, width) as the op's tiles count them."""
    return (m * hidden // 128, 128) if op == "silu_and_mul_fp8" else (m, hidden)


def candidates(op: str, m: int, hidden: int, itemsize: int, sms: int) -> list[Tile]:
    rows, width = size_of(op, m, hidden)
    if not sums_rows(op):
        return list(small_rules.column_candidates(rows, width, itemsize, sms))
    found = []
    for tile in small_rules.row_geometries(op, width, itemsize):
        tiles = -(-rows // tile.rows)
        found += [Tile(*tile[:3], *dealt) for dealt in small_rules.dealings(tile, tiles, sms)]
    return found


def compile_one(task: tuple[str, int, int, str, Tile, str, int]) -> str | None:
    """In a child: fill Triton's cache. What went wrong, or None."""
    from kernelmux.backends.triton.small_compile import compile_launch, launch_of
    from kernelmux.backends.triton.small_launch import Gpu

    op, m, hidden, dtype, tile, capability, sms = task
    try:
        launch, dtypes = launch_of(variant_of(op).plan, op, Gpu(capability, sms), m, hidden, dtype, tile=tile)
        compile_launch(launch, dtypes, Capability.parse(capability))
    except Exception as error:
        return f"{op} H={hidden} {tile}: {str(error).splitlines()[:1]}"
    return None


class Point:
    """One op at one size: rotated tensors, and a CUDA graph for each tile."""

    def __init__(self, op: str, m: int, hidden: int, dtype: str):
        import torch

        from kernelmux.backends.triton.small_compile import stand_ins

        self.op, self.m, self.hidden, self.dtype = op, m, hidden, dtype
        about = stand_ins(op, m, hidden, dtype)
        outs = 2 if op in ("fused_add_rms_norm", "rms_norm_fp8", "silu_and_mul_fp8") else 1
        rows = [entry[0] for entry in about if entry is not None and entry[0].stride > 0]  # all but the weight
        self.bytes = sum(r.rows * r.width * r.itemsize for r in rows)
        self.copies = max(1, min(64, COLD_BYTES // max(self.bytes, 1)))
        self.sets = []
        for nth in range(self.copies):
            generator = torch.Generator("cuda").manual_seed(nth)
            tensors: list[Any] = []
            for place, entry in enumerate(about):
                if entry is None:
                    tensors.append(None)
                    continue
                r, name = entry
                size = (r.width,) if r.stride == 0 else (r.rows, r.width)
                kind = torch.float8_e4m3fn if name == "uint8" else getattr(torch, name)
                if place >= len(about) - outs:
                    tensors.append(torch.empty(size, dtype=kind, device="cuda"))
                else:
                    tensors.append(torch.randn(size, device="cuda", generator=generator, dtype=kind))
            self.sets.append(tensors)

    def graph(self, tile: Tile) -> tuple[Any, int]:
        """A captured graph of ``count`` launches, and count."""
        import torch

        from kernelmux.backends.triton import small_launch

        call = small_launch.bind(variant_of(self.op).plan, {}, self.sets[0], tile)
        call(*self.sets[0])
        torch.cuda.synchronize()
        count = max(self.copies, 16 if self.bytes < 64 << 20 else 4)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for nth in range(count):
                call(*self.sets[nth % self.copies])
        return graph, count

    def right(self, tile: Tile) -> bool:
        """Whether the first set's result agrees with that of the rule's own tile."""
        import torch

        outs = self.sets[0][-1 if self.op not in ("rms_norm_fp8", "silu_and_mul_fp8") else -2]
        if getattr(self, "want", None) is None:
            self.want = outs.float().clone()
            return True
        got = outs.float()
        return bool(torch.isfinite(got).all()) and float((got != self.want).float().mean()) < 0.01


def time_point(point: Point, tiles: list[Tile], rounds: int) -> list[dict[str, Any]]:
    import torch

    graphs, rows = [], []
    for tile in tiles:
        try:
            graph, count = point.graph(tile)
        except Exception as error:
            rows.append(_row(point, tile, None, str(error).splitlines()[0]))
            continue
        if not point.right(tile):
            rows.append(_row(point, tile, None, "its result differs from that of the first tile"))
            continue
        graphs.append((tile, graph, count, []))
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for turn in range(rounds + 1):
        for _, graph, count, times in graphs:
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            if turn:  # the first warms up
                times.append(begin.elapsed_time(end) * 1000 / count)
    rows += [_row(point, tile, statistics.median(times)) for tile, _, _, times in graphs]
    return rows


def _row(point: Point, tile: Tile, us: float | None, error: str | None = None) -> dict[str, Any]:
    row = {"op": point.op, "M": point.m, "H": point.hidden, "dtype": point.dtype, "tile": list(tile), "us": us}
    if us is not None:
        row["gbs"] = round(point.bytes / us / 1000, 1)
        row["us"] = round(us, 3)
    return row if error is None else {**row, "error": error}


def sweep(args: argparse.Namespace) -> None:
    import torch
    import triton

    begun = time.monotonic()
    properties = torch.cuda.get_device_properties(0)
    capability, sms = f"{properties.major}.{properties.minor}", properties.multi_processor_count
    part, parts = (int(n) for n in args.part.split("/"))
    itemsize = torch.empty(0, dtype=getattr(torch, args.dtype)).element_size()
    wanted = [op for op in OPS if not args.ops or op in args.ops]
    sizes = [(op, hidden) for op in wanted for hidden in OPS[op][1] if not args.hidden or hidden in args.hidden]
    sizes = sizes[part::parts]
    tasks = {}
    for op, hidden in sizes:
        for m in args.rows or MS:
            for tile in candidates(op, m, hidden, itemsize, sms):
                # Only whether a tile is persistent changes the code, not how often.
                key = (op, hidden, *tile[:4], tile.per_sm > 0)
                tasks.setdefault(key, (op, m, hidden, args.dtype, tile, capability, sms))
    workers = args.workers or max(1, (os.cpu_count() or 1) // max(1, args.sharing))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        said = [problem for problem in pool.map(compile_one, tasks.values(), chunksize=4) if problem]
    compiled = time.monotonic() - begun
    print(f"{len(tasks)} kernels compiled in {compiled:.1f} s by {workers} processes, {len(said)} failed", flush=True)
    rows: list[dict[str, Any]] = []
    left = []
    for op, hidden in sizes:
        if time.monotonic() - begun > args.seconds:
            left.append([op, hidden])
            continue
        for m in args.rows or MS:
            point = Point(op, m, hidden, args.dtype)
            rows += time_point(point, candidates(op, m, hidden, itemsize, sms), args.rounds)
            del point
            best = min(
                (r for r in rows if (r["op"], r["M"], r["H"]) == (op, m, hidden) and r["us"]), key=lambda r: r["us"]
            )
            print(f"{op} M={m} H={hidden}: {best['us']} us, {best['gbs']} GB/s, {tuple(best['tile'])}", flush=True)
    about = {
        "device": properties.name, "capability": capability, "sms": sms, "dtype": args.dtype, "itemsize": itemsize,
        "torch": torch.__version__, "triton": triton.__version__, "part": args.part, "rounds": args.rounds,
        "seconds": round(time.monotonic() - begun, 1), "not_compiled": said, "left": left,
    }  # fmt: skip
    Path(args.out).write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    print(f"{len(rows)} rows, {len(left)} sizes left, {time.monotonic() - begun:.1f} s -> {args.out}")


# the table


def write_table(paths: list[str]) -> None:
    """Fold the results into the package's table; what they do not hold stays as it was."""
    whole = json.loads(small_rules.TABLE.read_text())
    tiles = whole["tiles"]
    by: dict[tuple[str, str, str, int], dict[int, dict[Tile, float]]] = {}
    for path in paths:
        result = json.loads(Path(path).read_text())
        about = result["about"]
        for row in result["rows"]:
            if row["us"]:
                m, width = size_of(row["op"], row["M"], row["H"])
                key = (about["capability"], row["op"], str(about["itemsize"]), width)
                by.setdefault(key, {}).setdefault(m, {})[Tile(*row["tile"])] = row["us"]
    for (capability, op, itemsize, width), points in sorted(by.items()):
        entry = row_entry(points) if sums_rows(op) else column_entry(points)
        tiles.setdefault(capability, {}).setdefault(op, {}).setdefault(itemsize, {})[str(width)] = entry
    lines = json.dumps(whole, separators=(", ", ": "), indent=None)
    small_rules.TABLE.write_text(_broken(lines) + "\n")
    print(f"{len(by)} sizes written to {small_rules.TABLE}")


def row_entry(points: dict[int, dict[Tile, float]]) -> dict[str, Any]:
    """The geometry that loses least anywhere, and the best dealing of it for each row count."""
    shared = set.intersection(*({tile[:3] for tile in times} for times in points.values()))

    def loss(geometry: tuple[int, ...]) -> tuple[float, float]:
        ratios = [
            min(us for tile, us in times.items() if tile[:3] == geometry) / min(times.values())
            for times in points.values()
        ]
        return max(ratios), statistics.geometric_mean(ratios)

    geometry = min(shared, key=loss)
    dealt: list[list[int]] = []
    for m, times in sorted(points.items()):
        mine = {tile[3:]: us for tile, us in times.items() if tile[:3] == geometry}
        best = min(mine, key=lambda deal: mine[deal] * (1.0 if deal == (1, 0) else WORTH))
        if not dealt or dealt[-1][1:] != list(best):
            dealt.append([m if dealt else 1, *best])
    return {"tile": list(geometry), "dealt": dealt}


def column_entry(points: dict[int, dict[Tile, float]]) -> dict[str, Any]:
    """The best tile for each row count, kept on where a change gains nothing."""
    chosen: list[list[int]] = []
    for m, times in sorted(points.items()):
        best = min(times, key=lambda tile: times[tile] * (1.0 if tile.per_sm == 0 else WORTH))
        kept = Tile(*chosen[-1][1:]) if chosen else None
        if kept is not None and times.get(kept, float("inf")) <= times[best] * WORTH:
            continue
        chosen.append([m if chosen else 1, *best])
    return {"tiles": chosen}


def _broken(text: str) -> str:
    """One line a size."""
    return text.replace('}, "', '},\n"').replace(': {"', ':\n{"')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="triton-small.json")
    parser.add_argument("--part", default="0/1", help="I/N: every N-th size, from the I-th")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--ops", nargs="*")
    parser.add_argument("--hidden", nargs="*", type=int)
    parser.add_argument("--rows", nargs="*", type=int, help="row counts M")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=60.0, help="no further size is begun after these")
    parser.add_argument("--workers", type=int, default=0, help="processes that compile; 0: the CPUs over --sharing")
    parser.add_argument("--sharing", type=int, default=1, help="how many sweeps share these CPUs")
    parser.add_argument(
        "--write-table", nargs="+", metavar="RESULT", help="no GPU: fold these results into the package"
    )
    args = parser.parse_args()
    if args.write_table:
        write_table(args.write_table)
    else:
        sweep(args)


if __name__ == "__main__":
    main()
