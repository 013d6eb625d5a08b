"""What a probe does with one kernel on a live device: check it, time it, capture it, weigh it.

Phases that only use the processor need no leave; those that use the GPU share a lock file, and timing has it alone, so
that several probes at once disturb no time. Imported only in a probe: it imports torch.
"""

from __future__ import annotations

import fcntl
import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernelmux.measure.child import one_line
from kernelmux.policies.selection import Selection
from kernelmux.registry.packages import Packages
from kernelmux.reports.matrix_calls import (
    Calls,
    decode_of,
    exact_products,
    filled,
    litter,
    on_cpu,
    results_of,
    same,
    summary,
    work_of,
)
from kernelmux.reports.matrix_probe import Pipe
from kernelmux.trust.judge import SLACK, Finding, judge
from kernelmux.trust.subject import Subject, place
from kernelmux.trust.subjects import subjects

# Beside the cell's own M: no row, one, odd ones, one over a tile; mixed rows of zeros, large and tiny values.
GRID = ((0, False), (1, False), (3, False), (8, False), (33, True), (65, False), (129, True), (257, False))
_ROOM = 1 << 30  # elements of the weights of one layer
WAIT_S = 900.0  # for the GPU, while other probes have it
CHECK_S, FIRST_S, TIME_S = 2.0, 5.0, 2.0
"""How many times the limit of a step: references are slow, and a first call compiles."""


TRUST = {"checked": True}  # the gate would check it too, and keep what it found


class _Same:
    """One configuration for every number of tokens; all else is that of the choice it is from."""

    def __init__(self, choice: Any, config: Any):
        self._choice, self._config = choice, config

    def at(self, m: int) -> Any:
        return self._config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._choice, name)


class Wrong(Exception):
    """A result that the reference does not bear out."""


@dataclass(slots=True)
class Checked:
    """What the comparisons with the reference came to."""

    calls: int = 0
    error: float = 0.0  # the worst share of the op's tolerance
    skipped: int = 0  # calls that the kernel says it does not do

    def take(self, finding: Finding, where: str) -> None:
        self.calls += 1
        share = finding.share * SLACK
        self.error = max(self.error, share) if share == share else float("inf")
        if finding.fault:
            raise Wrong(f"{where}: {finding.fault}")


def probe(job: Mapping[str, Any], pipe: Pipe) -> None:
    """Answer for every cell of the job, in order."""
    import msgspec

    from kernelmux.device import resolve_device
    from kernelmux.registry.discovery import registry
    from kernelmux.reports.matrix import Case
    from kernelmux.reports.matrix_static import Chooser

    case = msgspec.convert({**job["case"], "shape": tuple(map(tuple, job["case"]["shape"]))}, Case)
    pipe.at("looking at the device", job["start_s"])
    device = resolve_device(job["device"])
    chooser = Chooser(registry(), Packages.installed())
    leave = Leave(job["lock"], pipe)
    if device.vendor != "cpu":
        torch.cuda.set_device(device.index or 0)
        torch.cuda.init()
        torch.zeros(1, device="cuda")
    general = Checked()
    fault: str | None = "" if job["again"] else None  # None: the grid is still to be checked
    for cell in job["cells"]:
        m = job["ms"][cell - job["first"]]
        begun = time.perf_counter()
        result: dict[str, Any]
        try:
            chosen = chooser.select(case, device, m, job["kernel"]).but(_by_tokens={}, _state=dict(TRUST))
            with torch.no_grad():
                trial = Trial(chosen, m, leave, pipe, job["limit_s"])
                if trial.subject is None:
                    fault = _grid(chosen, leave, job["limit_s"], general) if fault is None else fault
                    result = _untimed(fault, general)
                else:
                    trial.first_call()
                    if fault is None:
                        fault = _grid(chosen, leave, job["limit_s"], general)
                    result = trial.result(fault, general)
        except Exception as error:  # whatever it raises is a fact about this kernel
            result = {"status": "error", "explanation": one_line(error)}
        result["seconds"] = round(time.perf_counter() - begun, 3)
        dead = _context_is_gone(device)
        if dead and result["status"] == "ok":
            result |= {"status": "error", "explanation": dead}
        pipe.result(cell, result)
        if dead:
            pipe.again()
            return
        gc.collect()
        if device.vendor != "cpu":
            torch.cuda.empty_cache()


class Leave:
    """Leave to use the GPU: shared, or alone."""

    def __init__(self, path: str | None, pipe: Pipe):
        self._file = open(path, "a") if path else None  # noqa: SIM115  (it lives as long as the probe)
        self._turn = open(f"{path}.turn", "a") if path else None  # noqa: SIM115
        self._pipe = pipe

    @contextmanager
    def shared(self, words: str, limit_s: float) -> Iterator[None]:
        """Others may use it too. ``words`` say what for, and how long that may take."""
        with self._held(fcntl.LOCK_SH, words, limit_s):
            yield

    @contextmanager
    def alone(self, words: str, limit_s: float) -> Iterator[None]:
        """Nobody else uses it."""
        with self._held(fcntl.LOCK_EX, words, limit_s):
            yield

    @contextmanager
    def _held(self, how: int, words: str, limit_s: float) -> Iterator[None]:
        if self._file is None or self._turn is None:
            self._pipe.at(words, limit_s)
            yield
            return
        self._pipe.at("waiting for the GPU", WAIT_S)
        # Who wants it alone holds the turnstile meanwhile, so that others cannot pass by for ever.
        fcntl.flock(self._turn, how)
        fcntl.flock(self._file, how)
        if how == fcntl.LOCK_SH:
            fcntl.flock(self._turn, fcntl.LOCK_UN)
        self._pipe.at(words, limit_s)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
            fcntl.flock(self._turn, fcntl.LOCK_UN)


def _grid(chosen: Selection, leave: Leave, limit_s: float, checked: Checked) -> str:
    """Compare calls of many sizes and the contract's examples with the reference; the first fault, or nothing."""
    if chosen.configs is not None:  # one for all sizes: each would be compiled
        m = chosen.tokens or 1
        chosen = chosen.but(configs=_Same(chosen.configs, chosen.configs.at(m)), _by_tokens={}, _state=dict(TRUST))
    try:
        for nth, subject in enumerate(subjects(chosen)):
            if nth == 1 and subject.own_m is None:
                continue  # the problem's own sizes: the cells themselves are of those
            counts = GRID if subject.own_m is None else ((subject.own_m, False), (0, False))
            weights: Any = None
            for number, (m, mixed) in enumerate(counts):
                sizes = dict(subject.sizes)
                if not _able(chosen, sizes, m):
                    checked.skipped += 1
                    continue
                where = f"M={m}{', mixed rows' if mixed else ''}, {_sizes(sizes)}"
                with leave.shared(f"checking {where}", CHECK_S * limit_s):
                    if weights is None and subject.weights:
                        weights = chosen.prepare(**subject.weights)
                    _compare(chosen, subject, weights, m, mixed, number, checked, where)
                    _wait(chosen)
    except Wrong as error:
        return str(error)
    return ""


def _untimed(fault: str, checked: Checked) -> dict[str, Any]:
    """A kernel that can be checked on the contract's examples alone."""
    said = "no call of the cell's sizes is known here"
    if not checked.calls and not fault:
        return {"status": "skipped", "explanation": said}
    found = {"checked": checked.calls, "error": _finite(checked.error), "correct": not fault}
    if fault:
        return {"status": "wrong", "explanation": f"wrong results: {fault}", **found}
    return {"status": "ok", **found, "notes": [f"checked on examples and not timed: {said}"]}


def _able(chosen: Selection, sizes: dict[str, int], m: int) -> bool:
    from kernelmux.registry import Rejected

    axis = chosen.op.token_axis
    problem = chosen.problem.but(shape={**sizes, **({axis: m} if axis else {})})
    decision = chosen.declaration.judge(chosen.op, chosen.device, Packages.installed(), problem)
    return not isinstance(decision, Rejected)


def _compare(
    chosen: Selection, subject: Subject, weights: Any, m: int, mixed: bool, nth: int, checked: Checked, where: str
) -> None:
    from kernelmux.errors import BadShape, UsageError

    try:
        given = subject.call(m, mixed, nth)
        with exact_products():
            want = subject.want(given)
    except (BadShape, UsageError, IndexError, ZeroDivisionError, RuntimeError):  # no call of the op, says its own check
        checked.skipped += 1
        return
    try:
        got = _poisoned(chosen, given, weights, want)
    except (UsageError, NotImplementedError):  # it does not do this call, and says so
        checked.skipped += 1
        return
    decode = decode_of(chosen, given)
    checked.take(judge(got, want, subject.limits, decode, exact=_exact(chosen)), where)


def _poisoned(
    chosen: Selection, given: Mapping[str, Any], weights: Any, want: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """The results of a call, into memory that holds NaN."""
    name, x = next(iter(given.items()))
    rest = {key: value for key, value in given.items() if key != name}
    made = chosen(x, weights, **rest)
    results = results_of(made)
    if chosen.op.outs:
        outs = {out: filled(torch.empty_like(one), 0x7F) for out, one in zip(chosen.op.outs, results, strict=True)}
        return results_of(chosen(x, weights, **rest, **outs))
    litter(want, x.device)
    return results_of(chosen(x, weights, **rest))


class Trial:
    """One cell: the case's own sizes at M tokens."""

    def __init__(self, chosen: Selection, m: int, leave: Leave, pipe: Pipe, limit_s: float):
        self.chosen, self.m, self.leave, self.pipe, self.limit_s = chosen, m, leave, pipe, limit_s
        self.live = chosen.device.vendor != "cpu"
        self.notes: list[str] = []
        self.first_ms = 0.0
        self.weights: Any = None
        with leave.shared(f"drawing M={m}", CHECK_S * limit_s):
            self.subject = _whole(chosen)
            if self.subject is None:
                return
            self.given = self.subject.call(m, False, 0)
            name, self.x = next(iter(self.given.items()))
            self.rest = {key: value for key, value in self.given.items() if key != name}
            _wait(chosen)

    def first_call(self) -> None:
        """Prepare the weights and call it once: in a fresh process, whatever it compiles or loads is in that time."""
        assert self.subject is not None
        with self.leave.shared(f"making its first call, M={self.m}", FIRST_S * self.limit_s):
            start = time.perf_counter()
            if self.subject.weights:
                self.weights = self.chosen.prepare(**self.subject.weights)
                _wait(self.chosen)
            prepared = time.perf_counter()
            self.chosen(self.x, self.weights, **self.rest)
            _wait(self.chosen)
            self.first_ms = 1e3 * (time.perf_counter() - prepared)
            if self.weights is not None and self.live and self.chosen.declaration.prepare:
                self.notes.append(f"prepare took {1e3 * (prepared - start):.0f} ms")

    def result(self, fault: str, general: Checked) -> dict[str, Any]:
        """Check, then time. ``fault``: what the grid found; ``general``: what its comparisons came to."""
        chosen, subject, m = self.chosen, self.subject, self.m
        assert subject is not None
        checked = Checked(general.calls, general.error, general.skipped)
        found: dict[str, Any] = {"status": "ok", "first_call_ms": round(self.first_ms, 3)}
        with self.leave.shared(f"checking M={m}", CHECK_S * self.limit_s):
            with exact_products():
                want = subject.want(self.given)
            got = [tensor.clone() for tensor in _poisoned(chosen, self.given, self.weights, want)]
            try:
                finding = judge(got, want, subject.limits, decode_of(chosen, self.given), exact=_exact(chosen))
                checked.take(finding, f"M={m}, {_sizes(subject.sizes)}")
            except Wrong as error:
                fault = fault or str(error)
            again = [results_of(chosen(self.x, self.weights, **self.rest)) for _ in range(2)]
            found["deterministic"] = all(all(map(same, got, one)) for one in again)
            _wait(chosen)
            del again
        found |= {"checked": checked.calls, "error": _finite(checked.error), "correct": not fault}
        if fault:
            found |= {"status": "wrong", "explanation": f"wrong results: {fault}"}
        elif checked.error > 1:
            self.notes.append(
                f"beyond the op's tolerance ({checked.error:.2f} of it), within the {SLACK:g} times of the check"
            )
        if checked.skipped:
            self.notes.append(f"{checked.skipped} calls of the grid are none it takes")
        found |= work_of(chosen, m)
        self._time(found, got, want)
        return {**found, "notes": self.notes} if self.notes else found

    def _time(self, found: dict[str, Any], got: Sequence[Tensor], want: tuple[Tensor, ...]) -> None:
        chosen, subject = self.chosen, self.subject
        assert subject is not None
        if self.live:
            with self.leave.alone(f"timing M={self.m}", TIME_S * self.limit_s):
                calls = Calls(chosen, self.x, self.rest, self.weights, found.get("bytes"))
                found["peak_bytes"] = calls.peak()
                found["capture"], why = calls.capture(got, want, subject, self.given)
                self.notes += [why] if why else []
                samples = calls.samples()
        else:
            self.pipe.at(f"timing M={self.m}")
            samples = on_cpu(lambda: chosen(self.x, self.weights, **self.rest))
        found["time_us"] = summary(samples, f"{chosen.kernel}/{chosen.op.name}/{self.m}")
        median = found["time_us"]["median"]
        if found.get("floor_us") and median > 0:
            found["roofline_percent"] = round(100 * found["floor_us"] / median, 2)


def _exact(chosen: Selection) -> bool:
    return "bit_exact" in chosen.declaration.numerics.promises


def _whole(chosen: Selection) -> Subject | None:
    """The subject at the problem's own sizes."""
    from kernelmux.trust import experts
    from kernelmux.trust import subjects as room

    for module in (experts, room):  # what the gate may take beside a model: here there is none
        for name in ("MOST", "MOST_ELEMENTS"):
            if hasattr(module, name):
                setattr(module, name, _ROOM)
    own = {axis: size for axis, size in chosen.problem.shape.items() if axis != chosen.op.token_axis}
    return next((one for one in subjects(chosen) if dict(one.sizes) == own and one.own_m is None), None)


def _wait(chosen: Selection) -> None:
    if place(chosen).type == "cuda":
        torch.cuda.synchronize()


def _context_is_gone(device: Any) -> str:
    if device.vendor == "cpu":
        return ""
    try:
        torch.cuda.synchronize()
    except Exception as error:
        return f"it took the GPU's context with it: {one_line(error)}"
    return ""


def _finite(value: float) -> float | None:
    return round(value, 5) if value == value and value not in (float("inf"), float("-inf")) else None


def _sizes(sizes: Mapping[str, int]) -> str:
    return ",".join(f"{axis}={size}" for axis, size in sizes.items())
