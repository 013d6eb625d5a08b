"""Score predicted tiles on a journal of real measurements: geometric mean over M of best/pick.

    python scripts/score_prediction.py journal.sqlite [--run KEY] [--fit] [--json]

``best`` is the fastest measured up + down + sort of one BLOCK_SIZE_M. A pick that was never measured is scored by
the nearest measured tile of its BLOCK_SIZE_M (fewest knobs apart, then the slowest of those) and counted.
``--fit`` searches the predictor's weights on this journal; say on which journals a change of them was fitted.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import defaultdict
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kernelmux.autotune import predict, priors
from kernelmux.autotune.compile import Facts, Task
from kernelmux.autotune.rank import rank
from kernelmux.autotune.space import at_m, build_space
from kernelmux.backends.triton import moe_rules
from kernelmux.measure.bench import SIDES
from kernelmux.measure.replay import ReplayBench
from kernelmux.store.journal import Journal
from kernelmux.tuning_configs.heuristic import default_config
from kernelmux.tuning_configs.table import MoeConfig
from kernelmux.tuning_configs.tile import Tile

RUNG_ORDER = {"final": 5, "2": 4, "refine-1": 3, "refine-0": 2, "1": 1, "0": 0}


class Truth:
    """Medians of the last rung each tile ran in."""

    def __init__(self, path: Path, run: str | None):
        self.bench = ReplayBench(path, run=run)
        self.shape, self.device = self.bench.shape, self.bench.device
        latest: dict[tuple[int, str, Tile], tuple[int, float]] = {}
        self.sort: defaultdict[int, dict[int, float]] = defaultdict(dict)
        with Journal(path, read_only=True) as journal:
            for row in journal.rows(self.bench.run.key):
                if row.side == "align" and row.samples_us:
                    self.sort[row.m][json.loads(row.tile)["BLOCK_SIZE_M"]] = row.samples_us[0]
                if row.side not in SIDES or row.status != "ok" or len(row.samples_us) < 2:
                    continue
                key, place = (row.m, row.side, Tile.from_json(json.loads(row.tile))), RUNG_ORDER.get(row.rung, 0)
                if key not in latest or latest[key][0] <= place:
                    latest[key] = (place, median(row.samples_us))
        self.us: defaultdict[tuple[int, str], dict[Tile, float]] = defaultdict(dict)
        for (m, side, tile), (_, us) in latest.items():
            self.us[m, side][tile] = us
        self.ms = sorted({m for m, _ in self.us})
        self.facts = {
            Task(f.side, Tile.from_json(json.loads(f.tile)), f.variant.endswith(" direct")):  # type: ignore[arg-type]
            Facts(f.status, f.reason, f.shared_bytes, f.registers, f.stack_bytes, f.sha256, f.seconds)
            for f in self.bench.compiled if f.variant.startswith(self.shape.brief())
        }  # fmt: skip
        self.substituted = 0

    def best(self, m: int) -> float:
        least: dict[tuple[str, int], float] = {}
        for side in SIDES:
            for tile, us in self.us[m, side].items():
                least[side, tile.block_m] = min(us, least.get((side, tile.block_m), math.inf))
        sums = [
            us + least["down", bm] + self.sort[m].get(bm, 0.0)
            for (side, bm), us in least.items() if side == "up" and ("down", bm) in least
        ]  # fmt: skip
        return min(sums)

    def of(self, m: int, config: MoeConfig) -> float | None:
        total = self.sort[m].get(config.block_m, 0.0)
        for side in SIDES:
            us = self._tile(m, side, getattr(config, side))
            if us is None:
                return None
            total += us
        return total

    def _tile(self, m: int, side: str, tile: Tile) -> float | None:
        known = self.us[m, side]
        if moe_rules.direct(self.shape, m):
            tile = replace(tile, block_m=moe_rules.DIRECT_BLOCK_M)
        if tile in known:
            return known[tile]
        same = [t for t in known if t.block_m == tile.block_m]
        if not same:
            return None
        self.substituted += 1
        near = min(priors.knobs_apart(tile, t) + (tile.use_tma != t.use_tma) for t in same)
        return max(
            us for t, us in known.items()
            if t.block_m == tile.block_m and priors.knobs_apart(tile, t) + (tile.use_tma != t.use_tma) == near
        )  # fmt: skip


def picks(truth: Truth, weights: predict.Weights, facts: dict[Task, Facts]) -> dict[int, MoeConfig]:
    tiles = {side: build_space(truth.shape, truth.device, side).tiles for side in SIDES}
    return predict.choose(truth.shape, truth.device, tiles, truth.ms, facts, weights)


def analytic(truth: Truth, m: int) -> MoeConfig:
    """The BLOCK_SIZE_M and tiles with the least estimate."""
    least: dict[tuple[str, int], tuple[float, Tile]] = {}
    for side in SIDES:
        tiles = at_m(
            build_space(truth.shape, truth.device, side).tiles, truth.shape, m, direct=moe_rules.direct(truth.shape, m)
        )
        for e in rank(tiles, truth.shape, truth.device, side, m):
            least.setdefault((side, e.tile.block_m), (e.us, e.tile))
    both = [bm for side, bm in least if side == "up" and ("down", bm) in least]
    best = min(both, key=lambda bm: least["up", bm][0] + least["down", bm][0])
    return MoeConfig(least["up", best][1], least["down", best][1])


def geomean(truth: Truth, chosen: dict[int, MoeConfig]) -> tuple[float, float, dict[int, float]]:
    """(geometric mean, least, by M) of best/pick over the M values whose pick can be scored."""
    shares = {m: truth.best(m) / us for m, c in chosen.items() if (us := truth.of(m, c)) is not None}
    mean = math.exp(sum(map(math.log, shares.values())) / len(shares)) if shares else 0.0
    return mean, min(shares.values(), default=0.0), shares


def fit(truths: list[Truth]) -> predict.Weights:
    """The weights with the best geometric mean over all journals, by a coarse grid."""
    best, found = -1.0, predict.WEIGHTS
    grid = ((0.015, 0.03, 0.05), (0.0, 0.03, 0.06), (0.05, 0.15, 0.3), (0.3, 1.0), (-0.1, -0.06, -0.03))
    for vote, block_m, believed, default, tma in product(*grid):
        weights = predict.Weights(vote=vote, block_m=block_m, estimate=believed, default_votes=default, tma_90=tma)
        value = sum(math.log(geomean(t, picks(t, weights, t.facts))[0]) for t in truths) / len(truths)
        if value > best or best == -1.0:
            best, found = value, weights
            print(f"{math.exp(value):.4f}  {weights}", file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("journals", nargs="+", type=Path)
    parser.add_argument("--run", help="key of the run; the newest if not given")
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    truths = [Truth(path, options.run) for path in options.journals]
    if options.fit:
        print(fit(truths))
        return
    for path, truth in zip(options.journals, truths, strict=True):
        default = {m: default_config(truth.shape, m, truth.device) for m in truth.ms}
        chosen = {
            "predictor, formulas only": picks(truth, predict.WEIGHTS, {}),
            "predictor, compiled facts": picks(truth, predict.WEIGHTS, truth.facts),
            "default heuristic": default,
            "analytic order": {m: analytic(truth, m) for m in truth.ms},
        }
        report = {}
        for name, configs in chosen.items():
            truth.substituted = 0
            mean, least, by_m = geomean(truth, configs)
            report[name] = {
                "geomean": round(mean, 4), "worst": round(least, 4), "scored": len(by_m), "of": len(configs),
                "substituted": truth.substituted, "by_m": {m: round(v, 3) for m, v in by_m.items()},
            }  # fmt: skip
        if options.json:
            print(
                json.dumps({"journal": str(path), "shape": truth.shape.brief(), "device": truth.device.name, **report})
            )
            continue
        print(f"{path}: {truth.shape.brief()} on {truth.device.name}, {len(truth.ms)} values of M")
        for name, r in report.items():
            print(
                f"  {name:26} best/pick {r['geomean']:.3f} (worst {r['worst']:.3f}; {r['scored']} of {r['of']} M "
                f"scored, {r['substituted']} tiles by their nearest neighbour)"
            )


if __name__ == "__main__":
    main()
