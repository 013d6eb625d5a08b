"""The page of the weight-only NVFP4 GEMM beside cuBLAS in bf16, from a benchmark's result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kernelmux.reports.markdown import code, table, text
from kernelmux.reports.words import number

AIMS = ((16, 2.6, 1.8), (64, 1.5, 1.5), (1023, 0.6, 0.6), (4096, 0.8, 0.8))
"""(tokens up to, least ratio for N * K of 50 million and more, for less), as they were set for an H100."""
LARGE = 50_000_000


def aim(n: int, k: int, m: int) -> float | None:
    """The ratio aimed at; None between 17 and 63 tokens and between 65 and 128, where none was set."""
    if 16 < m < 64 or 64 < m <= 128:
        return None
    large, small = next((large, small) for most, large, small in AIMS if m <= most)
    return large if n * k >= LARGE else small


def page(result: Mapping[str, Any], command: str) -> str:
    """Markdown: for every (N, K) and M the fastest of ours, cuBLAS, their ratio and what was aimed at."""
    rows, short, judged = [], 0, 0
    for row in result["rows"]:
        wanted = aim(row["n"], row["k"], row["m"])
        judged += wanted is not None
        missed = wanted is not None and row["ratio"] < wanted
        short += missed
        ours = row["us"][row["best"]]
        rows.append(
            [
                f"{row['n']}, {row['k']}", str(row["m"]), number(ours), number(row["us"]["cublas bf16"]),
                f"{row['ratio']:.2f}", "" if wanted is None else f"{wanted:.1f}{' (short)' if missed else ''}",
                number(row["gbs"]), code(row["best"]), f"{row['error'][row['best']]:.4f}",
            ]
        )  # fmt: skip
    head = ["N, K", "M", "ours µs", "cuBLAS bf16 µs", "ratio", "aim", "GB/s", "launch", "worst row error"]
    parts = [
        "# Weight-only NVFP4 beside cuBLAS",
        f"<!-- Written by `{command}` from benchmarks/results. Do not edit: change the data or the script. -->",
        f"Measured on one {text(result['device'])} ({result['sms']} SMs), torch {text(result['torch'])}, Triton "
        f"{text(result['triton'])}, {result['date']}: CUDA graphs, weights from memory, interleaved rounds "
        "([bench_nvfp4_gemm.py](../benchmarks/bench_nvfp4_gemm.py)). A ratio is cuBLAS's time over ours: above 1, ours "
        "is faster. Weights take 0.281 of their bf16 bytes.",
        f"**{short} of {judged} points fall short of their aim.** The aims were set for an H100. cuBLAS reads bf16 "
        "weights at the speed of memory for few tokens, and an H200's memory is 1.43 times as fast, while what limits "
        "ours there is decoding: an H100 was not at hand to tell. `decode/P` decodes into a workspace in P pieces, in "
        "every call, and multiplies with cuBLAS; `gemv` is CUDA C++; the others are Triton launches.",
        table(head, rows, right=range(1, 7)),
    ]
    return "\n\n".join(parts) + "\n"
