"""The page of tables tuned for vLLM and SGLang beside those the engines ship, from benchmark results."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kernelmux.reports.markdown import code, table, text
from kernelmux.reports.words import number, seconds, signed

ENGINES = {"vllm": "vLLM 0.33", "sglang": "SGLang 0.5.23"}
MODELS = {
    "qwen3": "Qwen3-30B-A3B TP2, bf16",
    "nemotron": "Nemotron 3 Nano, bf16",
    "deepseek": "DeepSeek-V3 TP16, fp8 blocks",
    "next": "Qwen3-Next TP4, fp8 blocks",
}
TIE = 0.01  # a gain whose interval reaches below this is called a tie

Run = Mapping[str, Any]
Load = Callable[[str], Any]


def page(load: Load, command: str) -> str:
    """Markdown. ``load`` gives a result file of benchmarks/results by its name; ``command`` renders the page anew."""
    runs = {
        (engine, model): load(f"engine-tables-h200-{engine}-{model}.json") for engine in ENGINES for model in MODELS
    }
    some = runs["vllm", "qwen3"]
    parts = [
        "# Tables for vLLM and SGLang, beside theirs",
        f"<!-- Written by `{command}` from benchmarks/results. Do not edit: change the data or the script. -->",
        f"Measured on one {some['device']} (9.0), driver {some['driver']}, torch {some['versions']['torch']}, Triton "
        f"{some['versions']['triton']}. No H100 was at hand. Each table was tuned on the engine's own kernel, loaded "
        "from its unpacked package (`kernelmux tune --format ... --engine-path ...`), and then run in that kernel "
        "beside the table the engine ships and the engine's default heuristic, all interleaved in one run "
        "([bench_engine_tables.py](../benchmarks/bench_engine_tables.py)). A figure is up + down GEMM at one M; a gain "
        "is time saved. The tables are in [examples/tables](../examples/tables).",
        "Where an engine ships no table for this GPU, the one it ships for the H100 SXM was read as if it were this "
        "card's. The engine itself would have run its default there.",
        "## In short",
        _short(runs, load),
    ]
    for (engine, model), run in runs.items():
        parts += [f"## {ENGINES[engine]}: {text(MODELS[model])}", _about(_tuned(engine, model, load), run), _rows(run)]
    parts += ["## Does a tile mean the same in our plain kernel?", *_plain(load("plain-against-engine-h200.json"))]
    return "\n\n".join(parts) + "\n"


def _gains(run: Run, other: str) -> dict[int, Mapping[str, float]]:
    return {row["m"]: row["gain_over"][other] for row in run["rows"] if other in row["gain_over"]}


def mean_ratio(gains: Iterable[Mapping[str, float]]) -> float:
    logs = [-math.log(1 - gain["gain"]) for gain in gains]
    return math.exp(statistics.fmean(logs))


def _short(runs: Mapping[tuple[str, str], Run], load: Load) -> str:
    rows = []
    for (engine, model), run in runs.items():
        shipped, default = _gains(run, "shipped"), _gains(run, "default")
        worst = min(shipped, key=lambda m: shipped[m]["gain"])
        best = max(shipped, key=lambda m: shipped[m]["gain"])
        ties = sum(gain["low"] < TIE and gain["high"] > -TIE for gain in shipped.values())
        rows.append(
            [
                ENGINES[engine],
                text(MODELS[model]),
                seconds(_tuned(engine, model, load)["seconds"]["total"]),
                f"{mean_ratio(shipped.values()):.3f}",
                f"{signed(shipped[worst]['gain'])} at M={worst}",
                f"{signed(shipped[best]['gain'])} at M={best}",
                f"{ties} of {len(run['rows'])}",
                f"{mean_ratio(default.values()):.3f}",
            ]
        )
    head = [
        "reader", "layer", "tuning took", "shipped / tuned, geometric mean", "least gain", "most", "ties",
        "default / tuned",
    ]  # fmt: skip
    said = f"A tie: the 95% interval of the gain reaches within {TIE:.0%} of nothing."
    return f"{table(head, rows, right=range(2, len(head)))}\n\n{said}"


def _tuned(engine: str, model: str, load: Load) -> Run:
    found: Run = load(f"tune-h200-{engine}-{model}.json")
    return found


def _about(tuned: Run, run: Run) -> str:
    counts, notes = tuned["counts"], tuned["notes"]
    said = (
        f"{code(run['shape'])}, {code(run['quant'])}. Shipped: {text(run['shipped_from'])}. Tuned with "
        f"{counts['compiled']:,} binaries and {counts['measured']:,} timings; the pair at M=256 is "
        f"{run['check_at_256']['worst_row_error']:.4f} from the fp32 reference (worst row, relative L2)."
    )
    return " ".join([said, *(text(note) for note in notes)])


def _rows(run: Run) -> str:
    rows = []
    for row in sorted(run["rows"], key=lambda row: row["m"]):
        us = row["median_us"]
        times = [
            number(us[name]) if name in us else text(row["failed"].get(name, ""))
            for name in ("tuned", "shipped", "default")
        ]
        cells = [str(row["m"]), *times]
        for other in ("shipped", "default"):
            gain = row["gain_over"].get(other)
            cells.append(
                "" if gain is None else f"{signed(gain['gain'])} ({signed(gain['low'])} to {signed(gain['high'])})"
            )
        up, down = row["tiles"]["tuned"]
        cells.append(code(up if up == down else f"{up} / {down}"))
        rows.append(cells)
    head = ["M", "tuned µs", "shipped µs", "default µs", "over shipped (95%)", "over default (95%)", "tiles"]
    return table(head, rows, right=range(6))


def _plain(said: Run) -> list[str]:
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in said["rows"]:
        groups.setdefault((row["structure"], row["quant"]), []).append(row)
    rows = []
    for (engine, quant), found in groups.items():
        ratios = [row["ours_over_engine"]["ratio"] for row in found if "ours_over_engine" in row]
        errors = [max(row["error"].values()) for row in found if "error" in row]
        rows.append(
            [
                ENGINES[engine], code(quant), str(len(ratios)), f"{statistics.median(ratios):.3f}",
                f"{min(ratios):.3f} to {max(ratios):.3f}", f"{max(errors):.4f}",
            ]
        )  # fmt: skip
    return [
        "`--format` without `--engine-path` tunes kernelmux's kernels of the engine's structure. Here both ran the "
        f"same tiles interleaved, {code(said['shape'])}, M in 1, 64 and 1024: our time over the engine's.",
        table(["engine", "scheme", "tiles", "median", "range", "worst row error"], rows, right=range(2, 6)),
    ]
