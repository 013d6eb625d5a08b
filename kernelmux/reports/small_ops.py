"""What races of small ops show, op by op: kernelmux's best kernel beside its peers, beside a copy, and the choice made.

Input is the JSON of ``benchmarks/bench_small_ops.py``: rows as ``Race.to_json`` gives them, with ``selected``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from kernelmux.reports.markdown import code, table, text
from kernelmux.reports.words import NONE, number

Row = Mapping[str, Any]
OURS = ("jit_cuda", "triton")
LARGE_BYTES = 200e6  # from here on a copy is the measure
PEER_FLOOR, COPY_FLOOR, CHOICE_SLACK = 0.97, 0.96, 1.03


def ours(one: Row) -> bool:
    """Whether a contestant is a kernel of kernelmux's own."""
    return one["kind"] == "kernel" and one["name"].startswith("kernelmux.") and one["backend"] in OURS


def best(row: Row, wanted: Any) -> Row | None:
    """The fastest contestant that ``wanted(contestant)`` holds for."""
    found = [one for one in row["contestants"] if "us" in one and wanted(one)]
    return min(found, key=lambda one: one["us"]) if found else None


def against_peers(row: Row) -> float | None:
    """Time of the better peer over ours: above 1, kernelmux is faster."""
    mine, peer = best(row, ours), best(row, lambda one: one["kind"] == "peer")
    return peer["us"] / mine["us"] if mine and peer else None


def against_copy(row: Row) -> float | None:
    """Time of the fastest copy over ours."""
    mine = best(row, ours)
    return row["ceiling_us"] / mine["us"] if mine and row.get("ceiling_us") else None


def large(row: Row) -> bool:
    return bool(row["read_bytes"] + row["written_bytes"] > LARGE_BYTES)


def choice(row: Row, by: str) -> float | None:
    """Time of the kernel that was selected over that of the fastest one; None where it was not timed.

    ``by``: policy, or measured. The measured choice was made on the first half of the samples, so that it is judged on
    the second.
    """
    chosen = (row.get("selected") or {}).get(by) or {}
    if by == "measured" and chosen.get("source") != "measured":
        return None
    times = {
        one["name"]: median(one["samples_us"][len(one["samples_us"]) // 2 :]) if by == "measured" else one["us"]
        for one in row["contestants"]
        if one["kind"] == "kernel" and "us" in one
    }
    return times[chosen["kernel"]] / min(times.values()) if chosen.get("kernel") in times else None


def geomean(values: Iterable[float]) -> float | None:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else None


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One object an op: what it must show, and whether it does."""
    found = []
    for op in dict.fromkeys(row["op"] for row in rows):
        mine = [row for row in rows if row["op"] == op]
        peers = {_place(row): r for row in mine if (r := against_peers(row)) is not None}
        copies = {_place(row): r for row in mine if large(row) and (r := against_copy(row)) is not None}
        said: dict[str, Any] = {
            "op": op,
            "points": len(mine),
            "without_our_kernel": sum(best(row, ours) is None for row in mine),
            "peers_geomean": geomean(peers.values()),
            "peers_least": _least(peers),
            "peers_below": sorted(place for place, r in peers.items() if r < PEER_FLOOR),
            "copy_least": _least(copies),
            "copy_below": sorted(place for place, r in copies.items() if r < COPY_FLOOR),
        }
        for by in ("policy", "measured"):
            slack = {_place(row): r for row in mine if (r := choice(row, by)) is not None}
            said[f"{by}_judged"] = len(slack)
            said[f"{by}_within"] = sum(r <= CHOICE_SLACK for r in slack.values())
            said[f"{by}_beyond"] = sorted((place, round(r, 3)) for place, r in slack.items() if r > CHOICE_SLACK)
        found.append(said)
    return found


def _place(row: Row) -> tuple[int, int]:
    return row["h"], row["m"]


def _least(ratios: Mapping[tuple[int, int], float]) -> tuple[float, int, int] | None:
    """(ratio, M, H) of the smallest."""
    if not ratios:
        return None
    h, m = min(ratios, key=lambda place: ratios[place])
    return ratios[h, m], m, h


def page(
    result: Mapping[str, Any] | None,
    command: str,
    rounding: Sequence[Row] = (),
    pairs: Mapping[str, Any] | None = None,
    sanitized: Mapping[str, Any] | None = None,
) -> str:
    """The whole page in Markdown. The last three: results of rounding_order.py, bench_pdl.py and sanitize.py."""
    parts = [
        "# Small ops",
        f"<!-- Written by `{command}` from benchmarks/results. Do not edit: change the data or the script. -->",
    ]
    if result is not None:
        rows = result["rows"]
        parts += [
            "## Beside their peers",
            *_words(result),
            *filter(None, [text(result.get("note", ""))]),
            "### In short",
            _short(rows),
            *_misses(rows),
        ]
    parts += [part for run in rounding for part in _rounding(run)]
    if pairs is not None:
        parts += _pairs(pairs)
    if sanitized is not None:
        parts += _sanitized(sanitized)
    if result is not None:
        for op in dict.fromkeys(row["op"] for row in rows):
            parts += [f"## {text(op)}", _op([row for row in rows if row["op"] == op])]
        parts += _failures(rows, result["lost"], result.get("failed", ()))
    return "\n\n".join(parts) + "\n"


def _rounding(result: Row) -> list[str]:
    network = result["network"]
    cells = [
        [
            code(run["norm"]),
            text(", ".join(run["kernels"])),
            f"{run['flips']} of {run['positions']}",
            f"{run['flips'] / run['positions']:.2%}",
            f"{run['logits_equal']:.1%}",
        ]
        for run in result["runs"]
    ]
    return [
        f"## Why the order of rounding matters: {text(result['device'])}",
        f"A toy transformer of {network['layers']} layers, hidden size {network['hidden']}, "
        f"{text(network['weights'])}, random weights (seed {network['seed']}), {network['sequences']} sequences of "
        f"{network['length']} tokens. Only its norms differ from those "
        f"of the reference, {text(result['reference'])}. Counted are positions whose "
        f"largest logit is another one. torch {result['versions']['torch']}, {result['date']}, "
        f"{code(result['command'])}.",
        table(["order", "kernels", "another argmax", "", "logits equal to the bit"], cells, right=(2, 3, 4)),
    ]


def _pairs(result: Row) -> list[str]:
    cells = [
        [text(row["shape"]), number(row["on_us"]), number(row["off_us"]), f"{row['off_over_on']:.3f}"]
        for row in result["rows"]
    ]
    late = result["late_producers"]
    count = sum(len(cases) for cases in late.values())
    wrong = sum(word != "right" for cases in late.values() for word in cases.values())
    return [
        "## Programmatic dependent launch",
        f"{text(result['what'])}, on {text(result['device'])}, driver {result['driver']}, {result['date']}, "
        f"{code(result['command'])}. With producers that let their dependents start and write late, {count - wrong} of "
        f"{count} cases are right.",
        table(["M x H", "on, µs", "off, µs", "off / on"], cells, right=(1, 2, 3)),
    ]


def _sanitized(result: Row) -> list[str]:
    head = f"{text(result['what'])}, {result['date']}, {code(result['command'])}"
    if "refused" in result:
        return ["## Under compute-sanitizer", f"{head}: {text(result['refused'])}."]
    cells = [
        [text(run[key]) for key in ("tool", "op", "outcome")] + [text(run.get("tests", ""))] for run in result["runs"]
    ]
    return [
        "## Under compute-sanitizer",
        f"{head}, on {text(result['device'])}, {text(result['version'])}.",
        table(["tool", "op", "outcome", "tests"], cells),
    ]


def _words(result: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    modes = sorted({one["name"] for row in result["rows"] for one in row["contestants"] if one["kind"] == "peer"})
    return [
        f"Measured on {text(result['device'])} ({result['sm_count']} SMs, capability {result['capability']}), driver "
        f"{result['driver']}, {versions}, {result['date']}, with {code(result['command'])}. All contestants of a point "
        "ran in one process, in turn, in an order drawn anew each round.",
        f"A time is the median over {_rounds(result['rows'])} replays of a CUDA graph of back-to-back calls, each call "
        "on tensors of its own that are not in the L2 cache. Every contestant was right on poisoned outputs before it "
        "was timed. The ceiling is the fastest of several plain copies of as many bytes in the same rounds.",
        f"The peers: {text(', '.join(modes))}. A ratio is the time of the better peer, or of the fastest copy, over "
        "that of kernelmux's best kernel: above 1, kernelmux is faster.",
    ]


def _rounds(rows: Sequence[Row]) -> str:
    counts = sorted({row["rounds"] for row in rows})
    return " or ".join(map(str, counts))


def _short(rows: Sequence[Row]) -> str:
    cells = [
        [
            text(said["op"]),
            str(said["points"]),
            _ratio(said["peers_geomean"]),
            _where(said["peers_least"]),
            str(len(said["peers_below"])),
            _where(said["copy_least"]),
            _share(said, "policy"),
            _share(said, "measured"),
        ]
        for said in summary(rows)
    ]
    head = [
        "", "points", "against the better peer, geometric mean", "least", f"points below {PEER_FLOOR}",
        "against a copy above 200 MB, least", "policy's choice within 3%", "measured choice within 3%",
    ]  # fmt: skip
    return table(head, cells, right=range(1, len(head)))


def _ratio(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"


def _where(least: tuple[float, int, int] | None) -> str:
    return NONE if least is None else f"{least[0]:.3f} at M={least[1]}, H={least[2]}"


def _share(said: Mapping[str, Any], by: str) -> str:
    return f"{said[f'{by}_within']} of {said[f'{by}_judged']}" if said[f"{by}_judged"] else NONE


def _misses(rows: Sequence[Row]) -> list[str]:
    lines = []
    for said in summary(rows):
        for key, words in (("peers_below", "slower than the better peer"), ("copy_below", "short of a copy")):
            if said[key]:
                places = ", ".join(f"M={m} H={h}" for h, m in said[key])
                lines.append(f"- {text(said['op'])}, {words} by more than allowed: {places}")
        for by in ("policy", "measured"):
            if said[f"{by}_beyond"]:
                places = ", ".join(f"M={m} H={h} ({r:.3f})" for (h, m), r in said[f"{by}_beyond"])
                lines.append(f"- {text(said['op'])}, the {by} choice is slower than the fastest kernel: {places}")
        if said["without_our_kernel"]:
            lines.append(f"- {text(said['op'])}: {said['without_our_kernel']} points without a kernel of our own")
    return ["What falls short:", "\n".join(lines)] if lines else ["Nothing falls short."]


def _op(rows: Sequence[Row]) -> str:
    cells = []
    for row in sorted(rows, key=_place):
        mine, peer = best(row, ours), best(row, lambda one: one["kind"] == "peer")
        cells.append(
            [
                str(row["h"]),
                str(row["m"]),
                _named(mine),
                number(mine["us"] if mine else None),
                _named(peer),
                number(peer["us"] if peer else None),
                _ratio(against_peers(row)),
                f"{mine['gbs']:,.0f}" if mine else NONE,
                NONE if (share := against_copy(row)) is None else f"{share:.0%}",
                _ratio(choice(row, "policy")),
            ]
        )
    head = [
        "H", "M", "our best", "µs", "better peer", "µs", "ratio", "GB/s", "of a copy", "policy's choice / fastest",
    ]  # fmt: skip
    return table(head, cells, right=[0, 1, 3, 5, 6, 7, 8, 9])


def _named(one: Row | None) -> str:
    if one is None:
        return NONE
    name = str(one["name"])
    return text(name[name.index("[") + 1 : -1] if one["kind"] == "kernel" and "[" in name else name)


def _failures(rows: Sequence[Row], lost: Sequence[Row], failed: Sequence[Row] = ()) -> list[str]:
    said: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        for one in row["contestants"]:
            if "us" not in one:
                reason = str(one["reason"])
                said.setdefault((row["op"], one["name"], reason), []).append(f"M={row['m']} H={row['h']}")
    lines = [f"- {text(one['op'])}, {text(one['contestant'])}: {text(one['said'])}" for one in lost]
    lines += [f"- {text(one['op'])}, H={one['h']}, no contestant: {text(one['said'])}" for one in failed]
    lines += [
        f"- {text(op)}, {text(name)}: {text(reason)} ({len(where)} points, the first {where[0]})"
        for (op, name, reason), where in said.items()
    ]
    return ["## Who did not run", "\n".join(lines)] if lines else []
