"""A matrix in Markdown: a summary that fits a pull request or a CI job's page, never all cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from kernelmux.reports.markdown import code, table, text
from kernelmux.reports.matrix import RED, Cell, Header, Matrix
from kernelmux.reports.matrix_diff import CODES, Change
from kernelmux.reports.words import NONE, count, number, seconds

if TYPE_CHECKING:
    from kernelmux.reports.matrix_allow import Verdict

_MOST_NAMED = 6  # devices of one line
_MOST_LINES = 40  # of one list
_MOST_CHANGES, _MOST_WORDS = 12, 160  # lines of one kind of change; characters of what was and what is
STEP_SUMMARY_BYTES = 1_000_000  # GitHub takes 1 MiB a step


def page(matrix: Matrix) -> str:
    """The whole document: totals, what is chosen where, how kernels did, what is red."""
    head = matrix.header
    parts = [f"# Matrix of kernelmux {text(head.kernelmux)}", _setting(head), _totals(matrix)]
    parts += [_chosen([cell for cell in matrix.cells if cell.kind == "chosen"], head)] if "chosen" in head.kinds else []
    red = [cell for cell in matrix.cells if cell.result is not None and cell.result.status in RED]
    parts += [_red(red)] if red else []
    parts += [_live([cell for cell in matrix.cells if cell.kind == "live"])] if "live" in head.kinds else []
    parts += [_compiled([c for c in matrix.cells if c.kind == "compiled"])] if "compiled" in head.kinds else []
    return "\n\n".join(part for part in parts if part) + "\n"


def _setting(head: Header) -> str:
    said = f"Made {text(head.created)}; packages: {text(head.packages.title)}."
    if head.compilers:
        said += " Compilers: " + ", ".join(f"{text(name)} {text(v)}" for name, v in head.compilers.items()) + "."
    if head.shard is not None:
        said += f" Shard {head.shard.index} of {head.shard.of}."
    if head.filters:
        said += " Only " + ", ".join(map(code, head.filters)) + "."
    return said


def _totals(matrix: Matrix) -> str:
    told = ", ".join(f"{count(n, 'cell')} {text(word)}" for word, n in sorted(matrix.counts().items()))
    devices, ops = len({cell.device for cell in matrix.cells}), len({cell.case.op for cell in matrix.cells})
    took = f", made in {seconds(matrix.header.seconds)}" if matrix.header.seconds is not None else ""
    return f"**{count(len(matrix.cells), 'cell')}**: {count(ops, 'op')} on {count(devices, 'device')}{took}: {told}."


def _chosen(cells: Sequence[Cell], head: Header) -> str:
    """One line an op, scheme and variant: backend -> the devices it is chosen on."""
    rows = []
    by_case: dict[tuple[str, str, str], dict[str, dict[str, None]]] = {}
    for cell in cells:
        case = cell.case
        backends = by_case.setdefault((case.op, case.scheme, case.variant), {})
        backends.setdefault(cell.outcome.backend or "no kernel", {})[cell.device] = None
    for (op, scheme, variant), backends in by_case.items():
        told = "; ".join(f"**{text(backend)}** {_names([*devices])}" for backend, devices in backends.items())
        rows.append([text(op), text(scheme), text(variant or NONE), told])
    return "## What would be chosen\n\n" + table(["op", "scheme", "variant", "backend and devices"], rows)


def _names(devices: Sequence[str]) -> str:
    shown = ", ".join(map(text, devices[:_MOST_NAMED]))
    return f"{shown} and {len(devices) - _MOST_NAMED} more" if len(devices) > _MOST_NAMED else shown


def _red(cells: Sequence[Cell]) -> str:
    lines = [
        f"- {text(cell.title)}: **{text(cell.result.status)}**: {text(cell.result.explanation)}"
        for cell in cells
        if cell.result is not None
    ]
    return "## What failed\n\n" + "\n".join(_cut(lines))


def _live(cells: Sequence[Cell]) -> str:
    rows = []
    for cell in cells:
        result = cell.result
        if result is None:
            continue
        time = result.time_us
        rows.append(
            [
                text(cell.title.partition(": ")[0]), code(cell.outcome.kernel or NONE), text(result.status),
                NONE if time is None else f"{number(time.median)} ({number(time.low)}..{number(time.high)})",
                NONE if result.roofline_percent is None else f"{result.roofline_percent:.1f}%",
                NONE if result.peak_bytes is None else f"{result.peak_bytes / 1e6:,.2f}",
                _yes(result.capture), _yes(result.deterministic),
                NONE if result.first_call_ms is None else f"{result.first_call_ms:,.0f}",
            ]
        )  # fmt: skip
    names = ["problem", "kernel", "status", "us (95%)", "roofline", "MB at peak", "graph", "deterministic", "first ms"]
    return "## How kernels did here\n\n" + table(names, rows, right=(3, 4, 5, 8))


def _compiled(cells: Sequence[Cell]) -> str:
    rows = []
    for cell in cells:
        result = cell.result
        if result is None:
            continue
        facts = (result.registers, result.spills, result.shared_bytes)
        numbers = [NONE if value is None else f"{value:,}" for value in facts]
        note = text(result.explanation) if result.status != "ok" else ""
        rows.append([code(cell.outcome.kernel or NONE), text(cell.device), text(result.status), *numbers, note])
    names = ["kernel", "device", "status", "registers", "spills", "shared B", ""]
    return "## What compiles\n\n" + table(names, rows, right=(3, 4, 5))


def _yes(value: bool | None) -> str:
    return NONE if value is None else "yes" if value else "no"


def _cut(lines: Sequence[str], most: int = _MOST_LINES) -> list[str]:
    if len(lines) <= most:
        return list(lines)
    return [*lines[:most], f"- and {len(lines) - most} more, in the JSON."]


def _short(words: str) -> str:
    return text(words if len(words) <= _MOST_WORDS else f"{words[: _MOST_WORDS - 3]}...")


# -- changes


def changes(verdict: Verdict, notes: Iterable[str] = ()) -> str:
    """A short text for a pull request: what counts, what is allowed and why, what is better."""
    against = verdict.against
    if against:
        head = f"**{count(len(against), 'change')}** against the baseline"
    else:
        head = "**No change** against the baseline"
    if verdict.allowed:
        head += f", {count(len(verdict.allowed), 'more is', 'more are')} allowed"
    if verdict.better:
        head += f", {count(len(verdict.better), 'cell')} better"
    parts = [head + "."]
    noted = [f"- {text(note)}" for note in notes]
    parts += ["\n".join(_cut(noted))] if noted else []
    for name, group in _by_code(against).items():
        parts.append(
            f"### {CODES[name][0].upper()}{CODES[name][1:]} ({len(group)})\n\n"
            + "\n".join(_cut(_lines(group), _MOST_CHANGES))
        )
    if verdict.allowed:
        reasons: dict[str, int] = {}
        for _, entry in verdict.allowed:
            reasons[entry.reason] = reasons.get(entry.reason, 0) + 1
        lines = [f"- {text(reason)} ({n})" for reason, n in reasons.items()]
        parts.append("### Allowed\n\n" + "\n".join(_cut(lines)))
    if verdict.better:
        parts.append("### Better\n\n" + "\n".join(_cut(_lines(verdict.better), _MOST_CHANGES)))
    if verdict.idle:
        lines = [f"- {text(entry.where)}: {text(entry.reason)}" for entry in verdict.idle]
        parts.append("### Entries that allow nothing any more\n\n" + "\n".join(_cut(lines)))
    return "\n\n".join(parts) + "\n"


def _by_code(found: Iterable[Change]) -> dict[str, list[Change]]:
    groups: dict[str, list[Change]] = {}
    for name in CODES:
        group = [change for change in found if change.code == name]
        if group:
            groups[name] = group
    return groups


def _lines(found: Iterable[Change]) -> list[str]:
    """A line for all cells of one op that changed alike."""
    groups: dict[tuple[str, str, str, str], dict[str, dict[int, None]]] = {}
    for change in found:
        cell = change.cell
        if cell is None:
            groups.setdefault((text(change.key), "", change.was, change.now), {})
            continue
        case = cell.case
        words = " ".join(word for word in (case.op, "" if case.scheme == "none" else case.scheme, case.variant) if word)
        kernel = (cell.outcome.kernel or "") if cell.kind != "chosen" else ""
        where = groups.setdefault((text(words), kernel, change.was, change.now), {})
        where.setdefault(cell.device, {})[cell.m] = None
    lines = []
    for (words, kernel, was, now), where in groups.items():
        ms = sorted({m for counts in where.values() for m in counts if m})
        place = f" on {_names([*where])}" if where else ""
        place += f", M={','.join(map(str, ms))}" if ms else ""
        kernel = f", {code(kernel)}" if kernel else ""
        became = " -> ".join(_short(part) for part in (was, now) if part)
        lines.append(f"- **{words}**{kernel}{place}: {became}")
    return lines
