"""kernelmux's plain GEMM beside the engine's own kernel at the same tile: does a tile mean the same in both?

For each scheme, M, side and tile both kernels run on the same kind of operands as CUDA graphs, replayed in turn in one
run. A ratio above 1 says that the engine's kernel is faster. Both pipelines are checked against the fp32 reference.

    python benchmarks/bench_plain_against_engine.py --vllm-path UNPACKED/vllm --sglang-path UNPACKED/sglang --out r.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import triton
from bench_fused_moe import capture, race, ratio

from kernelmux.backends.triton.moe_variant import MoeVariant
from kernelmux.contracts.fused_moe_math import routing
from kernelmux.contracts.moe_quant import SCHEMES, MoeQuant
from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.device import detect
from kernelmux.measure.bench import SIDES
from kernelmux.measure.plain_subject import PlainSubject
from kernelmux.tuning_configs.tile import Tile

SHAPE = MoeShape(128, 768, 2048, 8)  # Qwen3-30B-A3B on one GPU: N is a multiple of the scale block
CALLS = 4
TILES = {
    1: [Tile(16, 64, 128, 1, 4, 4), Tile(16, 128, 128, 1, 4, 3)],
    64: [Tile(16, 64, 128, 1, 4, 4), Tile(16, 128, 64, 1, 4, 3), Tile(32, 64, 128, 1, 4, 3)],
    1024: [Tile(64, 128, 64, 16, 4, 3), Tile(128, 128, 64, 16, 8, 3), Tile(64, 128, 128, 8, 4, 3)],
}


def compare(shape: MoeShape, structure: Any, quant: MoeQuant, path: str) -> list[dict[str, Any]]:
    device, place = detect(0), torch.device("cuda", 0)
    variants = {"ours": MoeVariant(structure, quant), "engine": MoeVariant(structure, quant, path)}
    subjects = {name: PlainSubject(shape, variant, device, place) for name, variant in variants.items()}
    rows = []
    for m, tiles in TILES.items():
        routes = [routing(m, shape.E, shape.topk, seed=r, device="cuda") for r in range(CALLS)]
        for subject in subjects.values():
            subject.begin(m, routes)
        tmas = [(tile, False) for tile in tiles] + [(tile, True) for tile in tiles if structure == "sglang"]
        for (tile, tma), side in ((pair, side) for pair in tmas for side in SIDES):
            run = Tile(tile.block_m, tile.block_n, tile.block_k, tile.group_m, tile.warps, tile.stages, tma)
            if tma and (side == "up" or variants["ours"].refusal(shape, side, run, device.capability) is not None):
                continue
            row: dict[str, Any] = {
                "structure": structure,
                "quant": quant.brief(),
                "m": m,
                "side": side,
                "tile": run.short(),
            }
            try:
                graphs = {name: capture(subject.runner(side, run), CALLS) for name, subject in subjects.items()}
            except Exception as error:  # no room in shared memory: the same for both
                row["failed"] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
                rows.append(row)
                continue
            samples = race(graphs, CALLS, seed=m)
            row |= {name: statistics.median(us) for name, us in samples.items()}
            row["ours_over_engine"] = ratio(samples["ours"], samples["engine"])
            if side == "down":
                up = Tile(tile.block_m, tile.block_n, tile.block_k, tile.group_m, tile.warps, tile.stages)
                row["error"] = {name: round(s.error(m, routes[0], up, run), 5) for name, s in subjects.items()}
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-path")
    parser.add_argument("--sglang-path")
    parser.add_argument("--schemes", nargs="*", default=list(SCHEMES))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for structure, path in (("vllm", args.vllm_path), ("sglang", args.sglang_path)):
        for name in args.schemes if path else ():
            found = compare(SHAPE, structure, MoeQuant.of(name), path)
            rows += found
            ratios = [row["ours_over_engine"]["ratio"] for row in found if "failed" not in row]
            errors = [e for row in found for e in row.get("error", {}).values()]
            print(
                f"{structure:6} {name:12} ours/engine median {statistics.median(ratios):.3f}, {min(ratios):.3f}.."
                f"{max(ratios):.3f} over {len(ratios)}; worst row error {max(errors):.2e}", flush=True,
            )  # fmt: skip
            torch.cuda.empty_cache()
    if args.out:
        facts = {
            "benchmark": "kernelmux's plain GEMMs beside the engines' own at the same tile",
            "date": time.strftime("%Y-%m-%d"),
            "command": "python benchmarks/bench_plain_against_engine.py --vllm-path V --sglang-path S --out FILE",
            "device": detect(0).torch_name,
            "triton": triton.__version__,
            "shape": SHAPE.brief(),
            "rows": rows,
        }
        args.out.write_text(json.dumps(facts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
