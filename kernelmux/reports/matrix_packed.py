"""Packed JSON of a matrix: each text, reason, case and outcome once, so that 50,000 cells are a few megabytes.

The form is described in ``kernelmux.reports.matrix``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from kernelmux.errors import UsageError
from kernelmux.reports.matrix import KINDS, SCHEMA, Case, Cell, Header, Matrix, Other, Outcome, Rejection, Result

T = TypeVar("T")

OUTCOME_FIELDS = Outcome.__struct_fields__
TEXT_FIELDS = OUTCOME_FIELDS[:10]
CELL_FIELDS = ("case", "device", "m", "kind", "outcome", "result")


class Packed(msgspec.Struct, frozen=True):
    """Packed JSON, with its types checked."""

    header: Header
    texts: tuple[str, ...]
    reasons: tuple[tuple[int, int, int, int, int, int], ...]
    cases: tuple[dict[str, Any], ...]
    outcomes: tuple[tuple[Any, ...], ...]
    results: tuple[Result, ...]
    cells: tuple[tuple[int, int, int, int, int, int], ...]


class _Table:
    """Values in the order first seen, each once."""

    def __init__(self) -> None:
        self.rows: dict[Any, int] = {}

    def at(self, value: Any) -> int:
        """Where it is; -1 for None."""
        return -1 if value is None else self.rows.setdefault(value, len(self.rows))


def pack(matrix: Matrix) -> dict[str, Any]:
    """The matrix with each text, reason, case and outcome once."""
    texts, reasons, cases, outcomes, devices = _Table(), _Table(), _Table(), _Table(), _Table()
    for device in matrix.header.devices:
        devices.at(device.name)
    results: list[Any] = []
    cells = []
    for cell in matrix.cells:
        row = [
            cases.at(cell.case), devices.at(cell.device), cell.m, KINDS.index(cell.kind), outcomes.at(cell.outcome),
            -1 if cell.result is None else len(results),
        ]  # fmt: skip
        if cell.result is not None:
            results.append(msgspec.to_builtins(cell.result))
        cells.append(row)
    if len(devices.rows) > len(matrix.header.devices):
        raise UsageError("a cell speaks of a device that the header does not list.")
    rows = []
    for outcome in outcomes.rows:
        words = [texts.at(getattr(outcome, name)) for name in TEXT_FIELDS]
        others = [[texts.at(one.backend), texts.at(one.kernel), texts.at(one.by)] for one in outcome.outranked]
        rows.append([*words, [*map(texts.at, outcome.conditions)], others, [*map(reasons.at, outcome.rejected)]])
    listed = [[texts.at(getattr(reason, name)) for name in Rejection.__struct_fields__] for reason in reasons.rows]
    return {
        "schema": SCHEMA, "form": "packed", "header": msgspec.to_builtins(matrix.header), "texts": [*texts.rows],
        "reasons": listed, "cases": [{**msgspec.to_builtins(case), "shape": dict(case.shape)} for case in cases.rows],
        "outcomes": rows, "results": results, "cells": cells,
    }  # fmt: skip


def unpack(packed: Packed) -> Matrix:
    """The matrix again. Raises IndexError, TypeError or ValueError for indices that lead nowhere."""

    def at(table: Sequence[T], index: int) -> T:
        if index < 0:
            raise IndexError(index)
        return table[index]

    def text(index: int) -> str | None:
        return None if index == -1 else at(packed.texts, index)

    def sure(index: int) -> str:
        return at(packed.texts, index)

    reasons = [
        Rejection(sure(b), sure(k), sure(c), sure(why), sure(fix), text(link))
        for b, k, c, why, fix, link in packed.reasons
    ]
    outcomes = []
    for row in packed.outcomes:
        *words, conditions, others, rejected = row
        named = dict(zip(TEXT_FIELDS, map(text, words), strict=True))
        outcomes.append(
            Outcome(
                **{**named, "why": named["why"] or ""},  # type: ignore[arg-type]
                conditions=tuple(map(sure, conditions)),
                outranked=tuple(Other(*map(sure, other)) for other in others),
                rejected=tuple(at(reasons, index) for index in rejected),
            )
        )
    cases = [_case(case) for case in packed.cases]
    names = [device.name for device in packed.header.devices]
    return Matrix(
        packed.header,
        tuple(
            Cell(
                at(cases, case), at(names, device), m, at(outcomes, outcome), at(KINDS, kind),
                None if result == -1 else at(packed.results, result),
            )
            for case, device, m, kind, outcome, result in packed.cells
        ),
    )  # fmt: skip


def _case(raw: Mapping[str, Any]) -> Case:
    return msgspec.convert({**raw, "shape": tuple(raw["shape"].items())}, Case)


def interned(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """The cells with equal outcomes, cases and rejections as one object each."""
    seen: dict[Any, Any] = {}
    one: Callable[[Any], Any] = lambda value: seen.setdefault(value, value)  # noqa: E731
    return tuple(msgspec.structs.replace(cell, case=one(cell.case), outcome=one(cell.outcome)) for cell in cells)
