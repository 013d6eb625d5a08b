"""Is the chosen pair as good as the best of an exhaustive search? Both are timed again, interleaved, in one run.

    python benchmarks/audit_choice.py --shape E=128,N=384,K=2048,topk=8 --chosen FOLDER --best FOLDER --out result.json

``FOLDER`` holds tables as ``kernelmux tune --out FOLDER`` writes them. The loss at an M is median(chosen) /
median(best) - 1 over up + down; its 95% interval comes from resampling rounds in pairs.
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
from kernelmux.contracts.moe_shape import USUAL_M, MoeShape
from kernelmux.device import detect
from kernelmux.measure.bench import SIDES
from kernelmux.measure.live import LiveBench
from kernelmux.registry import Packages
from kernelmux.tuning_configs import lookup

SAMPLES = 120


def loss(chosen: list[float], best: list[float]) -> dict[str, float]:
    rng, count, found = random.Random(0), min(len(chosen), len(best)), []
    for _ in range(1000):
        rounds = [rng.randrange(count) for _ in range(count)]
        found.append(statistics.median(chosen[i] for i in rounds) / statistics.median(best[i] for i in rounds) - 1)
    found.sort()
    here = statistics.median(chosen) / statistics.median(best) - 1
    return {"loss": round(here, 4), "low": round(found[25], 4), "high": round(found[974], 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", required=True)
    parser.add_argument("--activation", default="silu")
    parser.add_argument("--chosen", type=Path, required=True)
    parser.add_argument("--best", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    shape, device = MoeShape.parse(options.shape, options.activation), detect(0)
    triton = Packages.installed()["triton"]
    tables = {
        name: lookup.find(device, triton, shape, folders=[folder])
        for name, folder in (("chosen", options.chosen), ("best", options.best))
    }
    bench = LiveBench(shape, device)
    rows: list[dict[str, Any]] = []
    for m in sorted(USUAL_M, reverse=True):
        configs = {name: table.at(m) for name, table in tables.items()}
        samples: dict[str, dict[str, tuple[float, ...]]] = {}
        for side in SIDES:
            tiles = list(dict.fromkeys(getattr(config, side) for config in configs.values()))
            timed = {timing.tile: timing.samples_us for timing in bench.time(m, side, tiles, SAMPLES)}
            samples[side] = {name: timed[getattr(config, side)] for name, config in configs.items()}
        sums = {
            name: [up + down for up, down in zip(samples["up"][name], samples["down"][name], strict=True)]
            for name in configs
        }
        row = {
            "m": m, **loss(sums["chosen"], sums["best"]),
            "median_us": {name: round(statistics.median(us), 2) for name, us in sums.items()},
            "config": {name: config.to_json() for name, config in configs.items()},
            "samples_us": {
                side: {name: [round(v, 2) for v in us] for name, us in by.items()} for side, by in samples.items()
            },
        }  # fmt: skip
        rows.append(row)
        print(
            f"M={m}: chosen {row['median_us']} loss {row['loss']:+.2%} [{row['low']:+.2%}, {row['high']:+.2%}]",
            flush=True,
        )
    bench.close()
    seen = bench.fingerprint()
    result = {
        "benchmark": "chosen tiles against the best of an exhaustive search", "date": time.strftime("%Y-%m-%d"),
        "command": "python benchmarks/audit_choice.py --shape SHAPE --chosen FOLDER --best FOLDER --out FILE",
        "device": device.torch_name, "driver": device.driver, "shape": shape.brief(),
        "versions": {"kernelmux": km.__version__, "torch": seen["torch"], "triton": seen["triton"]},
        "worst_loss": max(row["loss"] for row in rows), "rows": rows,
    }  # fmt: skip
    options.out.write_text(json.dumps(result) + "\n")
    print(f"worst loss {result['worst_loss']:+.2%}")


if __name__ == "__main__":
    main()
