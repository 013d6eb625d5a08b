"""Every small op over M and H: kernelmux's kernels beside torch.compile (per shape), FlashInfer and plain copies.

    python benchmarks/bench_small_ops.py --warm 12                       # fill every compile cache, in 12 processes
    python benchmarks/bench_small_ops.py --out part.json [--part 1/4] [--budget SECONDS] [--resume]
    python benchmarks/bench_small_ops.py --merge part1.json part2.json --out benchmarks/results/small-ops-h200.json

A part is a share of the (op, H) pairs; each holds all contestants of its points. Results are written after every pair.
The first half of each pair's samples is recorded in the journal and select_backend is asked; the second half judges it.
A contestant that takes the GPU with it is noted and left out, in a fresh process. A pair that fails is noted, and the
others are measured; --resume tries it again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

ALL_M = (1, 16, 256, 4096, 16384)
ALL_H = (128, 512, 2048, 2688, 2880, 4096, 5120, 5376, 7168, 8192, 16384)
FEW_H = (2048, 2688, 4096, 8192)
WIDE = ("rms_norm", "silu_and_mul")
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "KERNELMUX_CACHE_DIR")


def pairs(options: argparse.Namespace) -> list[tuple[str, int]]:
    """The (op, H) pairs of this part, largest H first so that parts end together."""
    from kernelmux.measure.small_point import small_ops
    from kernelmux.registry.discovery import registry

    names = options.ops or [op.name for op in small_ops(registry().ops())]
    every = [(name, h) for name in names for h in options.h or (ALL_H if name in WIDE else FEW_H)]
    every.sort(key=lambda pair: (-pair[1], pair[0]))
    index, count = options.part
    return every[index - 1 :: count]


def contestants(op: Any, point: Any, device: Any, options: argparse.Namespace) -> tuple[list[Any], dict[str, str]]:
    from kernelmux.measure import small_contestants as who
    from kernelmux.registry.discovery import registry

    found, refused = who.kernels(op, point, device, registry().kernels(op.name))
    modes = ["default", *(["max-autotune-no-cudagraphs"] if options.max_autotune else [])]
    peers = [who.flashinfer(op), *(who.compiled(op, mode) for mode in modes)]
    return [*found, *(peer for peer in peers if peer is not None), *who.copies()], refused


def measure(options: argparse.Namespace) -> None:
    import torch

    from kernelmux.device import detect
    from kernelmux.errors import DeviceLost
    from kernelmux.measure import small_bench
    from kernelmux.measure.small import SmallStand
    from kernelmux.measure.small_point import Point
    from kernelmux.registry.discovery import registry

    began, device = time.monotonic(), detect(0)
    result = json.loads(options.out.read_text()) if options.resume and options.out.exists() else head(device, options)
    done = {(row["op"], row["h"]) for row in result["rows"]}
    stand = SmallStand(device)
    for name, h in pairs(options):
        if (name, h) in done:
            continue
        if options.budget and time.monotonic() - began > options.budget:
            result["left"] = [list(pair) for pair in pairs(options) if pair not in done]
            break
        op, races, chosen = registry().op(name), [], []
        result["failed"] = [one for one in result.get("failed", []) if (one["op"], one["h"]) != (name, h)]
        try:
            for m in options.m or ALL_M:
                point = Point(name, m, h, options.dtype)
                field, refused = contestants(op, point, device, options)
                lost = {x["contestant"] for x in result["lost"] if x["op"] == name}
                chosen.append(small_bench.selected_by_policy(point, device))
                try:
                    race = stand.race(op, point, [c for c in field if c.name not in lost], options.rounds, refused)
                except DeviceLost as error:
                    who = next(c.name for c in field if str(error).startswith(c.name))
                    result["lost"].append({"op": name, "contestant": who, "said": str(error)})
                    write(options.out, result)
                    print(f"{error} Going on without it in a fresh process.", flush=True)
                    again = [arg for arg in sys.argv if arg != "--resume"] + ["--resume"]
                    if options.budget:
                        left = max(1, int(options.budget - (time.monotonic() - began)))
                        again += ["--budget", str(left)]
                    os.execv(sys.executable, [sys.executable, *again])
                races.append(race)
            later = judged_later(races, device)
            rows = [
                {**race.to_json(), "selected": {"policy": policy, "measured": measured}}
                for race, policy, measured in zip(races, chosen, later, strict=True)
            ]
        except Exception as error:  # a fault of one pair: the others are measured all the same
            said = f"{type(error).__name__}: {error}"[:300]
            result["failed"].append({"op": name, "h": h, "said": said})
            print(f"{name} H={h} was not measured: {said}", flush=True)
            write(options.out, result)
            torch.cuda.empty_cache()
            continue
        for row in rows:
            result["rows"].append(row)
            print(words(row), flush=True)
        done.add((name, h))
        result["seconds"] = round(result["seconds_before"] + time.monotonic() - began, 1)
        write(options.out, result)
        torch.cuda.empty_cache()
    result["seconds_before"] = result["seconds"]
    write(options.out, result)


def judged_later(races: list[Any], device: Any) -> list[dict[str, Any]]:
    """What select_backend takes once the first half of every race's samples is in the journal."""
    from kernelmux.measure import small_bench, small_record

    first = []
    for race in races:
        halves = tuple(
            replace(one, us=median(one.samples_us[: max(1, len(one.samples_us) // 2)])) if one.ok else one
            for one in race.standings
        )
        first.append(replace(race, standings=halves))
    small_record.record(
        small_record.measurements(first, device, small_bench.named_kernels([race.point.op for race in races[:1]]))
    )
    return [small_bench.selected(race.point, device) for race in races]


def words(row: dict[str, Any]) -> str:
    ran = sorted((one for one in row["contestants"] if "us" in one), key=lambda one: one["us"])
    times = ", ".join(f"{one['name'].removeprefix('kernelmux.')} {one['us']:.2f}" for one in ran)
    failed = [f"{one['name']}: {one['reason']}" for one in row["contestants"] if "us" not in one]
    chosen = row["selected"]["policy"]
    said = f"{row['op']} M={row['m']} H={row['h']}: {times} us; policy takes {chosen['kernel']} ({chosen['source']})"
    return said + "".join(f"\n    did not run: {failure[:160]}" for failure in failed)


def head(device: Any, options: argparse.Namespace) -> dict[str, Any]:
    import torch

    import kernelmux as km
    from kernelmux.registry.packages import Packages

    names = ("triton", "cupy-cuda12x", "cupy-cuda13x", "flashinfer-python")
    installed = Packages.installed()
    return {
        "benchmark": "small ops", "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": "python benchmarks/bench_small_ops.py --out FILE"
        + (f" --part {options.part[0]}/{options.part[1]}" if options.part[1] > 1 else "")
        + (" --max-autotune" if options.max_autotune else ""),
        "device": device.torch_name, "capability": str(device.capability), "sm_count": device.sm_count,
        "driver": device.driver, "l2_bytes": device.l2_bytes,
        "versions": {
            "kernelmux": km.__version__, "torch": torch.__version__, "cuda": str(torch.version.cuda),
            "python": platform.python_version(),
            **{name: installed[name] for name in names if name in installed},
        },
        "rounds": options.rounds, "lost": [], "rows": [], "seconds": 0.0, "seconds_before": 0.0,
    }  # fmt: skip


def write(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part")
    scratch.write_text(json.dumps(result) + "\n")
    scratch.replace(path)


# -- compile caches


def warm(options: argparse.Namespace) -> None:
    """Start the workers, each with a share of the pairs, and wait."""
    began = time.monotonic()
    rest, (index, count) = sys.argv[1:], options.part
    for option in ("--warm", "--part"):
        if option in rest:
            at = rest.index(option)
            del rest[at : at + 2]
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, *rest, "--warm-worker", "--part",
             f"{index + i * count}/{count * options.warm}"],
            env={**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1"},
        )
        for i in range(options.warm)
    ]  # fmt: skip
    codes = [worker.wait() for worker in workers]
    print(f"warmed in {time.monotonic() - began:.0f} s; workers that failed: {sum(code != 0 for code in codes)}")


def warm_worker(options: argparse.Namespace) -> None:
    """Call every contestant of this share's points once."""
    import torch

    from kernelmux.device import detect
    from kernelmux.measure.small_point import Point, draw
    from kernelmux.registry.discovery import registry

    device, began = detect(0), time.monotonic()
    options.max_autotune = False  # its choices are made by timing, which many processes on one GPU would spoil
    for name, h in pairs(options):
        op = registry().op(name)
        for m in options.m or ALL_M:
            if options.budget and time.monotonic() - began > options.budget:
                return
            point = Point(name, m, h, options.dtype)
            try:
                sets = draw(op, point, 1, "cuda:0")
                field = contestants(op, point, device, options)[0]
            except Exception as error:  # measuring says it again
                print(f"{point.brief()}: {type(error).__name__}: {error}"[:300], flush=True)
                break
            for contestant in field:
                call_once(point, contestant, sets)
            del sets
            torch.cuda.empty_cache()


def call_once(point: Any, contestant: Any, sets: Any) -> None:
    import torch

    try:
        contestant.build(sets)(0)
        torch.cuda.synchronize()
    except Exception as error:  # measuring says it again, with the point it happened at
        print(f"{point.brief()}: {contestant.name}: {type(error).__name__}: {error}"[:300], flush=True)


# -- parts


def merge(paths: list[Path], out: Path) -> None:
    """One result of several parts; each (op, H) from the first part that has it."""
    parts = [json.loads(path.read_text()) for path in paths]
    whole = parts[0]
    for part in parts[1:]:
        for key in ("device", "driver", "versions", "rounds"):
            if part[key] != whole[key]:
                raise SystemExit(f"the parts differ in {key}: {whole[key]} and {part[key]}.")
        known = {(row["op"], row["h"]) for row in whole["rows"]}
        whole["rows"] += [row for row in part["rows"] if (row["op"], row["h"]) not in known]
        whole["lost"] += part["lost"]
        whole["failed"] = [*whole.get("failed", []), *part.get("failed", [])]
        whole["seconds"] = round(whole["seconds"] + part["seconds"], 1)
    whole["parts"] = len(parts)
    whole["command"] = whole["command"].partition(" --part")[0] + (" --part I/N" if len(parts) > 1 else "")
    for key in ("left", "seconds_before"):
        whole.pop(key, None)
    whole["rows"].sort(key=lambda row: (row["op"], row["h"], row["m"]))
    write(out, whole)
    print(f"{len(whole['rows'])} points of {len(parts)} parts in {out}")


def share(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a share such as 1/4")
    return int(index), int(count)


def sizes(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", type=lambda text: text.split(","), help="only these, separated by commas")
    parser.add_argument("--m", type=sizes, help=f"only these; {ALL_M} if not given")
    parser.add_argument("--h", type=sizes, help="only these")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--part", type=share, default=(1, 1), metavar="I/N")
    parser.add_argument("--budget", type=float, default=0.0, help="begin no new (op, H) after this many seconds")
    parser.add_argument("--max-autotune", action="store_true", help="also torch.compile with max-autotune")
    parser.add_argument("--resume", action="store_true", help="go on with what --out holds")
    parser.add_argument("--out", type=Path, default=Path("small-ops.json"))
    parser.add_argument("--warm", type=int, metavar="PROCESSES", help="fill the compile caches instead of measuring")
    parser.add_argument("--warm-worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--merge", type=Path, nargs="+", help="put parts together instead of measuring")
    options = parser.parse_args()
    if options.merge:
        merge(options.merge, options.out)
        return
    for variable in CACHES:
        os.environ.setdefault(
            variable, str(Path.cwd() / "build" / "small-ops-cache" / variable.partition("_")[0].lower())
        )
    if options.warm_worker:
        warm_worker(options)
    elif options.warm:
        warm(options)
    else:
        measure(options)


if __name__ == "__main__":
    main()
