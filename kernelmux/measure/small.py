"""Any number of contestants for one small op, side by side on a live GPU.

Method: each contestant is captured as a CUDA graph of back-to-back calls, every call on tensors of its own. Before a
replay the L2 holds none of them: either the replay itself touches several times the L2, or a buffer of that size is
read in between (read and not written: written lines would be written back in the measured time). Graphs are replayed
in turn, in an order drawn anew each round. Where no buffer is read in between, each is replayed once more ahead of the
measured time, so that it finds the L2 as it leaves it: streaming stores have two speeds, by what others left there. One
sample is one replay between two events, divided by its calls. Nobody is timed who was not right on outputs filled with
NaN beforehand. The ceiling is the fastest of several plain copies of as many bytes, timed in the same rounds.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..device import Device
from ..errors import DeviceLost
from ..registry import Op
from . import small_check as check
from .small_contestants import COPY, Contestant
from .small_point import Inputs, Point, bytes_moved, draw
from .stats import interval

REPLAY_US = 300.0  # long against the 1-2 us between an event and its graph
FEWEST, MOST_CALLS = 2, 96
L2_TURNS = 3
LAUNCH_US = 2.0  # no call of a graph takes less
HOPELESS = 20.0  # a contestant this much slower than the fastest gets one sample


@dataclass(frozen=True, slots=True)
class Standing:
    """How one contestant did. Microseconds of one call; ``status`` is ok, wrong or error, with its reason."""

    name: str
    backend: str
    kind: str
    samples_us: tuple[float, ...] = ()
    status: str = "ok"
    reason: str = ""
    error: float = 0.0  # worst row's error over what is allowed
    us: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def ok(self) -> bool:
        return self.status == "ok" and self.us is not None


@dataclass(frozen=True, slots=True)
class Race:
    """One point with everybody's standing. ``cold`` says how the L2 was kept cold."""

    point: Point
    standings: tuple[Standing, ...]
    refused: dict[str, str]
    read_bytes: int
    written_bytes: int
    calls: int
    rounds: int
    cold: str

    @property
    def ceiling_us(self) -> float | None:
        """The fastest copy of as many bytes."""
        return min((s.us for s in self.standings if s.kind == COPY and s.us is not None), default=None)

    def gbs(self, us: float) -> float:
        """Billions of bytes a second."""
        return (self.read_bytes + self.written_bytes) / us * 1e-3

    def to_json(self, samples: bool = True) -> dict[str, Any]:
        point, ceiling = self.point, self.ceiling_us
        return {
            "op": point.op, "m": point.m, "h": point.h, "dtype": point.dtype, "options": dict(point.options),
            "read_bytes": self.read_bytes, "written_bytes": self.written_bytes, "calls": self.calls,
            "rounds": self.rounds, "cold": self.cold, "ceiling_us": _short(ceiling),
            "contestants": [self._one(standing, ceiling, samples) for standing in self.standings],
            "refused": self.refused,
        }  # fmt: skip

    def _one(self, standing: Standing, ceiling: float | None, samples: bool) -> dict[str, Any]:
        said: dict[str, Any] = {"name": standing.name, "backend": standing.backend, "kind": standing.kind}
        if not standing.ok or standing.us is None:
            return {**said, "status": standing.status, "reason": standing.reason}
        said |= {
            "us": _short(standing.us), "low": _short(standing.low), "high": _short(standing.high),
            "gbs": round(self.gbs(standing.us), 1),
            "percent_of_copy": round(100 * ceiling / standing.us, 1) if ceiling else None,
        }  # fmt: skip
        if standing.kind != COPY:
            said["error"] = round(standing.error, 4)
        return said | ({"samples_us": [_short(us) for us in standing.samples_us]} if samples else {})


def _short(us: float | None) -> float | None:
    return None if us is None else round(us, 4)


@dataclass(slots=True)
class _Runner:
    """A contestant that was captured, and what its graph needs to stay alive."""

    contestant: Contestant
    graph: Any
    kept: list[Any]
    error: float


class SmallStand:
    """Races on one GPU. The GPU must be idle otherwise."""

    def __init__(self, device: Device, place: torch.device | None = None):
        self.device = device
        self.place = place or torch.device("cuda", device.index or 0)
        torch.cuda.set_device(self.place)
        self._wash = torch.ones(L2_TURNS * max(device.l2_bytes, 1 << 20) // 4, device=self.place)
        self._sink = torch.empty((), device=self.place)

    def race(
        self, op: Op, point: Point, contestants: Sequence[Contestant], rounds: int = 25, refused: Any = None
    ) -> Race:
        """Check everybody, then time those who are right. Raises DeviceLost when one has taken the GPU with it."""
        probe = draw(op, point, 1, self.place)[0]
        read, written = bytes_moved(probe)
        calls = self.calls(read + written)
        sets = draw(op, point, calls, self.place)
        want = check.reference(op, sets[0].given)
        standings: dict[str, Standing] = {}
        runners: list[_Runner] = []
        for contestant in contestants:
            ran = self._prepare(op, point, contestant, sets, want)
            if isinstance(ran, _Runner):
                runners.append(ran)
            else:
                standings[contestant.name] = ran
        del want
        alone = calls * (read + written) >= L2_TURNS * self.device.l2_bytes
        times = self._replay(runners, rounds, calls, not alone, seed=point.brief())
        for runner in runners:
            standings[runner.contestant.name] = _standing(runner, times[runner.contestant.name], point)
        del runners, sets, probe
        if torch.cuda.memory_reserved() > 0.5 * torch.cuda.get_device_properties(self.place).total_memory:
            gc.collect()
            torch.cuda.empty_cache()
        how = (
            f"{calls} calls in a replay touch {calls * (read + written) / 1e6:.0f} MB, each call its own, "
            "after a replay that is not timed"
            if alone
            else f"each call its own tensors, {self._wash.numel() * 4 / 1e6:.0f} MB read before each replay"
        )
        ranked = tuple(standings[contestant.name] for contestant in contestants)
        return Race(point, ranked, dict(refused or {}), read, written, calls, rounds, how)

    def calls(self, moved: int) -> int:
        """How many calls one replay holds, for problems of ``moved`` bytes."""
        floor = max(LAUNCH_US, moved / max(1.0, self.device.bandwidth_gbs) * 1e-3)
        return int(min(MOST_CALLS, max(FEWEST, REPLAY_US // floor)))

    def _prepare(
        self, op: Op, point: Point, contestant: Contestant, sets: Sequence[Inputs], want: tuple[Tensor, ...]
    ) -> _Runner | Standing:
        who = (contestant.name, contestant.backend, contestant.kind)
        try:
            call = contestant.build(sets)
            sets[0].poison()
            verdict = check.Verdict(True, 0.0)
            result = call(0)
            torch.cuda.synchronize()
            if contestant.kind != COPY:
                verdict = check.judge(op, point.dtype, _outputs(result, sets[0]), want)
            if not verdict.ok:
                return Standing(*who, status="wrong", reason=verdict.reason, error=verdict.worst)
            graph, kept = _capture(call, len(sets))
            return _Runner(contestant, graph, [call, kept], verdict.worst)
        except Exception as error:  # whatever a compiler, a library or a launch raises is a fact about this contestant
            self._still_there(contestant, point, error)
            return Standing(*who, status="error", reason=_one_line(error))

    def _still_there(self, contestant: Contestant, point: Point, error: Exception) -> None:
        try:
            torch.cuda.synchronize()
        except Exception as gone:
            raise DeviceLost(
                f"{contestant.name} lost the GPU at {point.brief()}: {_one_line(error)}. Run again without it "
                "(--backends), or in a fresh process."
            ) from gone

    def _replay(
        self, runners: Sequence[_Runner], rounds: int, calls: int, wash: bool, seed: str
    ) -> dict[str, list[float]]:
        rng, order = random.Random(seed), list(runners)
        times: dict[str, list[float]] = {runner.contestant.name: [] for runner in runners}
        if not runners:
            return times
        torch.cuda._sleep(int(20 * 1.7e6))  # 20 ms: clocks come up, and launches get ahead of the GPU
        for part in (1, rounds - 1):
            marks = []
            for _ in range(part):
                rng.shuffle(order)
                for runner in order:
                    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                    if wash:
                        torch.amax(self._wash, dim=0, out=self._sink)
                    else:
                        runner.graph.replay()
                    start.record()
                    runner.graph.replay()
                    end.record()
                    marks.append((runner.contestant.name, start, end))
            torch.cuda.synchronize()
            for name, start, end in marks:
                times[name].append(start.elapsed_time(end) * 1e3 / calls)
            best = min(us[0] for us in times.values())
            order = [runner for runner in order if times[runner.contestant.name][0] <= HOPELESS * best]
        return times


def _standing(runner: _Runner, samples: Sequence[float], point: Point) -> Standing:
    who = runner.contestant
    found = interval(samples, f"{point.brief()}/{who.name}")
    return Standing(
        who.name, who.backend, who.kind, tuple(samples), error=runner.error,
        us=found.mid, low=found.low, high=found.high,
    )  # fmt: skip


def _outputs(result: Any, inputs: Inputs) -> tuple[Tensor, ...]:
    if result is None:
        return inputs.outs
    return result if isinstance(result, tuple) else (result,)


def _capture(call: Any, calls: int) -> tuple[Any, list[Any]]:
    """The graph, and every result: dropped ones would share memory, and their writes never leave the L2."""
    for r in range(calls):
        call(r)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call(r) for r in range(calls)]
    graph.replay()
    torch.cuda.synchronize()
    return graph, kept


def _one_line(error: BaseException) -> str:
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    return f"{type(error).__name__}: {said}"[:300]
