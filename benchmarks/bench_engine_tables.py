"""A table tuned for an engine beside the one it ships and its default, in the engine's own kernel, in one run.

    python benchmarks/bench_engine_tables.py --format vllm --engine-path VLLM --shape E=128,N=384,K=2048,topk=8 \
        --tuned FOLDER --shipped VLLM/model_executor/layers/fused_moe/configs --out result.json

At each M the tiles of all three run interleaved on both sides; a gain is 1 - median(tuned) / median(other) over
up + down, its 95% interval from resampling rounds in pairs. Look-ups are the engine's: nearest key, exact file name.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import kernelmux as km
from kernelmux.autotune.target import Target
from kernelmux.contracts.moe_quant import MoeQuant
from kernelmux.contracts.moe_shape import USUAL_M, MoeShape
from kernelmux.device import detect
from kernelmux.measure.bench import SIDES
from kernelmux.measure.live import LiveBench
from kernelmux.tuning_configs.engines import sglang, vllm
from kernelmux.tuning_configs.engines.entry import tile_of
from kernelmux.tuning_configs.tile import Tile

SAMPLES = 60
Pair = tuple[Tile, Tile]


def gain(other: list[float], tuned: list[float]) -> dict[str, float]:
    rng, count, found = random.Random(0), min(len(other), len(tuned)), []
    for _ in range(1000):
        rounds = [rng.randrange(count) for _ in range(count)]
        found.append(1 - statistics.median(tuned[i] for i in rounds) / statistics.median(other[i] for i in rounds))
    found.sort()
    here = 1 - statistics.median(tuned) / statistics.median(other)
    return {"gain": round(here, 4), "low": round(found[25], 4), "high": round(found[974], 4)}


def answer(target: Target, shape: MoeShape, device: Any, m: int, folder: Path, triton: str) -> tuple[str, Pair]:
    """What the engine launches at ``m`` with its tables in ``folder``, and in words where that comes from."""
    question = target.question(shape, device)
    if target.format == "vllm":
        found = vllm.lookup(question, m, folder)
        tile = tile_of(found.entry)
        return f"{found.source} {found.key}", (tile, tile)
    both = sglang.lookup(question, m, sglang.folder_of(folder), triton)
    down = both.down.entry if both.down is not None else both.entry
    return f"{both.source} {both.key}", (tile_of(both.entry), tile_of(down))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", choices=["vllm", "sglang"], required=True)
    parser.add_argument("--engine-path", type=Path)
    parser.add_argument("--shape", required=True)
    parser.add_argument("--activation", default="silu")
    parser.add_argument("--quant", default="none")
    parser.add_argument("--tuned", type=Path, required=True)
    parser.add_argument("--shipped", type=Path, required=True)
    parser.add_argument("--shipped-from", default="the engine's table for this GPU", help="what --shipped holds")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    engine_path = str(options.engine_path) if options.engine_path else None
    target = Target(options.format, MoeQuant.of(options.quant), engine_path)
    shape, device = MoeShape.parse(options.shape, options.activation), detect(0)
    bench = LiveBench(shape, device, variant=target.variant)
    seen = bench.fingerprint()
    rows: list[dict[str, Any]] = []
    for m in sorted(USUAL_M, reverse=True):
        contenders: dict[str, Pair] = {}
        words = {}
        for name, folder in (("tuned", options.tuned), ("shipped", options.shipped)):
            words[name], contenders[name] = answer(target, shape, device, m, folder, seen["triton"])
        default = target.default(shape, m, device)
        contenders["default"] = (default["up"], default["down"])
        samples: dict[str, list[float]] = {name: [0.0] * SAMPLES for name in contenders}
        failed = {}
        for place, side in enumerate(SIDES):
            tiles = list(dict.fromkeys(pair[place] for pair in contenders.values()))
            timed = {timing.tile: timing for timing in bench.time(m, side, tiles, SAMPLES)}
            for name, pair in contenders.items():
                found = timed[pair[place]]
                if found.ok and len(found.samples_us) == SAMPLES:
                    samples[name] = [a + b for a, b in zip(samples[name], found.samples_us, strict=True)]
                else:
                    failed[name] = found.reason or "far behind after one sample"
        row = {
            "m": m, "lookup": words, "failed": failed,
            "median_us": {name: round(statistics.median(us), 2) for name, us in samples.items() if name not in failed},
            "gain_over": {
                name: gain(us, samples["tuned"]) for name, us in samples.items()
                if name != "tuned" and name not in failed
            },
            "tiles": {name: [tile.short() for tile in pair] for name, pair in contenders.items()},
            "samples_us": {name: [round(v, 2) for v in us] for name, us in samples.items() if name not in failed},
        }  # fmt: skip
        rows.append(row)
        print(f"M={m}: {row['median_us']} over shipped {row['gain_over'].get('shipped')} {words} {failed}", flush=True)
    checks = bench.check(256, [answer(target, shape, device, 256, options.tuned, seen["triton"])[1]])
    bench.close()
    result = {
        "benchmark": f"tables for {options.format} in its own kernel", "date": time.strftime("%Y-%m-%d"),
        "command": "python benchmarks/bench_engine_tables.py ...", "kernel": target.variant.kernel_name,
        "shipped_from": options.shipped_from,
        "device": device.torch_name, "driver": device.driver, "shape": shape.brief(), "quant": target.quant.brief(),
        "versions": {"kernelmux": km.__version__, "torch": seen["torch"], "triton": seen["triton"]},
        "check_at_256": {"ok": checks[0].ok, "worst_row_error": checks[0].error, "reason": checks[0].reason},
        "worst_against_shipped": min((r["gain_over"]["shipped"]["gain"] for r in rows if "shipped" in r["gain_over"]),
                                     default=None), "rows": rows,
    }  # fmt: skip
    options.out.write_text(json.dumps(result) + "\n")
    print(f"worst against shipped: {result['worst_against_shipped']}, check {result['check_at_256']}")


if __name__ == "__main__":
    main()
