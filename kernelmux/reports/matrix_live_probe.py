"""What a probe does with one kernel on a live device: check it, time it, capture it, weigh it.

Phases that only use the processor need no leave; those that use the GPU share a lock file, and timing has it alone, so
that several probes at once disturb no time. Imported only in a probe: it imports torch.
"""

from __future__ import annotations

import copy
import fcntl
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernelmux.measure.stats import interval
from kernelmux.policies.selection import Selection
from kernelmux.registry.lazy import load
from kernelmux.registry.packages import Packages
from kernelmux.reports.matrix_probe import Pipe
from kernelmux.trust.check import _decode, _exact_products, _filled, _litter, _results, _same
from kernelmux.trust.judge import SLACK, Finding, judge
from kernelmux.trust.subjects import Subject, place, subjects

# Beside the cell's own M: no row, one, odd ones, one over a tile; mixed rows of zeros, large and tiny values.
GRID = ((0, False), (1, False), (3, False), (8, False), (33, True), (65, False), (129, True), (257, False))
REPLAY_US = 300.0
FEWEST, MOST_CALLS = 2, 64
L2_TURNS = 3
ROUNDS = 15
WAIT_S = 900.0  # for the GPU, while other probes have it
CHECK_S, FIRST_S, TIME_S = 2.0, 5.0, 2.0
"""How many times the limit of a step: references are slow, and a first call compiles."""
_CPU_ROUNDS, _CPU_SAMPLE_S = 9, 2e-3


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
    trust = {"checked": True}  # the gate would check it too, and keep what it found
    general = Checked()
    fault: str | None = "" if job["again"] else None  # None: the grid is still to be checked
    for cell in job["cells"]:
        m = job["ms"][cell - job["first"]]
        begun = time.perf_counter()
        result: dict[str, Any]
        try:
            chosen = chooser.select(case, device, m, job["kernel"]).but(_by_tokens={}, _state=dict(trust))
            with torch.no_grad():
                trial = Trial(chosen, m, leave, pipe, job["limit_s"])
                if trial.subject is None:
                    result = {"status": "skipped", "explanation": "no call of these sizes is known here"}
                else:
                    trial.first_call()
                    if fault is None:
                        fault = _grid(chosen, leave, job["limit_s"], general)
                    result = trial.result(fault, general)
        except Exception as error:  # whatever it raises is a fact about this kernel
            result = {"status": "error", "explanation": _one_line(error)}
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
        if self._file is not None:
            self._pipe.at("waiting for the GPU", WAIT_S)
            fcntl.flock(self._file, how)
        self._pipe.at(words, limit_s)
        try:
            yield
        finally:
            if self._file is not None:
                fcntl.flock(self._file, fcntl.LOCK_UN)


def _grid(chosen: Selection, leave: Leave, limit_s: float, checked: Checked) -> str:
    """Compare calls of many sizes and the contract's examples with the reference; the first fault, or nothing."""
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
        with _exact_products():
            want = subject.want(given)
    except (BadShape, UsageError, IndexError, ZeroDivisionError, RuntimeError):  # no call of the op, says its own check
        checked.skipped += 1
        return
    try:
        got = _poisoned(chosen, given, weights, want)
    except NotImplementedError:
        checked.skipped += 1
        return
    decode = _decode(chosen.op, given)
    checked.take(judge(got, want, subject.limits, decode, exact=_exact(chosen)), where)


def _poisoned(
    chosen: Selection, given: Mapping[str, Any], weights: Any, want: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """The results of a call, into memory that holds NaN."""
    name, x = next(iter(given.items()))
    rest = {key: value for key, value in given.items() if key != name}
    made = chosen(x, weights, **rest)
    results = _results(made)
    if chosen.op.outs:
        outs = {out: _filled(torch.empty_like(one), 0x7F) for out, one in zip(chosen.op.outs, results, strict=True)}
        return _results(chosen(x, weights, **rest, **outs))
    _litter(want, 0xFF, x.device)
    return _results(chosen(x, weights, **rest))


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
            with _exact_products():
                want = subject.want(self.given)
            got = [tensor.clone() for tensor in _poisoned(chosen, self.given, self.weights, want)]
            try:
                finding = judge(got, want, subject.limits, _decode(chosen.op, self.given), exact=_exact(chosen))
                checked.take(finding, f"M={m}, {_sizes(subject.sizes)}")
            except Wrong as error:
                fault = fault or str(error)
            again = [_results(chosen(self.x, self.weights, **self.rest)) for _ in range(2)]
            found["deterministic"] = all(all(map(_same, got, one)) for one in again)
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
        found |= _work(chosen, m)
        self._time(found, got, want)
        return {**found, "notes": self.notes} if self.notes else found

    def _time(self, found: dict[str, Any], got: Sequence[Tensor], want: tuple[Tensor, ...]) -> None:
        chosen, subject = self.chosen, self.subject
        assert subject is not None
        if self.live:
            with self.leave.alone(f"timing M={self.m}", TIME_S * self.limit_s):
                calls = _Calls(chosen, self.x, self.rest, self.weights, found.get("bytes"))
                found["peak_bytes"] = calls.peak()
                found["capture"], why = calls.capture(got, want, subject, self.given)
                self.notes += [why] if why else []
                samples = calls.samples()
        else:
            self.pipe.at(f"timing M={self.m}")
            samples = _on_cpu(lambda: chosen(self.x, self.weights, **self.rest))
        found["time_us"] = summary(samples, f"{chosen.kernel}/{chosen.op.name}/{self.m}")
        median = found["time_us"]["median"]
        if found.get("floor_us") and median > 0:
            found["roofline_percent"] = round(100 * found["floor_us"] / median, 2)


def summary(samples: Sequence[float], seed: str) -> dict[str, Any]:
    """What the matrix keeps of samples in microseconds."""
    found = interval(samples, seed)
    return {
        "median": round(found.mid, 4),
        "low": round(found.low, 4),
        "high": round(found.high, 4),
        "samples": len(samples),
    }


def _exact(chosen: Selection) -> bool:
    return "bit_exact" in chosen.declaration.numerics.promises


def _whole(chosen: Selection) -> Subject | None:
    """The subject at the problem's own sizes."""
    own = {axis: size for axis, size in chosen.problem.shape.items() if axis != chosen.op.token_axis}
    return next((one for one in subjects(chosen) if dict(one.sizes) == own and one.own_m is None), None)


def _work(chosen: Selection, m: int) -> dict[str, Any]:
    """Operations, bytes, and the least time for them by the device's rates."""
    if chosen.op.work is None:
        return {}
    axis = chosen.op.token_axis
    shape = {**chosen.problem.shape, **({axis: m} if axis else {})}
    try:
        work = load(chosen.op.work)(chosen.problem.but(shape=shape))
    except (KeyError, TypeError):
        return {}
    device, found = chosen.device, {"flops": float(work.flops), "bytes": float(work.bytes)}
    peak = max((device.peak(rate) for rate in _rates(chosen)), default=0.0)
    compute_us = work.flops / peak * 1e-6 if peak > 0 else 0.0
    memory_us = work.bytes / device.bandwidth_gbs * 1e-3 if device.bandwidth_gbs > 0 else 0.0
    if compute_us <= 0 and memory_us <= 0:
        return dict(found)
    bound = "compute" if compute_us > memory_us else "memory"
    return {**found, "floor_us": round(max(compute_us, memory_us), 4), "bound": bound}


def _rates(chosen: Selection) -> Sequence[str]:
    """The units that the op's products can run on, under the scheme it really runs as."""
    if "N" not in chosen.op.axes and chosen.op.name != "fused_moe":
        return ("fp32",)
    scheme = chosen.scheme
    if scheme.activation_bits == 16:
        return (chosen.problem.dtype or "bfloat16",) if chosen.problem.dtype != "float8_e4m3fn" else ("fp8",)
    return {"fp8": ("fp8",), "int8": ("int8",), "fp4": ("fp4", "fp8")}.get(scheme.weight, ("bfloat16",))


class _Calls:
    """Calls on tensors of their own, so many that the L2 holds none of them when its turn comes."""

    def __init__(self, chosen: Selection, x: Tensor, rest: dict[str, Any], weights: Any, m: int, moved: float | None):
        self.chosen = chosen
        device = chosen.device
        estimate = max(2.0, (moved or 0.0) / max(1.0, device.bandwidth_gbs) * 1e-3)
        self.count = int(min(MOST_CALLS, max(FEWEST, REPLAY_US // estimate)))
        l2 = max(device.l2_bytes, 1 << 20)
        free = torch.cuda.mem_get_info()[0] if device.vendor != "cpu" else 1 << 30
        inputs = sum(tensor.numel() * tensor.element_size() for tensor in _tensors([x, rest]))
        sets = _copies(inputs, self.count, l2, free // 4)
        self.inputs = [(x, rest), *((_cloned(x), _cloned(rest)) for _ in range(sets - 1))]
        held = sum(tensor.numel() * tensor.element_size() for tensor in _tensors([weights]))
        touched = int(min(held, max((moved or 0.0), held / 64)))
        copies = 1 if not held else min(_copies(touched, self.count, l2, free // 4), max(1, (free // 4) // held))
        self.weights = [weights]
        with suppress(Exception):  # weights that cannot be copied stay warm in the L2, where they fit
            self.weights += [copy.deepcopy(weights) for _ in range(copies - 1)]
        self._graph: Any = None
        self._kept: list[Any] = []
        self._wash = torch.ones(L2_TURNS * l2 // 4, device="cuda") if device.vendor != "cpu" else None

    def call(self, r: int) -> Any:
        x, rest = self.inputs[r % len(self.inputs)]
        return self.chosen(x, self.weights[r % len(self.weights)], **rest)

    def peak(self) -> int:
        """What one call allocates at its height."""
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self.call(0)
        torch.cuda.synchronize()
        return int(max(0, torch.cuda.max_memory_allocated() - before))

    def capture(
        self, eager: Sequence[Tensor], want: tuple[Tensor, ...], subject: Subject, given: Mapping[str, Any]
    ) -> tuple[bool | None, str]:
        """Capture all calls in one graph; whether its first gives what an eager call gives, and why not."""
        if not self.chosen.declaration.capturable:
            return None, "it does not say that it can be captured in a graph: timed call by call"
        try:
            for r in range(min(self.count, 3)):
                self.call(r)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                kept = [self.call(r) for r in range(self.count)]
            graph.replay()
            torch.cuda.synchronize()
        except Exception as error:
            return False, f"capture: {_one_line(error)}"
        self._graph, self._kept = graph, kept
        first = _results(kept[0])
        if not all(map(_same, first, eager)):
            found = judge(first, want, subject.limits, _decode(self.chosen.op, given))
            if found.fault:
                return False, f"a replayed graph gives other results: {found.fault}"
        return True, ""

    def samples(self) -> list[float]:
        """Microseconds of one call: of replays of the graph, or of calls one by one where there is none."""
        torch.cuda._sleep(int(20 * 1.7e6))  # 20 ms: clocks come up
        marks = []
        for _ in range(ROUNDS + 1):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            if self._wash is not None:
                self._wash.amax()
            start.record()
            if self._graph is not None:
                self._graph.replay()
            else:
                for r in range(self.count):
                    self.call(r)
            end.record()
            marks.append((start, end))
        torch.cuda.synchronize()
        return [start.elapsed_time(end) * 1e3 / self.count for start, end in marks[1:]]


def _copies(size: int, calls: int, l2: int, room: int) -> int:
    """So many sets that one replay touches several times the L2, as memory allows."""
    if size <= 0:
        return 1
    wanted = -(-L2_TURNS * l2 // size)
    return int(max(1, min(wanted, calls, room // size)))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
    elif hasattr(value, "__dict__"):
        yield from _tensors(vars(value))


def _cloned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in value.items()}


def _on_cpu(call: Callable[[], Any]) -> list[float]:
    """Microseconds of one call, each sample of several."""
    call()
    start = time.perf_counter()
    call()
    once = max(1e-7, time.perf_counter() - start)
    count = max(1, min(1000, int(_CPU_SAMPLE_S / once)))
    found = []
    for _ in range(_CPU_ROUNDS):
        start = time.perf_counter()
        for _ in range(count):
            call()
        found.append(1e6 * (time.perf_counter() - start) / count)
    return found


def _wait(chosen: Selection) -> None:
    if place(chosen).type == "cuda":
        torch.cuda.synchronize()


def _context_is_gone(device: Any) -> str:
    if device.vendor == "cpu":
        return ""
    try:
        torch.cuda.synchronize()
    except Exception as error:
        return f"it took the GPU's context with it: {_one_line(error)}"
    return ""


def _finite(value: float) -> float | None:
    return round(value, 5) if value == value and value not in (float("inf"), float("-inf")) else None


def _sizes(sizes: Mapping[str, int]) -> str:
    return ",".join(f"{axis}={size}" for axis, size in sizes.items())


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
