"""Times every geometry of the jit_cuda activations and fp8 epilogues, with fast math and without, and writes the table.

    python benchmarks/sweep_activation_geometry.py --part 1/2 --out sweep-1.json      on a GPU; parts share nothing
    python benchmarks/sweep_activation_geometry.py --emit sweep-1.json sweep-2.json   writes the table; needs no GPU

Candidates of a point (op, M, H) are contestants of one race: captured into CUDA graphs, each call on tensors of its
own, cold in the L2, replayed in turns. Who is not right is not timed. With --peers torch.compile, FlashInfer and plain
copies run along.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

HIDDEN = (128, 512, 2048, 2688, 2880, 4096, 5120, 5376, 7168, 8192, 16384)
FEWER = (2048, 2688, 4096, 8192)  # of the ops other than silu_and_mul
ROWS = (1, 16, 256, 4096, 16384)
OPS = ("silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul", "relu2", "silu_and_mul_fp8", "rms_norm_fp8")
FEW = 1024.0  # accesses an SM up to which narrower ones are timed, and beyond which blocks that go round are
TWO_SPEEDS = 0.03
BAND_COST = 0.02  # of log time, summed over points: what a further band must gain


def main() -> None:
    options = arguments()
    if options.emit:
        emit([json.loads(path.read_text(encoding="utf-8")) for path in options.emit], options.table)
    else:
        measure(options)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", type=lambda text: tuple(text.split(",")), default=OPS)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--hidden", type=sizes, help="of every op  [default: the grid of the benchmark]")
    parser.add_argument("--rows", type=sizes, default=ROWS)
    parser.add_argument("--part", type=part, default=(1, 1), metavar="I/N")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no-fast", action="store_true", help="leave fast math out")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--seconds", type=float, default=240.0, help="start no point after that time")
    parser.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1))
    parser.add_argument("--out", type=Path, default=Path("activation-geometries.json"))
    parser.add_argument("--emit", type=Path, nargs="+", metavar="JSON")
    parser.add_argument("--table", type=Path, help="with --emit: where to  [default: the packaged table]")
    return parser.parse_args()


def sizes(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def part(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    return int(index), int(count)


# what there is to time


def points_of(options: argparse.Namespace) -> list[tuple[str, int, int]]:
    found = [
        (op, rows, hidden)
        for op in options.ops
        for hidden in options.hidden or (HIDDEN if op == "silu_and_mul" else FEWER)
        for rows in options.rows
    ]
    index, count = options.part
    return found[index - 1 :: count]


def accesses_per_sm(rows: int, hidden: int, dtype: str, capability: Any, sms: int) -> float:
    from kernelmux.backends.jit_cuda.activations import DTYPES
    from kernelmux.backends.jit_cuda.compiler import vector_bytes

    return rows * hidden * DTYPES[dtype][1] / vector_bytes(capability) / sms


def candidates(op: str, rows: int, hidden: int, dtype: str, capability: Any, sms: int) -> list[Any]:
    """Of few accesses no blocks that go round, of many no narrow ones: they cannot win."""
    from kernelmux.backends.jit_cuda import activation_geometry, fp8_epilogues

    if op == "rms_norm_fp8":
        return list(fp8_epilogues.row_geometries(hidden, dtype, capability))
    few = accesses_per_sm(rows, hidden, dtype, capability, sms) <= FEW
    found = activation_geometry.geometries(op)
    return [each for each in found if (not each.blocks and each.stores == "keep" if few else each.share == 1)]


def defines_of(op: str, geometry: Any, hidden: int, dtype: str, capability: Any) -> tuple[str, str, Any]:
    from kernelmux.backends.jit_cuda import activation_geometry, activations, fp8_epilogues
    from kernelmux.backends.jit_cuda.compiler import vector_bytes

    item = activations.DTYPES[dtype][1]
    if op == "rms_norm_fp8":
        elements = fp8_epilogues.elements_of(hidden, item, capability)
        given = fp8_epilogues.row_defines(hidden, dtype, geometry, elements, 32, 32, False, 0.0)
        return fp8_epilogues.SOURCE, fp8_epilogues.ROWS, given
    if op == "silu_and_mul_fp8":
        elements = vector_bytes(capability) // item
        given = fp8_epilogues.block_defines(dtype, geometry, elements, 32, 32)
        return fp8_epilogues.SOURCE, fp8_epilogues.BLOCKS, given
    alignment = activation_geometry.alignment_of(hidden * item)
    access = activation_geometry.access_bytes(capability, item, alignment, geometry.share)
    return activations.SOURCE, activations.KERNEL, variant_of(op).defines(dtype, geometry, access)


def variant_of(op: str) -> Any:
    from kernelmux.backends.jit_cuda.activations import VARIANTS

    return VARIANTS.get(f"{op}_fp32_mul") or VARIANTS[op]


def compile_one(arch: str, source: str, kernel: str, given: Mapping[str, str | int], fast: bool) -> None:
    from kernelmux.backends.jit_cuda import cache

    cache.fetch(source, kernel, given, arch, fast=fast)


def contestant(op: str, geometry: Any, fast: bool) -> Any:
    from kernelmux.backends.jit_cuda import activations, fp8_epilogues
    from kernelmux.measure.small_contestants import OURS, Contestant

    def build(sets: Sequence[Any]) -> Any:
        lists = [(*inputs.tensors, *inputs.outs) for inputs in sets]
        first, numbers = lists[0], sets[0].scalars
        if op == "rms_norm_fp8":
            bound = fp8_epilogues.bound_rows(*first, numbers["eps"], numbers["weight_bias"], geometry, fast=fast)
        elif op == "silu_and_mul_fp8":
            bound = fp8_epilogues.bound_blocks(*first, geometry, fast=fast)
        else:
            bound = activations.bound(variant_of(op), *first, geometry, fast=fast)
        return lambda r: bound(*lists[r])

    return Contestant(geometry.name + (" fast" if fast else ""), "jit_cuda", OURS, build)


# measuring


def measure(options: argparse.Namespace) -> None:
    from kernelmux.backends.jit_cuda import driver
    from kernelmux.livegpu import detect
    from kernelmux.measure import small_contestants
    from kernelmux.measure.small import SmallStand
    from kernelmux.measure.small_point import Point
    from kernelmux.registry.discovery import registry

    begun = time.perf_counter()
    device, capability = detect(0), driver.capability(0)
    fasts = (False,) if options.no_fast or capability.major >= 10 else (False, True)
    points, jobs = points_of(options), {}
    for op, rows, hidden in points:
        for geometry in candidates(op, rows, hidden, options.dtype, capability, device.sm_count):
            source, kernel, given = defines_of(op, geometry, hidden, options.dtype, capability)
            for fast in fasts:
                jobs[source, kernel, given, fast] = None
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        futures = [
            pool.submit(compile_one, capability.arch, source, kernel, dict(given), fast)
            for source, kernel, given, fast in jobs
        ]
        for future in futures:
            future.result()
    compiled = time.perf_counter() - begun
    print(f"{len(jobs)} kernels compiled in {compiled:.1f} s", flush=True)

    stand, done, left = SmallStand(device), [], []
    for op_name, rows, hidden in points:
        if time.perf_counter() - begun > options.seconds:
            left.append((op_name, rows, hidden))
            continue
        op = registry().op(op_name)
        geometries = candidates(op_name, rows, hidden, options.dtype, capability, device.sm_count)
        who = [contestant(op_name, geometry, fast) for fast in fasts for geometry in geometries]
        if options.peers:
            peers = (small_contestants.compiled(op), small_contestants.flashinfer(op), *small_contestants.copies())
            who += [each for each in peers if each]
        race = stand.race(op, Point(op_name, rows, hidden, options.dtype), who, options.rounds)
        done.append(told(race, rule(op_name, rows, hidden, options.dtype, capability, device.sm_count)))
        done[-1]["per_sm"] = accesses_per_sm(rows, hidden, options.dtype, capability, device.sm_count)
        print(line(done[-1]), flush=True)
    result = {
        "device": device.torch_name, "capability": str(capability), "dtype": options.dtype, "sm_count": device.sm_count,
        "compile_seconds": round(compiled, 1), "seconds": round(time.perf_counter() - begun, 1),
        "points": done, "left_out": left,
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1), encoding="utf-8")
    failed = sum(len(point["failed"]) for point in done)
    print(f"{len(done)} points in {result['seconds']} s, {len(left)} left out, {failed} failed", flush=True)


def rule(op: str, rows: int, hidden: int, dtype: str, capability: Any, sms: int) -> str:
    """The geometry that a call takes as things are."""
    from kernelmux.backends.jit_cuda import activation_geometry, fp8_epilogues

    if op == "rms_norm_fp8":
        return fp8_epilogues.row_geometry(hidden, dtype, capability).name
    accesses = math.ceil(accesses_per_sm(rows, hidden, dtype, capability, sms) * sms)
    return activation_geometry.choose(op, dtype, accesses, capability, sms).name


def told(race: Any, rule_name: str) -> dict[str, Any]:
    times = {each.name: round(each.us, 4) for each in race.standings if each.ok}
    samples = {each.name: [round(us, 3) for us in each.samples_us] for each in race.standings if each.ok}
    failed = {each.name: f"{each.status}: {each.reason}" for each in race.standings if not each.ok}
    point = race.point
    return {
        "op": point.op, "M": point.m, "H": point.h, "bytes": race.read_bytes + race.written_bytes, "rule": rule_name,
        "us": times, "samples_us": samples, "failed": failed,
    }  # fmt: skip


def line(point: Mapping[str, Any]) -> str:
    times = point["us"]
    exact = sorted((name for name in times if plain(name)), key=times.__getitem__)
    words = [f"{name} {times[name]:.2f}" for name in exact[:3]]
    words.append(f"rule {point['rule']} {times.get(point['rule'], math.nan):.2f}")
    fast = min((us for name, us in times.items() if name.endswith(" fast")), default=None)
    if exact and fast:
        words.append(f"fast math {100 * (times[exact[0]] / fast - 1):+.1f}%")
    words += [f"{name.split(',')[0]} {us:.2f}" for name, us in times.items() if "," in name]
    if exact:
        words.append(f"{point['bytes'] / times[exact[0]] / 1e3:.0f} GB/s")
    words += [f"FAILED {name}: {why}" for name, why in list(point["failed"].items())[:2]]
    return f"{point['op']} M={point['M']} H={point['H']}: " + "; ".join(words)


def plain(name: str) -> bool:
    return not name.endswith(" fast") and "," not in name


# the table


def emit(results: Sequence[Mapping[str, Any]], table: Path | None) -> None:
    from kernelmux.backends.jit_cuda.activation_geometry import ITEM_BYTES, MEASURED

    path = table or MEASURED
    whole = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    bands, lengths = whole.setdefault("geometries", {}), whole.setdefault("rows", {})
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for result in results:
        for point in result["points"]:
            key = (result["capability"], str(ITEM_BYTES[result["dtype"]]), point["op"])
            groups.setdefault(key, []).append(point)
    for (capability, item, op), points in sorted(groups.items()):
        if op == "rms_norm_fp8":
            kept = lengths.setdefault(capability, {}).setdefault(item, {})
            for hidden in sorted({point["H"] for point in points}):
                kept[str(hidden)] = cheapest([point for point in points if point["H"] == hidden])[1]
        else:
            bands.setdefault(capability, {}).setdefault(op, {})[item] = banded(points)
            print(op, bands[capability][op][item])
    whole["device"] = ", ".join(sorted({result["device"] for result in results}))
    path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    print(f"{len(groups)} ops written to {path}")


def cheapest(points: Iterable[Mapping[str, Any]]) -> tuple[float, str]:
    """(the sum over the points of log(time / best), the geometry with the least of it)."""
    costs: dict[str, float] = {}
    names: set[str] | None = None
    for point in points:
        times = steady(point["us"])
        best = min(times.values())
        for name, us in times.items():
            costs[name] = costs.get(name, 0.0) + math.log(us / best)
        names = set(times) if names is None else names & set(times)
    if not names:
        return math.inf, ""
    name = min(sorted(names), key=costs.__getitem__)
    return costs[name], name


def steady(times: Mapping[str, float]) -> dict[str, float]:
    """Of each geometry what it can be relied on for. Where others have left the L2 full of lines to write back,
    streaming stores are up to a tenth slower than otherwise: the slower of two runs of them, without and with fast
    math, where these are further apart than fast math makes them."""
    found = {}
    for name, us in times.items():
        if plain(name):
            other = times.get(f"{name} fast", us)
            found[name] = max(us, other) if "stream" in name and abs(us / other - 1) > TWO_SPEEDS else us
    return found


def banded(points: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """[most accesses an SM, geometry], ascending: the bands that lose least to the best geometry of every point."""
    steps = sorted({point["per_sm"] for point in points})
    at = [[point for point in points if point["per_sm"] == step] for step in steps]
    best: list[tuple[float, int, str]] = [(0.0, 0, "")]  # of the first n steps: cost, where the last band starts, which
    for end in range(1, len(steps) + 1):
        options = []
        for start in range(end):
            cost, name = cheapest(point for group in at[start:end] for point in group)
            options.append((best[start][0] + cost + BAND_COST, start, name))
        best.append(min(options))
    found, end = [], len(steps)
    while end:
        _, start, name = best[end]
        found.append((end, name))
        end = start
    found.reverse()
    bounds = [round(math.sqrt(steps[end - 1] * steps[end]), 2) for end, _ in found[:-1]]
    return [[bound, name] for bound, (_, name) in zip([*bounds, None], found, strict=True)]


assert all(low < high for low, high in pairwise(ROWS))

if __name__ == "__main__":
    main()
