"""Compile many tiles at once, in processes that may hang or crash without harm.

A thread of the tuner feeds a handful of children and kills the one that passes its deadline; a segfault of the
compiler costs one tile. `concurrent.futures.ProcessPoolExecutor` is not used: it gives up when one child dies.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from kernelmux.autotune.space import size_of
from kernelmux.backends.triton.moe_variant import FUSED, MoeVariant
from kernelmux.errors import TuneError
from kernelmux.measure.bench import Side
from kernelmux.tuning_configs.tile import Tile

if TYPE_CHECKING:
    from kernelmux.contracts.moe_shape import MoeShape
    from kernelmux.device import Capability

COMPILE_TILE = "kernelmux.backends.triton.moe_compile:compile_tile"
TASKS_PER_CHILD = 200  # compilers leak; MetaSchedule restarts its pool for each batch


@dataclass(frozen=True, slots=True)
class Task:
    """One binary to make: a tile of one side, sorted or direct (one pair a block, no sort)."""

    side: Side
    tile: Tile
    direct: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """What the compiler said. ``status``: "ok", "error", "hang" or "crash", the last three with a reason."""

    status: str
    reason: str = ""
    shared_bytes: int = 0
    registers: int = 0  # a thread
    stack_bytes: int = 0  # a thread; spills live there
    sha256: str = ""  # of the cubin; equal hashes are one kernel
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Deadline:
    """How long one compilation may take: four times the median, within bounds."""

    first_s: float = 20.0  # also the least: the slowest honest tile took 26.8 s on two busy cores, p95 6.5 s
    times_median: float = 4.0
    cap_s: float = 60.0
    start_s: float = 120.0  # importing Triton on a loaded machine

    def seconds(self, seen: list[float]) -> float:
        return min(self.cap_s, max(self.first_s, self.times_median * median(seen))) if seen else self.first_s


class _Child:
    """One worker process and the task it has."""

    def __init__(self, target: str) -> None:
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kernelmux.autotune.compile_worker", target, str(os.getpid())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env, start_new_session=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.fd = self.process.stdout.fileno()
        self.buffer = b""
        self.ready = False
        self.task: Task | None = None
        self.since = time.monotonic()
        self.served = 0

    def give(self, task: Task, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.task, self.since = task, time.monotonic()
        self.served += 1
        with contextlib.suppress(OSError):  # a dead child is noticed by its closed stdout
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()

    def lines(self) -> list[dict[str, Any]] | None:
        """Answers that arrived, or None when the child is gone."""
        chunk = os.read(self.fd, 65536)
        if not chunk:
            return None
        *whole, self.buffer = (self.buffer + chunk).split(b"\n")
        return [json.loads(line) for line in whole if line]

    def end(self) -> str:
        """Kill the child with all it started; the words for how it had ended if it had."""
        code = self.process.poll()
        if code is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self.process.wait(0.2)  # its stdout closes a moment before the exit status is there
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"


class CompilePool:
    """Compiles tasks in the background, the lowest priority number first, then the smallest tile.

    Close it, or use it as a context manager: its children are killed.
    """

    def __init__(
        self,
        shape: MoeShape,
        capability: Capability,
        *,
        workers: int | None = None,
        target: str = COMPILE_TILE,
        variant: MoeVariant = FUSED,
        deadline: Deadline | None = None,
    ) -> None:
        self._target = target
        self._workers = max(1, workers if workers is not None else usable_cores())
        self._deadline = deadline or Deadline()
        self._fixed: dict[str, Any] = {"shape": asdict(shape), "capability": list(capability)}
        if variant != FUSED:
            self._fixed["variant"] = variant.to_json()
        self._heap: list[tuple[int, tuple[Any, ...], int, Task]] = []
        self._serial = itertools.count()
        self._known: set[Task] = set()
        self._running: dict[int, _Child] = {}
        self._done: dict[Task, Facts] = {}
        self._seconds: list[float] = []
        self._fatal = ""
        self._closing = False
        self._change = threading.Condition()
        self._wake_read, self._wake_write = os.pipe()
        self._thread: threading.Thread | None = None

    def submit(self, tasks: Iterable[Task], priority: int = 0) -> None:
        """Queue tasks not queued before; returns at once."""
        with self._change:
            for task in tasks:
                if task not in self._known:
                    self._known.add(task)
                    heapq.heappush(self._heap, (priority, size_of(task.tile), next(self._serial), task))
            if self._heap and self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="kernelmux-compile", daemon=True)
                self._thread.start()
        os.write(self._wake_write, b"x")

    def wait(
        self,
        tasks: Iterable[Task],
        *,
        until: float | None = None,
        heard: Callable[[dict[Task, Facts]], None] | None = None,
    ) -> dict[Task, Facts]:
        """The facts of ``tasks`` once all are there, or of those there at ``until`` (time.monotonic()).

        ``heard`` gets new facts as they arrive. Raises TuneError when no child can work at all.
        """
        wanted = list(dict.fromkeys(tasks))
        told: set[Task] = set()
        while True:
            with self._change:
                fresh = {t: self._done[t] for t in wanted if t in self._done and t not in told}
                if not fresh and len(told) < len(wanted) and not self._fatal:
                    left = None if until is None else until - time.monotonic()
                    if left is None or left > 0:
                        self._change.wait(0.5 if left is None else min(0.5, left))
                        continue
                fatal = self._fatal
            if fresh:
                told.update(fresh)
                if heard:
                    heard(fresh)
                continue
            if fatal and len(told) < len(wanted):
                raise TuneError(f"no kernel can be compiled here: {fatal}. Install Triton with `pip install triton`.")
            return {t: self._done[t] for t in wanted if t in told}

    def drop_queued(self) -> int:
        """Forget what no child has begun; returns how many."""
        with self._change:
            dropped = len(self._heap)
            self._known.difference_update(entry[-1] for entry in self._heap)
            self._heap.clear()
            return dropped

    def close(self) -> None:
        """Kill the children and end the thread. Closing twice is fine."""
        with self._change:
            if self._closing:
                return
            self._closing = True
            self._heap.clear()
        os.write(self._wake_write, b"x")
        if self._thread is not None:
            self._thread.join()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def __enter__(self) -> CompilePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the thread: children ask Linux to die with the thread that made them, so only this one makes any

    def _serve(self) -> None:
        ears = selectors.DefaultSelector()
        ears.register(self._wake_read, selectors.EVENT_READ)
        try:
            while not self._closing:
                self._staff(ears)
                for key, _ in ears.select(0.2):
                    if key.fd == self._wake_read:
                        os.read(self._wake_read, 4096)
                    elif key.fd in self._running:
                        self._listen(self._running[key.fd], ears)
                self._enforce(ears)
        finally:
            for child in list(self._running.values()):
                self._retire(child, ears)
            ears.close()

    def _staff(self, ears: selectors.BaseSelector) -> None:
        with self._change:
            waiting = len(self._heap)
        idle = [c for c in self._running.values() if c.task is None]
        for _ in range(min(self._workers - len(self._running), waiting - len(idle))):
            child = _Child(self._target)
            self._running[child.fd] = child
            ears.register(child.fd, selectors.EVENT_READ)
        for child in idle:
            if child.ready:
                self._feed(child)

    def _feed(self, child: _Child) -> None:
        with self._change:
            if not self._heap:
                return
            task = heapq.heappop(self._heap)[-1]
        message = {"id": child.served, "side": task.side, "direct": task.direct, **self._fixed}
        child.give(task, {**message, "tile": [getattr(task.tile, f) for f in task.tile.__slots__]})

    def _listen(self, child: _Child, ears: selectors.BaseSelector) -> None:
        lines = child.lines()
        if lines is None:
            task, how = child.task, self._retire(child, ears)
            if task is not None:
                self._finish(task, Facts("crash", f"the compiler process was {how}" if "killed" in how else how))
            elif not child.ready:
                self._fail(f"the compiler process {how} before it was ready")
            return
        for said in lines:
            if "fatal" in said:
                self._fail(said["fatal"])
            elif "ready" in said:
                child.ready = True
            elif child.task is not None:
                said.pop("id")
                facts = Facts(**said)
                if facts.status == "ok":
                    self._seconds.append(time.monotonic() - child.since)
                task, child.task = child.task, None
                self._finish(task, facts)
        if child.task is None and child.ready:
            if child.served >= TASKS_PER_CHILD:
                self._retire(child, ears)
            else:
                self._feed(child)

    def _enforce(self, ears: selectors.BaseSelector) -> None:
        limit, now = self._deadline.seconds(self._seconds), time.monotonic()
        for child in list(self._running.values()):
            spent = now - child.since
            if child.task is not None and spent > limit:
                task = child.task
                self._retire(child, ears)
                self._finish(task, Facts("hang", f"the compiler was killed after {spent:.0f} s", seconds=spent))
            elif not child.ready and spent > self._deadline.start_s:
                self._retire(child, ears)
                self._fail(f"a compiler process was not ready after {spent:.0f} s")

    def _retire(self, child: _Child, ears: selectors.BaseSelector) -> str:
        ears.unregister(child.fd)
        self._running.pop(child.fd, None)
        return child.end()

    def _finish(self, task: Task, facts: Facts) -> None:
        with self._change:
            self._done[task] = facts
            self._change.notify_all()

    def _fail(self, why: str) -> None:
        with self._change:
            self._fatal = why
            self._heap.clear()
            self._change.notify_all()


def usable_cores() -> int:
    """Cores this process may use, one left for the process that measures where there are more than two."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    return cores - 1 if cores > 2 else cores
