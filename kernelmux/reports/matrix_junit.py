"""JUnit XML of a matrix, as CI systems read it: a suite an op, a test a cell, every red cell with its explanation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

from kernelmux.reports.matrix import OK, RED, SKIPPED, UNKNOWN, Cell, Matrix

if TYPE_CHECKING:
    from kernelmux.reports.matrix_allow import Verdict

# What XML 1.0 cannot hold, not even escaped.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def page(matrix: Matrix, verdict: Verdict | None = None) -> str:
    """The document; with a comparison also a suite of its changes. A cell without a kernel is skipped, with why."""
    suites: dict[str, list[str]] = {}
    bad: dict[str, list[int]] = {}
    for cell in matrix.cells:
        name = f"{cell.case.op} {cell.kind}"
        markup, kind = _case(cell, name)
        suites.setdefault(name, []).append(markup)
        tally = bad.setdefault(name, [0, 0, 0])
        if kind is not None:
            tally[kind] += 1
    if verdict is not None:
        suites["changes"], bad["changes"] = _changes(verdict), [len(verdict.against), 0, len(verdict.allowed)]
    body = "\n".join(_suite(name, tests, bad[name], matrix.header.created) for name, tests in suites.items())
    totals = [sum(tally[i] for tally in bad.values()) for i in range(3)]
    tests = sum(map(len, suites.values()))
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<testsuites name="kernelmux matrix" tests="{tests}" failures="{totals[0]}" errors="{totals[1]}" '
        f'skipped="{totals[2]}">\n{body}\n</testsuites>\n'
    )


def _suite(name: str, tests: Sequence[str], tally: Sequence[int], when: str) -> str:
    stamp = when.rstrip("Z")
    inside = "\n".join(tests)
    return (
        f'<testsuite name={_attribute(name)} tests="{len(tests)}" failures="{tally[0]}" errors="{tally[1]}" '
        f'skipped="{tally[2]}" timestamp={_attribute(stamp)}>\n{inside}\n</testsuite>'
    )


def _case(cell: Cell, suite: str) -> tuple[str, int | None]:
    """The test, and whether it is a failure (0), an error (1) or skipped (2)."""
    outcome, result = cell.outcome, cell.result
    inside, kind = "", None
    if result is None and outcome.kernel is None:
        inside, kind = _skipped(outcome.why), 2
    elif result is not None and result.status in (UNKNOWN, SKIPPED):
        inside, kind = _skipped(result.explanation), 2
    elif result is not None and result.status in RED:
        kind = 0 if result.status == "wrong" else 1
        tag = ("failure", "error")[kind]
        first = f"{result.status}: {result.explanation}"
        inside = f"<{tag} message={_attribute(first)} type={_attribute(result.status)}>{_text(first)}</{tag}>"
    elif result is not None and result.status == OK and result.time_us is not None:
        time = result.time_us
        inside = f"<system-out>{_text(f'{time.median:.2f} us ({time.low:.2f}..{time.high:.2f})')}</system-out>"
    elif outcome.kernel is not None and result is None:
        inside = f"<system-out>{_text(f'{outcome.kernel} ({outcome.evidence}): {outcome.why}')}</system-out>"
    took = 0.0 if result is None or result.seconds is None else result.seconds
    name = cell.title.removeprefix(f"{cell.case.op} ")
    place = _attribute("kernelmux." + suite.replace(" ", "."))
    head = f'<testcase classname={place} name={_attribute(name)} time="{took:.3f}"'
    return (f"{head}>{inside}</testcase>" if inside else f"{head}/>"), kind


def _changes(verdict: Verdict) -> list[str]:
    tests = []
    for change in verdict.against:
        words = f"{change.words}: {change.was} -> {change.now}"
        failure = f"<failure message={_attribute(words)} type={_attribute(change.code)}>{_text(words)}</failure>"
        tests.append(_test(f"{change.code} {change.key}", failure))
    for change, entry in verdict.allowed:
        tests.append(_test(f"{change.code} {change.key}", _skipped(f"allowed: {entry.reason}")))
    return tests or [_test("no change", "")]


def _test(name: str, inside: str) -> str:
    return f'<testcase classname="kernelmux.changes" name={_attribute(name)} time="0.000">{inside}</testcase>'


def _skipped(why: str) -> str:
    return f"<skipped message={_attribute(why)}/>"


def _clean(value: str) -> str:
    return _FORBIDDEN.sub("\ufffd", value)


def _attribute(value: str) -> str:
    return quoteattr(" ".join(_clean(value).split()))


def _text(value: str) -> str:
    return escape(_clean(value))
