#!/usr/bin/env python3
"""Write docs/{benchmarks,small-ops}.md and docs/reports/ from benchmarks/results: no figure is typed by hand.

python scripts/render_benchmarks.py            # write
python scripts/render_benchmarks.py --check    # exit 1 when a committed file is not what the data says
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.reports import engine_tables, host_cost, nvfp4_gemm, small_ops, tuning_files, tuning_output
from kernelmux.reports.markdown import code, table, text
from kernelmux.reports.tuning import Shipped
from kernelmux.reports.words import number, seconds, signed
from kernelmux.tuning_configs import sidecar as sidecars
from kernelmux.tuning_configs.names import TableName

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGED = ROOT / "kernelmux" / "tuning_configs" / "configs" / "triton_3_6_0"
COMMAND = "python scripts/render_benchmarks.py"

# Result files carry the slug; the model's name stands in fused-moe-h200.json.
SLUGS = {
    "Qwen3-30B-A3B TP2": "qwen3-30b-a3b-tp2",
    "Nemotron 3 Nano": "nemotron-3-nano",
    "Mixtral-8x7B TP2": "mixtral-8x7b-tp2",
}
PAGE_OF = "qwen3-30b-a3b-tp2"  # the one report that is committed as HTML too
OURS, VLLM = "kernelmux", "vllm"
DEFAULT, PREDICTED = "kernelmux, default tiles", "kernelmux, predicted tiles"

SMALL_OPS, PDL_PAIRS, SANITIZED = "small-ops-h200.json", "pdl-h200.json", "sanitize-h200.json"

Row = Mapping[str, Any]


def load(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def outputs() -> dict[Path, str]:
    """Every file this script owns, with its content."""
    pipeline = load("fused-moe-h200.json")
    made = {
        ROOT / "docs" / "benchmarks.md": benchmarks(pipeline),
        ROOT / "docs" / "engine-tables.md": engine_tables.page(load, COMMAND),
        ROOT / "docs" / "nvfp4-benchmarks.md": nvfp4_gemm.page(load("nvfp4-gemm-h200.json"), COMMAND),
        ROOT / "docs" / "small-ops-benchmarks.md": small(),
    }
    for shape in pipeline["shapes"]:
        made |= report(pipeline, shape)
    return made


def small() -> str:
    """The page of the small ops, of whatever has been measured."""
    rounding = [load(path.name) for path in sorted(RESULTS.glob("rounding-order-*.json"))]
    races, pairs, sanitized = (
        load(name) if (RESULTS / name).exists() else None for name in (SMALL_OPS, PDL_PAIRS, SANITIZED)
    )
    return small_ops.page(races, COMMAND, rounding, pairs, sanitized)


def report(pipeline: Mapping[str, Any], shape: Mapping[str, Any]) -> dict[Path, str]:
    """The tuning report of one shape: Markdown with its plots, and one page."""
    slug = SLUGS[shape["model"]]
    entries = {row["m"]: {"up": row["vllm_config"], "down": row["vllm_config"]} for row in shape["rows"]}
    value = tuning_files.report_of(
        RESULTS / f"tune-h200-{slug}.json",
        ceilings=RESULTS / "fused-moe-h200.json",
        shipped=Shipped(f"vllm {pipeline['versions']['vllm']}", shape["vllm_table_of"], entries),
        model=shape["model"],
        kernel=_kernel(slug, pipeline["device"]),
    )
    base = ROOT / "docs" / "reports" / f"tuning-h200-{slug}"
    made = tuning_output.files(value, base.with_suffix(".md"), plots=True)
    if slug == PAGE_OF:
        made |= tuning_output.files(value, base.with_suffix(".html"))
    return made


def _kernel(slug: str, device: str) -> Mapping[str, str] | None:
    """The kernel that the run's own tables name; they are the packaged ones as long as their times are the run's."""
    ran = load(f"tune-h200-{slug}.json")["report"]
    shape = MoeShape(**ran["shape"])
    path = PACKAGED / TableName.of(device.replace(" ", "_"), shape).sidecar
    if not path.exists():
        return None
    kept = sidecars.load(path)
    times = {m: (point.up_us, point.down_us) for m, point in kept.points.items()}
    return kept.kernel if times == {line["m"]: (line["up_us"], line["down_us"]) for line in ran["table"]} else None


# -- docs/benchmarks.md


def benchmarks(pipeline: Mapping[str, Any]) -> str:
    parts = [
        "# Benchmarks",
        f"<!-- Written by `{COMMAND}` from benchmarks/results. Do not edit: change the data or the script. -->",
        *_where(pipeline),
        "## The whole layer, beside vLLM",
        *_pipeline_words(pipeline),
        "### In short",
        _short(pipeline),
    ]
    for shape in pipeline["shapes"]:
        parts += [
            f"### {text(shape['model'])}",
            f"{code(shape['shape'])}, {_table_words(pipeline, shape)}",
            _rows(shape),
        ]
    parts += [
        "## Predicted tiles and the default heuristic",
        *_prediction(pipeline),
        "## How much of the race's gain arrives in the layer",
        *_arrives(pipeline),
        "## Is the chosen pair the best there is?",
        *_audit(),
        "## How long tuning takes",
        *_tuning(),
        "## What a decision costs",
        *_latency(),
        "## What a call costs the host",
        *host_cost.section(load(path.name) for path in sorted(RESULTS.glob("host-cost-*.json"))),
    ]
    return "\n\n".join(parts) + "\n"


def _where(pipeline: Mapping[str, Any]) -> list[str]:
    versions = pipeline["versions"]
    seen = ", ".join(f"{name} {versions[name]}" for name in ("torch", "triton", "python"))
    rates = pipeline["ceilings"]
    return [
        f"Every GPU figure on this page was measured on one {pipeline['device']} ({pipeline['sm_count']} SMs, "
        f"capability {pipeline['capability']}), driver {pipeline['driver']}, {seen}. No H100 was at hand: nothing here "
        "was measured on one.",
        f"The roofline uses what this card reached in the same run: {number(rates['bf16_tflops'])} TFLOP/s in a bf16 "
        f"matrix product of 8192 x 8192 x 8192 and {number(rates['copy_gbs'])} GB/s in a large copy, bytes read and "
        "written. Its work is both GEMMs, each visited expert's weights read once, the input read and the output "
        "written. Reading alone can run faster than a copy, so a share slightly above 100% is possible.",
    ]


def _pipeline_words(pipeline: Mapping[str, Any]) -> list[str]:
    vllm = pipeline["versions"]["vllm"]
    borrowed = [shape for shape in pipeline["shapes"] if shape["vllm_table_of"] != pipeline["device"].replace(" ", "_")]
    tables = "".join(
        f" For {text(shape['model'])} vLLM {vllm} has no table for this GPU: the one of {code(shape['vllm_table_of'])} "
        "was used, the nearest it ships. vLLM itself would have run its default heuristic."
        for shape in borrowed
    )
    return [
        f"Sort, both GEMMs, activation and reduction. {pipeline['method']}. A ratio is the median of vLLM's time over "
        "the median of ours: above 1, kernelmux is faster. Its 95% interval comes from resampling rounds in pairs.",
        f"vLLM {vllm} is its Triton path: its `fused_moe_kernel`, its tables and its compiled sort and sum operators, "
        f"taken from the unpacked package ([vllm_peer.py](../benchmarks/vllm_peer.py)).{tables}",
        "**vLLM's activation was replaced.** Its operator lies in a library that was not loaded; a stand-in kernel at "
        "copy speed runs in its place, and for relu2 it is one kernel where vLLM's layer launches two. It was not "
        "compared with vLLM's own operator. What is compared are the kernels of one layer, not servers.",
    ]


def _table_words(pipeline: Mapping[str, Any], shape: Mapping[str, Any]) -> str:
    own = shape["vllm_table_of"] == pipeline["device"].replace(" ", "_")
    which = f"vLLM with its table for {code(shape['vllm_table_of'])}"
    return which + ("." if own else ", as it ships none for this GPU.")


def _short(pipeline: Mapping[str, Any]) -> str:
    rows = []
    for shape in pipeline["shapes"]:
        ratios = {row["m"]: row["speedup"][VLLM]["ratio"] for row in shape["rows"]}
        low, high = min(ratios, key=lambda m: ratios[m]), max(ratios, key=lambda m: ratios[m])
        wins = sum(row["speedup"][VLLM]["low"] > 1 for row in shape["rows"])
        rows.append(
            [
                text(shape["model"]),
                f"{mean(ratios.values()):.3f}",
                f"{ratios[low]:.3f} at M={low}",
                f"{ratios[high]:.3f} at M={high}",
                f"{wins} of {len(ratios)}",
                f"{_of_tuned(shape, PREDICTED):.3f}",
                f"{_of_tuned(shape, DEFAULT):.3f}",
            ]
        )
    head = [
        "", "vLLM / kernelmux, geometric mean", "least", "most", "whole interval above 1", "predicted tiles",
        "default tiles",
    ]  # fmt: skip
    said = (
        "The last two columns are speeds of our own pipeline with other tiles, relative to the tuned ones (geometric "
        "mean of tuned time over their time; 1 is as fast)."
    )
    return f"{table(head, rows, right=range(1, len(head)))}\n\n{said}"


def _rows(shape: Mapping[str, Any]) -> str:
    head = [
        "M", "kernelmux µs", "vLLM µs", "vLLM / kernelmux", "95%", "roofline", "roofline, vLLM", "predicted tiles",
        "default tiles",
    ]  # fmt: skip
    rows = []
    for row in shape["rows"]:
        us, share, faster = row["median_us"], row["roofline_percent"], row["speedup"]
        against = faster[VLLM]
        rows.append(
            [
                str(row["m"]),
                number(us[OURS]),
                number(us[VLLM]),
                f"{against['ratio']:.3f}",
                f"{against['low']:.3f} to {against['high']:.3f}",
                f"{share[OURS]:.0f}%",
                f"{share[VLLM]:.0f}%",
                *(f"{_speed(row, other):.3f}" for other in (PREDICTED, DEFAULT)),
            ]
        )
    means = ["**mean**", "", "", f"**{mean(row['speedup'][VLLM]['ratio'] for row in shape['rows']):.3f}**", "", "", ""]
    rows.append([*means, *(f"**{_of_tuned(shape, other):.3f}**" for other in (PREDICTED, DEFAULT))])
    return table(head, rows, right=range(len(head)))


def _speed(row: Row, other: str) -> float:
    """Speed with ``other`` tiles relative to the tuned ones: below 1 is slower."""
    return 1 / row["speedup"][other]["ratio"]


def _of_tuned(shape: Mapping[str, Any], other: str) -> float:
    return mean(_speed(row, other) for row in shape["rows"])


def mean(values: Iterable[float]) -> float:
    """The geometric mean."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def _prediction(pipeline: Mapping[str, Any]) -> list[str]:
    rows = []
    for shape in pipeline["shapes"]:
        for name, other in (("predicted", PREDICTED), ("default heuristic", DEFAULT)):
            worst = min(shape["rows"], key=lambda row, other=other: _speed(row, other))
            rows.append(
                [
                    text(shape["model"]),
                    name,
                    f"{_of_tuned(shape, other):.3f}",
                    f"{_speed(worst, other):.3f} at M={worst['m']}",
                ]
            )
    made = {name: load(f"predict-h200-{slug}.json")["report"] for name, slug in SLUGS.items()}
    times = ", ".join(f"{text(name)} {seconds(said['seconds']['total'])}" for name, said in made.items())
    return [
        "`kernelmux tune --offline` measures nothing: it compiles and ranks for a named GPU. Its tiles were run on the "
        "GPU they were predicted for, beside the tuned ones, in the run above. The weights of the ranking were fitted "
        "on an earlier run of these three shapes on this card, so this is no test on an unseen GPU.",
        table(["", "tiles", "speed relative to tuned, geometric mean", "least"], rows, right=[2, 3]),
        f"Time to predict, on the same host: {times}.",
    ]


def _arrives(pipeline: Mapping[str, Any]) -> list[str]:
    """Gain over the default: in the tuner's race (both GEMMs alone) beside the whole layer."""
    races = {
        shape["model"]: {line["m"]: line for line in load(f"tune-h200-{SLUGS[shape['model']]}.json")["report"]["table"]}
        for shape in pipeline["shapes"]
    }
    rows, slower = [], []
    for i, m in enumerate(row["m"] for row in pipeline["shapes"][0]["rows"]):
        cells = [str(m)]
        for shape in pipeline["shapes"]:
            layer = shape["rows"][i]["speedup"][DEFAULT]
            cells += [signed(races[shape["model"]][m]["gain"]), signed(1 - 1 / layer["ratio"])]
            if layer["high"] < 1:
                slower.append(f"{shape['model']} at M={m} ({signed(1 - 1 / layer['ratio'], 2)})")
        rows.append(cells)
    head = ["M", *(text(f"{shape['model']}, {where}") for shape in pipeline["shapes"] for where in ("race", "layer"))]
    said = f"In the layer the default's tiles are faster, with the whole interval, for {text(', '.join(slower))}."
    return [
        "Less time than with the default's tiles: as the tuner saw it (up + down alone), and as the whole layer shows "
        "it in the run above. Sort and reduction, which both share, dilute the gain; why the rest differs at some M "
        "was not looked into. Where the two differ, the layer's figure is what a user gets.",
        table(head, rows, right=range(len(head))),
        said if slower else "In the layer no default is faster with its whole interval.",
    ]


def _audit() -> list[str]:
    parts: list[str] = []
    for path in sorted(RESULTS.glob("audit-h200-*.json")):
        said = load(path.name)
        rows = sorted(said["rows"], key=lambda row: row["m"])
        worst, best = max(rows, key=lambda row: row["loss"]), min(rows, key=lambda row: row["loss"])
        slug = path.stem.removeprefix("audit-h200-")
        whole = load(f"exhaustive-h200-{slug}.json")["report"]
        parts += [
            f"{code(said['shape'])}: the pair that `tune` chose against the best of a search over the whole space "
            f"({whole['counts']['compiled']:,} binaries, {whole['counts']['measured']:,} timings, "
            f"{seconds(whole['seconds']['total'])}), both timed again side by side. Worst loss "
            f"**{signed(worst['loss'], 2)}** at M={worst['m']} (95%: {signed(worst['low'], 2)} to "
            f"{signed(worst['high'], 2)}); at M={best['m']} the chosen pair is the faster one "
            f"({signed(best['loss'], 2)}).",
            table(
                ["M", "loss", "95%"],
                [[str(r["m"]), signed(r["loss"], 2), f"{signed(r['low'], 2)} to {signed(r['high'], 2)}"] for r in rows],
                right=range(3),
            ),
        ]
        if whole["notes"]:
            notes = "\n".join(f"- {text(note)}" for note in whole["notes"])
            parts.append(f"That search ran out of its budget, so at large M it is not the last word:\n\n{notes}")
    return parts


def _tuning() -> list[str]:
    rows, kinds = [], [("tune-h200", "full"), ("exhaustive-h200", "exhaustive")]
    stages = ("compile", "race", "final", "check")
    for prefix, effort in kinds:
        for name, slug in SLUGS.items():
            if not (RESULTS / f"{prefix}-{slug}.json").exists():
                continue
            whole = load(f"{prefix}-{slug}.json")
            said = whole["report"]
            link = f"[{text(name)}](reports/tuning-h200-{slug}.md)" if effort == "full" else text(name)
            rows.append(
                [
                    link,
                    effort,
                    whole["host"],
                    seconds(said["seconds"]["total"]),
                    *(seconds(said["seconds"].get(stage)) for stage in stages),
                    f"{said['counts']['compiled']:,}",
                    f"{said['counts']['measured']:,}",
                ]
            )
    head = ["", "effort", "host", "in all", *stages, "binaries", "timings"]
    return [
        "18 values of M, both projections, wall time on the machine with the GPU. Each name leads to the run's report.",
        table(head, rows, right=range(3, len(head))),
    ]


def _latency() -> list[str]:
    said = load("select-latency.json")
    rows: list[Sequence[str]] = [
        ["`import kernelmux`", _ms(said["import"]), ""],
        ["the first `select_backend`", _ms(said["first"]), f"≤ {said['first']['target_us'] / 1000:.0f} ms"],
    ]
    for name, warm in said["warm"].items():
        rows.append([f"again, `quant` given as {name}", f"{warm['median_us']:.2f} µs", f"≤ {warm['target_us']:.0f} µs"])
    versions = ", ".join(f"{name} {version}" for name, version in said["versions"].items())
    return [
        f"{code(said['what'])} on {text(said['device'])}, no GPU; {versions}. Medians of "
        f"{len(said['first']['samples_us'])} processes.",
        table(["", "median", "target"], rows, right=[1, 2]),
    ]


def _ms(entry: Mapping[str, float]) -> str:
    return f"{entry['median_us'] / 1000:.1f} ms"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is out of date")
    options = parser.parse_args()
    stale = {path: content for path, content in outputs().items() if not _is(path, content)}
    for path, content in stale.items():
        if options.check:
            print(f"{path.relative_to(ROOT)} is not what the data says: run `{COMMAND}`.", file=sys.stderr)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    return 1 if options.check and stale else 0


def _is(path: Path, content: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == content


if __name__ == "__main__":
    sys.exit(main())
