"""How long a kernel takes, and how long it would at best. Imported only in a probe: it imports torch."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from kernelmux.measure.child import one_line
from kernelmux.measure.stats import interval
from kernelmux.policies.selection import Selection
from kernelmux.registry.lazy import load
from kernelmux.trust.judge import Decode, judge
from kernelmux.trust.subject import Subject

REPLAY_US = 300.0
FEWEST, MOST_CALLS = 2, 64
L2_TURNS = 3
ROUNDS, FEWEST_ROUNDS = 15, 6
BUDGET_US = 1e6  # of one timing: kernels that take milliseconds get fewer rounds
_SLOW_US = 200.0
_CPU_ROUNDS, _CPU_SAMPLE_S = 9, 2e-3


def results_of(made: Any) -> tuple[Tensor, ...]:
    """What a kernel returned, as a tuple."""
    results = made if isinstance(made, (tuple, list)) else (made,)
    if not all(isinstance(result, Tensor) for result in results):
        raise TypeError(f"a kernel returns tensors, not {type(made).__name__}")
    return tuple(results)


def decode_of(chosen: Selection, given: Mapping[str, Any]) -> Decode | None:
    """What packed results of this call mean; None for an op whose results are not packed."""
    if chosen.op.decoded is None:
        return None
    decoded = load(chosen.op.decoded)
    return lambda results: tuple(decoded(results, **given))


def same(left: Tensor, right: Tensor) -> bool:
    """Whether every bit is equal."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    pairs = [one.contiguous().reshape(-1) for one in (left, right)]
    return not left.numel() or bool(torch.equal(*(one.view(torch.uint8) for one in pairs)))


def filled(tensor: Tensor, byte: int) -> Tensor:
    """The tensor with every byte this one: 0xFF and 0x7F are NaN in every float."""
    if tensor.numel():
        tensor.view(-1).view(torch.uint8).fill_(byte)
    return tensor


def litter(want: Sequence[Tensor], device: torch.device) -> None:
    """Leave NaN in memory of the sizes that results will take, so that what is not written is seen."""
    left = [
        torch.full((max(tensor.numel() * width, 1),), 0xFF, dtype=torch.uint8, device=device)
        for tensor in want
        for width in (1, 2, 4)
    ]
    del left


@contextmanager
def exact_products() -> Iterator[None]:
    """fp32 products of the reference in fp32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def summary(samples: Sequence[float], seed: str) -> dict[str, Any]:
    """What the matrix keeps of samples in microseconds."""
    found = interval(samples, seed)
    return {
        "median": round(found.mid, 4),
        "low": round(found.low, 4),
        "high": round(found.high, 4),
        "samples": len(samples),
    }


def work_of(chosen: Selection, m: int) -> dict[str, Any]:
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


class Calls:
    """Calls on tensors of their own, so many that the L2 holds none of them when its turn comes."""

    def __init__(self, chosen: Selection, x: Tensor, rest: dict[str, Any], weights: Any, moved: float | None):
        self.chosen = chosen
        device = chosen.device
        estimate = max(2.0, (moved or 0.0) / max(1.0, device.bandwidth_gbs) * 1e-3)
        once = self._once(x, rest, weights)
        estimate = once if once > _SLOW_US else estimate  # of a short call most is the launch
        self.count = int(min(MOST_CALLS, max(FEWEST, REPLAY_US // estimate)))
        self.rounds = int(min(ROUNDS, max(FEWEST_ROUNDS, BUDGET_US // (self.count * estimate))))
        l2 = max(device.l2_bytes, 1 << 20)
        free = torch.cuda.mem_get_info()[0]
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
        self._wash = torch.ones(L2_TURNS * l2 // 4, device="cuda")

    def _once(self, x: Tensor, rest: dict[str, Any], weights: Any) -> float:
        """Microseconds of one call, its launch included."""
        self.chosen(x, weights, **rest)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        self.chosen(x, weights, **rest)
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end) * 1e3)

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
            return False, f"capture: {one_line(error)}"
        self._graph, self._kept = graph, kept
        first = results_of(kept[0])
        if not all(map(same, first, eager)):
            found = judge(first, want, subject.limits, decode_of(self.chosen, given))
            if found.fault:
                return False, f"a replayed graph gives other results: {found.fault}"
        return True, ""

    def samples(self) -> list[float]:
        """Microseconds of one call: of replays of the graph, or of calls one by one where there is none."""
        torch.cuda._sleep(int(20 * 1.7e6))  # 20 ms: clocks come up
        marks = []
        for _ in range(self.rounds + 1):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
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


def on_cpu(call: Callable[[], Any]) -> list[float]:
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
