"""What changed between two matrices, cell by cell: a baseline and a new one.

A change has a code of CODES. Those of BETTER are told and never fail. Times differ only beyond the noise: the medians
by more than SLOWER, and by more than NOISE times both half intervals together, so that the runs of one tree agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kernelmux.errors import UsageError
from kernelmux.reports.matrix import OK, RED, SKIPPED, UNKNOWN, Cell, Matrix, OpFacts, Result, TimeUs
from kernelmux.reports.matrix_cases import Filter, takes_cell
from kernelmux.reports.words import number, signed

CODES = {
    "new": "new", "gone": "gone", "chosen": "chosen differently", "decided": "decided otherwise",
    "runner-up": "another runner-up", "candidate": "can run now", "rejected": "can no longer run",
    "reason": "rejected for another reason", "numerics": "runs as another scheme", "config": "another configuration",
    "condition": "another condition", "evidence-lost": "evidence lost", "contract": "the op's contract",
    "wrong": "no longer right", "error": "fails now", "crash": "crashes now", "hang": "hangs now",
    "not-run": "no longer run", "slower": "slower", "accuracy": "less accurate", "memory": "more memory",
    "capture-lost": "no longer captured in a graph", "determinism-lost": "no longer deterministic",
    "registers": "more registers", "spills": "spills more", "shared": "more shared memory",
    "evidence-gained": "evidence gained", "faster": "faster", "fixed": "mended",
}  # fmt: skip
BETTER = frozenset({"evidence-gained", "faster", "fixed"})

SLOWER = 0.07  # a median moves by 1% from run to run (clocks, placement), so two of one tree by 1.4%: five times that
NOISE = 1.6  # times the sum of both 95% half intervals: 4.5 standard deviations, so that thousands of cells agree
LESS_ACCURATE = 1.5  # times the worst error; below a tenth of what is allowed nobody minds
MORE_MEMORY = 1.1
_RANK = {"measured": 3, "compiled": 2, "declared": 1, None: 0}


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that differs in one cell. ``was`` and ``now`` are words; ``key`` and ``where`` are the cell's."""

    code: str
    key: str
    was: str
    now: str
    cell: Cell | None = None  # the new one, or the old one where it is gone
    op: str = ""

    @property
    def better(self) -> bool:
        return self.code in BETTER

    @property
    def words(self) -> str:
        return CODES[self.code]

    def to_json(self) -> dict[str, Any]:
        return {"change": self.code, "cell": self.key, "was": self.was, "now": self.now}


def compare(baseline: Matrix, matrix: Matrix) -> list[Change]:
    """Every change, in the order of the cells. Cells that the other run was not asked for are not compared.

    Raises UsageError for a shard: the rest of it would count as gone.
    """
    for name, one in (("baseline", baseline), ("matrix", matrix)):
        if one.header.shard is not None:
            told = f"{one.header.shard.index}/{one.header.shard.of}"
            raise UsageError(f"the {name} is shard {told}. Merge the shards first: kernelmux matrix merge FILE...")
    before, after = _asked(baseline, matrix), _asked(matrix, baseline)
    if not before or not after:
        raise UsageError(
            "the baseline and this matrix have no cell in common: they were made of other kinds or with other filters."
        )
    changes = list(_contracts(baseline, matrix))
    for key, cell in after.items():
        old = before.get(key)
        changes += [Change("new", key, "", _brief(cell), cell)] if old is None else _cell(key, old, cell)
    changes += [Change("gone", key, _brief(old), "", old) for key, old in before.items() if key not in after]
    return changes


def _asked(one: Matrix, other: Matrix) -> dict[str, Cell]:
    """The cells of one that the other run was asked for too."""
    filters = [Filter.parse(text) for text in other.header.filters]
    kinds = set(other.header.kinds)
    return {cell.key: cell for cell in one.cells if cell.kind in kinds and takes_cell(filters, cell)}


def _contracts(baseline: Matrix, matrix: Matrix) -> Iterator[Change]:
    before = {op.name: op for op in baseline.header.ops}
    for op in matrix.header.ops:
        old = before.get(op.name)
        if old is not None:
            for what, was, now in _contract(old, op):
                yield Change("contract", op.name, f"{what} {was}", f"{what} {now}", None, op.name)


def _contract(old: OpFacts, op: OpFacts) -> Iterator[tuple[str, str, str]]:
    for dtype in dict.fromkeys((*old.tolerance, *op.tolerance)):
        was, now = old.tolerance.get(dtype), op.tolerance.get(dtype)
        if was != now:
            yield f"tolerance of {dtype}", _tolerance(was), _tolerance(now)
    for what in ("schemes", "dtypes"):
        words = [", ".join(sorted(getattr(one, what))) for one in (old, op)]
        if words[0] != words[1]:
            yield what, words[0], words[1]


def _tolerance(value: tuple[float, float] | None) -> str:
    return "none" if value is None else f"{value[0]:g} relative, {value[1]:g} absolute"


def _cell(key: str, old: Cell, new: Cell) -> list[Change]:
    found = [*_decision(old, new)] if new.kind == "chosen" else [*_evidence(old, new)]
    if old.result is not None and new.result is not None:
        found += _result(old.result, new.result)
    return [Change(code, key, was, now, new) for code, was, now in found]


def _decision(old: Cell, new: Cell) -> Iterator[tuple[str, str, str]]:
    was, now = old.outcome, new.outcome
    if was.kernel != now.kernel:
        yield "chosen", _name(was.kernel, was.evidence), f"{_name(now.kernel, now.evidence)}: {now.why}"
    else:
        yield from _evidence(old, new)
        if (was.source, was.rule) != (now.source, now.rule):
            yield "decided", f"{was.source} {was.rule or ''}".strip(), f"{now.source} {now.rule or ''}: {now.why}"
        if was.runs_as != now.runs_as:
            yield "numerics", str(was.runs_as), str(now.runs_as)
        if (was.config_source, was.config_grade) != (now.config_source, now.config_grade):
            yield "config", _config(was.config_source, was.config_grade), _config(now.config_source, now.config_grade)
        if was.conditions != now.conditions:
            yield "condition", "; ".join(was.conditions) or "none", "; ".join(now.conditions) or "none"
    old_second, new_second = (o.outranked[0].kernel if o.outranked else None for o in (was, now))
    if old_second != new_second:
        yield "runner-up", old_second or "none", new_second or "none"
    refused_before, refused_now = _refused(old), _refused(new)
    able_before, able_now = _able(old), _able(new)
    for kernel in sorted(able_now & refused_before.keys()):
        yield "candidate", f"{kernel} was rejected ({', '.join(sorted(refused_before[kernel]))})", f"{kernel} can run"
    for kernel in sorted(able_before & refused_now.keys()):
        yield "rejected", f"{kernel} could run", f"{kernel} is rejected ({', '.join(sorted(refused_now[kernel]))})"
    for kernel in sorted(refused_before.keys() & refused_now.keys()):
        if refused_before[kernel] != refused_now[kernel]:
            words = (", ".join(sorted(codes)) for codes in (refused_before[kernel], refused_now[kernel]))
            yield "reason", f"{kernel}: {next(words)}", next(words)
    for kernel in sorted((able_now | refused_now.keys()) - (able_before | refused_before.keys())):
        yield "candidate" if kernel in able_now else "reason", "", f"{kernel} is new"
    for kernel in sorted((able_before | refused_before.keys()) - (able_now | refused_now.keys())):
        yield "rejected", f"{kernel} was there", f"{kernel} is not declared any more"


def _able(cell: Cell) -> set[str]:
    own = {cell.outcome.kernel} if cell.outcome.kernel else set()
    return own | {other.kernel for other in cell.outcome.outranked}


def _refused(cell: Cell) -> Mapping[str, set[str]]:
    found: dict[str, set[str]] = {}
    for reason in cell.outcome.rejected:
        found.setdefault(reason.kernel, set()).add(reason.code)
    return found


def _evidence(old: Cell, new: Cell) -> Iterator[tuple[str, str, str]]:
    was, now = old.outcome.evidence, new.outcome.evidence
    if _RANK.get(was, 0) != _RANK.get(now, 0):
        lost = _RANK.get(now, 0) < _RANK.get(was, 0)
        yield "evidence-lost" if lost else "evidence-gained", str(was or "none"), str(now or "none")


def _result(old: Result, new: Result) -> Iterator[tuple[str, str, str]]:
    if old.status != new.status:
        now = f"{new.status}: {new.explanation}" if new.explanation else new.status
        if new.status == OK:
            yield "fixed", f"{old.status}: {old.explanation}", OK
        elif new.status in (UNKNOWN, SKIPPED):
            yield "not-run", old.status, now
        else:
            yield new.status, old.status, now
    if new.status in RED or old.status in RED:
        return
    yield from _times(old.time_us, new.time_us)
    if old.error is not None and new.error is not None and new.error > max(LESS_ACCURATE * old.error, 0.1):
        yield "accuracy", f"{old.error:.3g} of the error allowed", f"{new.error:.3g} of it"
    height = None if old.peak_bytes is None else max(MORE_MEMORY * old.peak_bytes, old.peak_bytes + (64 << 10))
    if height is not None and new.peak_bytes is not None and new.peak_bytes > height:
        yield "memory", f"{old.peak_bytes:,} B", f"{new.peak_bytes:,} B"
    for code, name in (("capture-lost", "capture"), ("determinism-lost", "deterministic")):
        if getattr(old, name) is True and getattr(new, name) is False:
            yield code, "yes", "no"
    for code, name, slack in (("registers", "registers", 8), ("spills", "spills", 0), ("shared", "shared_bytes", 0)):
        was, now_ = getattr(old, name), getattr(new, name)
        if was is not None and now_ is not None and now_ > was + slack:
            yield code, str(was), str(now_)


def _times(old: TimeUs | None, new: TimeUs | None) -> Iterator[tuple[str, str, str]]:
    if old is None or new is None or old.median <= 0:
        return
    change = new.median / old.median - 1
    noise = NOISE * ((old.high - old.low) / (2 * old.median) + (new.high - new.low) / (2 * new.median))
    if abs(change) > max(SLOWER, noise):
        words = f"{number(new.median)} us ({signed(change)})"
        yield "slower" if change > 0 else "faster", f"{number(old.median)} us", words


def _brief(cell: Cell) -> str:
    if cell.result is not None:
        return f"{cell.outcome.kernel}: {cell.result.status}"
    return _name(cell.outcome.kernel, cell.outcome.evidence)


def _name(kernel: str | None, evidence: str | None) -> str:
    return "no kernel" if kernel is None else f"{kernel} ({evidence})"


def _config(source: str | None, grade: str | None) -> str:
    return f"{source}, {grade}" if source else "none"


def setting(baseline: Matrix, matrix: Matrix) -> list[str]:
    """What else differs between the runs, for people who wonder why: versions and drivers."""
    notes = []
    old, new = baseline.header, matrix.header
    if old.kernelmux != new.kernelmux:
        notes.append(f"kernelmux {old.kernelmux} -> {new.kernelmux}")
    versions = dict.fromkeys((*old.packages.versions, *new.packages.versions))
    for name in sorted(versions):
        was, now = old.packages.versions.get(name), new.packages.versions.get(name)
        if was != now:
            notes.append(f"{name} {was or 'not there'} -> {now or 'not there'}")
    notes += [
        f"{name} (compiler) {old.compilers.get(name)} -> {new.compilers.get(name)}"
        for name in sorted(dict.fromkeys((*old.compilers, *new.compilers)))
        if old.compilers.get(name) != new.compilers.get(name) and old.compilers and new.compilers
    ]
    drivers = {device.name: device.driver for device in old.devices}
    for device in new.devices:
        was = drivers.get(device.name)
        if was and device.driver and was != device.driver:
            notes.append(f"driver of {device.name} {was} -> {device.driver}")
    return notes
