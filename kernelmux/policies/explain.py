"""A Selection in words: the choice, its conditions, and a table of every candidate."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernelmux.policies.selection import Selection

WIDTH = 118
_HEAD = ("", "backend", "kernel", "verdict", "why")


def explain(selection: Selection) -> str:
    """Plain text, at most WIDTH columns where the names allow it."""
    device = selection.device
    lines = [
        f"{selection.problem.brief()} on {device.name} ({device.capability or device.arch})",
        f"-> {selection.backend}: {selection.kernel}",
        f"   {selection.source}" + (f" (rule {selection.rule})" if selection.rule else "") + f": {selection.why}",
        f"   evidence on this GPU: {selection.evidence}",
    ]
    if selection.policy_rule is not None and selection.policy_rule.evidence:
        lines.append(f"   see {selection.policy_rule.evidence}")
    if selection.configs is not None:
        path = f" ({selection.config_path})" if selection.config_path else ""
        config = "" if selection.config is None else f": {_short(selection.config)}"
        lines.append(f"   config {selection.config_source}, {selection.config_grade}{config}")
        lines.append(f"   {selection.configs.why}{path}")
    lines += [f"   if: {condition}" for condition in selection.conditions]
    return "\n".join([*lines, "", *_table(_rows(selection))])


def _short(config: Any) -> str:
    """A configuration in a few words: its own ``short()``, or that of each part of it."""
    short = getattr(config, "short", None)
    if callable(short):
        return str(short())
    parts = getattr(config, "__dataclass_fields__", None) or {}
    return ", ".join(f"{name} {_short(getattr(config, name))}" for name in parts) or str(config)


def _rows(selection: Selection) -> list[tuple[str, str, str, str, str]]:
    rows = [("*", selection.backend, selection.kernel, "chosen", selection.why)]
    for other in selection.outranked:
        conditions = f"; if: {'; '.join(other.conditions)}" if other.conditions else ""
        rows.append(("+", other.backend, other.kernel, "outranked", f"by {other.by}{conditions}"))
    for refused in selection.rejected:
        for number, reason in enumerate(refused.decision.every()):
            words = f"{reason.reason}. Remedy: {reason.remedy}." + (f" {reason.link}" if reason.link else "")
            name = (refused.backend, refused.kernel, "rejected") if number == 0 else ("", "", "and")
            rows.append(("-" if number == 0 else "", *name, words))
    return rows


def _table(rows: list[tuple[str, str, str, str, str]]) -> list[str]:
    widths = [max(len(row[column]) for row in (_HEAD, *rows)) for column in range(4)]
    room = max(40, WIDTH - sum(widths) - 8)
    lines = []
    for row in (_HEAD, *rows):
        for number, part in enumerate(wrap(row[4], room, break_long_words=False) or [""]):
            cells = row[:4] if number == 0 else ("", "", "", "")
            lines.append(
                "  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)), part]).rstrip()
            )
    lines.insert(1, "  ".join("-" * width for width in (*widths, room)).rstrip())
    return lines
