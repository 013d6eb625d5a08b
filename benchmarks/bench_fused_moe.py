"""The whole fused MoE pipeline (sort, both GEMMs, activation, reduction): kernelmux beside vLLM's Triton path.

One process, one run: CUDA graphs of all contenders are replayed in turn, in an order drawn anew each round, over
several routings. A ratio above 1 says that kernelmux is faster; its interval comes from resampling rounds (paired).

    python benchmarks/bench_fused_moe.py --vllm-path UNPACKED/vllm --out result.json [--predicted FOLDER]
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
import vllm_peer

import kernelmux as km
from kernelmux.backends.triton import fused_moe
from kernelmux.contracts.fused_moe import OP, experts_hit
from kernelmux.contracts.fused_moe_math import reference, routing
from kernelmux.contracts.moe_shape import USUAL_M, MoeShape
from kernelmux.device import detect
from kernelmux.tuning_configs import lookup
from kernelmux.tuning_configs.heuristic import default_config
from kernelmux.tuning_configs.table import MoeConfig

SHAPES = {
    "Qwen3-30B-A3B TP2": MoeShape(128, 384, 2048, 8, "silu"),
    "Nemotron 3 Nano": MoeShape(128, 1856, 2688, 6, "relu2"),
    "Mixtral-8x7B TP2": MoeShape(8, 7168, 4096, 2, "silu"),
}
ROUNDS = 60
Call = Callable[[int], torch.Tensor]


def ceilings() -> dict[str, float]:
    """What this card does at best: bf16 matrix product of 8192^3 on random data, and a large copy (read + written)."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    big = torch.randn(1 << 30, device="cuda", dtype=torch.bfloat16)
    other = torch.empty_like(big)

    def best_ms(work: Callable[[], object], times: int) -> float:
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(times + 1)]
        marks[0].record()
        for mark in marks[1:]:
            work()
            mark.record()
        torch.cuda.synchronize()
        return statistics.median(x.elapsed_time(y) for x, y in itertools.pairwise(marks[3:]))

    matmul, copy = best_ms(lambda: a @ b, 14), best_ms(lambda: other.copy_(big), 14)
    return {"bf16_tflops": 2 * 8192**3 / matmul * 1e-9, "copy_gbs": 2 * big.numel() * 2 / copy * 1e-6}


def floor_us(shape: MoeShape, m: int, peak: dict[str, float]) -> float:
    """The roofline: operations at the matmul rate or bytes at the copy rate, whichever takes longer."""
    pairs, parts = m * shape.topk, (shape.up_n + shape.N) * shape.K
    flops_us = 2 * pairs * parts / peak["bf16_tflops"] * 1e-6
    moved = 2 * (experts_hit(shape.E, pairs) * parts + 2 * m * shape.K)
    return max(flops_us, moved / peak["copy_gbs"] * 1e-3)


def capture(call: Call, calls: int) -> torch.cuda.CUDAGraph:
    for r in range(calls):
        call(r)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for r in range(calls):
            call(r)
    graph.replay()
    return graph


def race(graphs: dict[str, torch.cuda.CUDAGraph], calls: int, seed: int) -> dict[str, list[float]]:
    """Microseconds of one call, a sample a round for each contender."""
    rng, names, marks = random.Random(seed), list(graphs), []
    torch.cuda._sleep(int(2e6))  # the launches below get ahead of the GPU
    for _ in range(ROUNDS):
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
        samples[name].append(round(start.elapsed_time(end) * 1e3 / calls, 3))
    return samples


def ratio(over: list[float], under: list[float]) -> dict[str, float]:
    """Median(over) / median(under) with a 95% interval, rounds resampled in pairs."""
    rng, count, found = random.Random(0), len(over), []
    for _ in range(1000):
        rounds = [rng.randrange(count) for _ in range(count)]
        found.append(statistics.median(over[i] for i in rounds) / statistics.median(under[i] for i in rounds))
    found.sort()
    return {
        "ratio": round(statistics.median(over) / statistics.median(under), 4),
        "low": round(found[25], 4), "high": round(found[974], 4),
    }  # fmt: skip


class Layer:
    """One MoE layer with random weights, and every way to run it."""

    def __init__(self, shape: MoeShape, package: Path, predicted: Path | None, kernel: object):
        self.shape, self.device = shape, detect(0)
        self.generator = torch.Generator(device="cuda").manual_seed(0)
        self.w1 = self.draw(shape.E, shape.up_n, shape.K, scale=shape.K**-0.5)
        self.w2 = self.draw(shape.E, shape.K, shape.N, scale=shape.N**-0.5)
        self.table_of = self.device.table_name
        try:
            self.table = vllm_peer.table(package, shape.E, shape.N, self.table_of)
        except FileNotFoundError:  # vLLM ships none for this card: the table of its sister is the best it has
            self.table_of = "NVIDIA_H100_80GB_HBM3"
            self.table = vllm_peer.table(package, shape.E, shape.N, self.table_of)
        self.peer = vllm_peer.VllmMoe(kernel, shape.E, shape.N, shape.K, shape.topk, shape.gated, max(USUAL_M))
        self.chosen = km.select_backend(
            "fused_moe", device="cuda:0", dtype="bfloat16", shape=shape.axes(), activation=shape.activation
        )
        if (self.chosen.backend, self.chosen.config_source) != ("triton", "measured"):
            raise SystemExit(f"no measured table is in use: {self.chosen.explain()}")
        self.weights = self.chosen.prepare(w1=self.w1, w2=self.w2)
        self.forecast = None
        if predicted is not None:
            self.forecast = lookup.find(self.device, triton.__version__, shape, folders=[predicted])
            if self.forecast.source != "predicted":
                raise SystemExit(f"{predicted} holds no predicted table of this shape: {self.forecast.why}")

    def draw(self, *size: int, scale: float = 1.0) -> torch.Tensor:
        values = torch.empty(size, device="cuda", dtype=torch.bfloat16)
        return values.normal_(0, scale, generator=self.generator)

    def contenders(self, m: int, calls: int) -> tuple[dict[str, Call], Callable[[], torch.Tensor]]:
        """Name -> call(r) with routing r, and the fp32 reference of call 0."""
        x = [self.draw(m, self.shape.K) for _ in range(calls)]
        routes = [routing(m, self.shape.E, self.shape.topk, seed=100 + r, device="cuda") for r in range(calls)]
        out = torch.empty(m, self.shape.K, device="cuda", dtype=torch.bfloat16)
        entry, act = vllm_peer.pick(self.table, m), self.shape.activation

        def with_config(config: MoeConfig) -> Call:
            return lambda r: fused_moe.run(
                x[r], self.weights, config=config, topk_weights=routes[r][0], topk_ids=routes[r][1], activation=act
            )

        def vllm(r: int) -> torch.Tensor:
            self.peer.run(x[r], self.w1, self.w2, *routes[r], out, entry)
            return out

        found: dict[str, Call] = {
            "kernelmux": lambda r: self.chosen(
                x[r], self.weights, topk_weights=routes[r][0], topk_ids=routes[r][1]
            ),
            "kernelmux, default tiles": with_config(default_config(self.shape, m, self.device)),
            "vllm": vllm,
        }  # fmt: skip
        if self.forecast is not None:
            found["kernelmux, predicted tiles"] = with_config(self.forecast.at(m))
        return found, lambda: reference(x[0], self.w1, self.w2, *routes[0], act)


def bench(name: str, layer: Layer, m: int, peak: dict[str, float]) -> dict[str, Any]:
    """Check every contender at ``m`` tokens, then race them."""
    calls = 8 if m <= 64 else 4 if m <= 1024 else 2
    contenders, truth = layer.contenders(m, calls)
    want = truth()
    errors = {
        contender: float(((call(0).float() - want).norm(dim=1) / want.norm(dim=1)).max())
        for contender, call in contenders.items()
    }
    if not max(errors.values()) < OP.tolerance["bfloat16"].rtol:
        raise SystemExit(f"{name} at M={m} is wrong: {errors}")
    samples = race({contender: capture(call, calls) for contender, call in contenders.items()}, calls, seed=m)
    floor = floor_us(layer.shape, m, peak)
    medians = {contender: statistics.median(us) for contender, us in samples.items()}
    share = {contender: round(100 * floor / us, 1) for contender, us in medians.items()}
    speedup = {other: ratio(us, samples["kernelmux"]) for other, us in samples.items() if other != "kernelmux"}
    against = speedup["vllm"]
    words = ", ".join(f"{contender} {us:.1f} us ({share[contender]}%)" for contender, us in medians.items())
    interval = f"[{against['low']:.3f}, {against['high']:.3f}]"
    print(f"{name} M={m}: {words}; over vllm {against['ratio']:.3f} {interval}", flush=True)
    return {
        "m": m, "calls": calls, "floor_us": round(floor, 2),
        "median_us": {contender: round(us, 2) for contender, us in medians.items()},
        "roofline_percent": share, "speedup": speedup,
        "worst_row_error": {contender: round(error, 5) for contender, error in errors.items()},
        "config": layer.chosen.config_at(m).to_json(), "vllm_config": vllm_peer.pick(layer.table, m),
        "samples_us": samples,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vllm-path", type=Path, required=True, help="an unpacked vllm package, version 0.33.0")
    parser.add_argument("--predicted", type=Path, help="a config folder with predicted tables of the same shapes")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    vllm_peer.load_operators(options.vllm_path)
    kernel = vllm_peer.load_kernel(options.vllm_path)
    peak = ceilings()
    device = detect(0)
    result: dict[str, Any] = {
        "benchmark": "fused_moe pipeline", "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": "python " + " ".join(["benchmarks/bench_fused_moe.py", "--vllm-path VLLM", "--out FILE"]),
        "device": device.torch_name, "capability": str(device.capability), "sm_count": device.sm_count,
        "driver": device.driver, "versions": {
            "kernelmux": km.__version__, "torch": torch.__version__, "triton": triton.__version__,
            "python": platform.python_version(), "vllm": "0.33.0",
        },
        "ceilings": {key: round(value, 1) for key, value in peak.items()},
        "method": f"{ROUNDS} rounds, CUDA graphs of 8, 4 or 2 calls over as many routings, contenders interleaved",
        "shapes": [],
    }  # fmt: skip
    for name, shape in SHAPES.items():
        layer = Layer(shape, options.vllm_path, options.predicted, kernel)
        entry: dict[str, Any] = {"model": name, "shape": shape.brief(), "vllm_table_of": layer.table_of, "rows": []}
        result["shapes"].append(entry)
        for m in USUAL_M:
            entry["rows"].append(bench(name, layer, m, peak))
            options.out.write_text(json.dumps(result) + "\n")
        del layer
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
