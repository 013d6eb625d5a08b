"""What a call costs the host, beside torch's own small ops: Markdown of ``benchmarks/bench_host_cost.py``'s JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kernelmux.reports.markdown import code, table, text

_KERNELMUX = ("km.ops, out=", "km.ops", "torch.ops, .out", "torch.ops")


def section(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """Paragraphs and tables, machines with a GPU first; a sentence where nothing was measured."""
    measured = sorted(results, key=lambda said: not said["gpu"])
    if not measured:
        return ["Not measured yet: `python benchmarks/bench_host_cost.py` does."]
    parts = [
        "Time until a call returns, however long the GPU then takes. `km.ops` goes round torch's dispatcher; "
        "`torch.ops` is the same op as torch.compile and the profiler see it.",
    ]
    for said in measured:
        parts += _machine(said)
    return parts


def _machine(said: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in said["versions"].items())
    where = f"{text(said['device'])}, on {text(said['host'])}" if said["gpu"] else f"{text(said['host'])}, no GPU"
    stand_in = "" if said["gpu"] else " The kernel behind kernelmux does nothing here; torch's ops compute."
    size = said["rows"][0]
    names = list(dict.fromkeys(who for row in said["rows"] for who in row["median_ns"]))
    names.sort(key=lambda who: (who not in _KERNELMUX, _KERNELMUX.index(who) if who in _KERNELMUX else 0))
    body = [[text(who), *(_cell(row, who) for row in said["rows"])] for who in names]
    head = ["µs a call (share of relu with out=)", *(code(row["op"]) for row in said["rows"])]
    pieces = "; ".join(f"{text(what)} {ns:.0f}" for what, ns in said["parts_ns"].items())
    return [
        f"{where}; {versions}; {said['mode']}, M={size['M']}, H={size['H']}, {size['dtype']}. Medians of "
        f"{said['rounds']} batches of {said['batch']} calls, contestants in turns.{stand_in}",
        table(head, body, right=range(1, len(head))),
        *(_judged(row) for row in said["rows"] if said["gpu"]),
        f"What a call of `km.ops` spends before the kernel's own launch, in ns: {pieces}.",
    ]


def _cell(row: Mapping[str, Any], who: str) -> str:
    ns = row["median_ns"].get(who)
    return "" if ns is None else f"{ns / 1000:.2f} ({ns / row['median_ns'][row['base']]:.2f})"


def _judged(row: Mapping[str, Any]) -> str:
    words = [
        f"{text(who)} {'is within' if target['met'] else 'misses'} {target['at_most']:g} times {text(row['base'])} "
        f"({target['share']:.2f})"
        for who, target in row["targets"].items()
    ]
    return f"{code(row['op'])} with {code(row['kernel'])}: {'; '.join(words)}."
