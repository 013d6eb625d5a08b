"""nvfp4_quantize beside the fastest way to stream as many bytes on the same card in the same run.

python benchmarks/bench_nvfp4_quantize.py --out result.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from bench_nvfp4_gemm import capture, race

from kernelmux.backends.triton import nvfp4_quantize
from kernelmux.backends.triton import nvfp4_quantize_rules as rules
from kernelmux.contracts.nvfp4_math import quantize_reference
from kernelmux.device import detect

SHAPES = ((1, 4096), (64, 4096), (1024, 4096), (4096, 4096), (8192, 8192), (16384, 7168))
ROUNDS = 20


@triton.jit
def stream(x, out, count, BLOCK: tl.constexpr):
    """Reads 16-bit words and writes one for every four of them: as many bytes as quantizing, less the scales."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    words = tl.load(x + at, mask=at < count, other=0).reshape(BLOCK // 4, 2, 2)
    kept = tl.sum(tl.sum(words, axis=2), axis=1).to(tl.int16)
    where = tl.program_id(0) * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
    tl.store(out + where, kept, mask=where < count // 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    cold = 3 * torch.cuda.get_device_properties(0).L2_cache_size
    for m, k in SHAPES:
        calls = max(2, min(32, -(-cold // (m * k * 2))))
        xs = [torch.randn(m, k, device="cuda").bfloat16() for _ in range(calls)]
        outs = [torch.empty(m * k // 4, dtype=torch.int16, device="cuda") for _ in range(calls)]
        copies = [torch.empty_like(x) for x in xs]
        scale = torch.tensor([0.002], device="cuda")
        got, want = nvfp4_quantize.quantize(xs[0], global_scale=scale), quantize_reference(xs[0], scale)
        same = all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(got, want, strict=True))

        def streamed(block: int, xs: Any = xs, outs: Any = outs) -> Callable[[int], None]:
            count = xs[0].numel()
            return lambda nth: stream[(-(-count // block),)](xs[nth].view(torch.int16), outs[nth], count, BLOCK=block)

        def quantized(layout: str, xs: Any = xs, scale: Any = scale) -> Callable[[int], Any]:
            return lambda nth: nvfp4_quantize.quantize(xs[nth], global_scale=scale, layout=layout)

        def copied(nth: int, xs: Any = xs, copies: Any = copies) -> None:
            copies[nth].copy_(xs[nth])

        contenders: dict[str, Callable[[int], Any]] = {
            "ours": quantized("linear"), "ours, swizzled": quantized("swizzled_128x4"), "copy": copied,
        }  # fmt: skip
        contenders |= {f"stream {block}": streamed(block) for block in (1024, 2048, 4096)}
        shapes = {}
        for values, width in ((1024, 1024), (2048, 1024), (4096, 1024), (4096, 2048), (2048, 512), (8192, 2048)):
            rules.VALUES = rules.MANY_VALUES = values
            rules.WIDTH = width
            shapes[f"ours {values}/{width}"] = capture(quantized("linear"), calls)
        rules.VALUES, rules.MANY_VALUES, rules.WIDTH = 2048, 4096, 1024
        graphs = {name: capture(call, calls) for name, call in contenders.items()} | shapes
        us = {name: round(statistics.median(s), 3) for name, s in race(graphs, calls, ROUNDS, m).items()}
        a_value = {"copy": 4.0, "stream": 2.5, "ours": 2.5 + 1 / 16}  # bytes moved
        rates = {name: m * k * a_value[name.split()[0].strip(",")] / t * 1e-3 for name, t in us.items()}
        best = max(rate for name, rate in rates.items() if not name.startswith("ours"))
        share = round(rates["ours"] / best, 3)
        rows.append({"m": m, "k": k, "us": us, "gbs": rates, "of_best_stream": share, "same_bytes": same})
        others = " ".join(f"{name[5:]}:{us[name]:.2f}" for name in shapes)
        print(
            f"M={m:6} K={k:5}  {us['ours']:8.2f} us  {rates['ours']:6.0f} GB/s  {share:.2f} of the best stream  "
            f"swizzled {us['ours, swizzled']:.2f} us  same bytes {same}  {others}", flush=True,
        )  # fmt: skip
    if args.out:
        found = {"device": detect(0).torch_name, "torch": torch.__version__, "triton": triton.__version__, "rows": rows}
        args.out.write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
