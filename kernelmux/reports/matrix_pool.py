"""Probes: processes of their own that try one kernel each, so that one that crashes or hangs costs itself alone.

A probe is ``python -m kernelmux.reports.matrix_probe``: it takes a job as JSON on stdin and answers in lines of JSON.
``{"at": words}`` says what it is doing, ``{"cell": number, "result": {...}}`` answers for one cell of the job,
``{"again": true}`` that it goes, and that another process may do the rest. Each word starts its clock anew. What it
prints besides is kept for the explanation of its death.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any

PROBE = "kernelmux.reports.matrix_probe"
START_S = 120.0  # importing torch and making a context on a busy host
_TAIL = 2000  # characters of what a dead probe had printed


@dataclass(frozen=True, slots=True)
class Job:
    """``payload`` is what the probe reads; ``cells`` are the numbers of the cells it answers for, in its order."""

    payload: dict[str, Any]
    cells: tuple[int, ...]
    title: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One cell's result as plain data, or how its probe died: status and explanation."""

    cell: int
    result: dict[str, Any]


@dataclass(slots=True)
class _Running:
    job: Job
    left: list[int]
    process: subprocess.Popen[bytes]
    errors: IO[bytes]
    deadline: float
    limit_s: float
    at: str = "starting"
    buffer: bytes = b""
    answered: int = 0
    again: bool = False  # it said that it goes
    begun: float = field(default_factory=time.monotonic)


def run(
    jobs: Sequence[Job],
    *,
    width: int,
    limit_s: float,
    environment: dict[str, str] | None = None,
    started: Callable[[Job], None] = lambda job: None,
    start_s: float = START_S,
    budget_s: float | None = None,
) -> Iterator[Answer]:
    """Answers as they come, ``width`` probes at a time. A cell at which a probe died is red; the rest is asked again.

    Ends its probes when it is closed or interrupted, and after ``budget_s`` seconds: some cells have no answer then.
    """
    stop = float("inf") if budget_s is None else time.monotonic() + budget_s
    waiting = [(job, list(job.cells)) for job in reversed(jobs)]
    running: list[_Running] = []
    with selectors.DefaultSelector() as selector:
        try:
            while (waiting or running) and time.monotonic() < stop:
                while waiting and len(running) < width:
                    job, left = waiting.pop()
                    started(job)
                    one = _start(job, left, environment, limit_s, start_s)
                    assert one.process.stdout is not None
                    selector.register(one.process.stdout, selectors.EVENT_READ, one)
                    running.append(one)
                soonest = min(one.deadline for one in running)
                ready = selector.select(max(0.0, min(1.0, soonest - time.monotonic(), stop - time.monotonic())))
                for key, _ in ready:
                    one = key.data
                    ended = yield from _read(one)
                    if ended or not one.left:
                        selector.unregister(key.fileobj)
                        running.remove(one)
                        again = yield from _over(one, "")
                        waiting += again
                now = time.monotonic()
                for one in [other for other in running if other.deadline <= now]:
                    selector.unregister(one.process.stdout)  # type: ignore[arg-type]
                    running.remove(one)
                    again = yield from _over(one, "hang")
                    waiting += again
        finally:
            for one in running:
                _kill(one)


def _start(job: Job, left: list[int], environment: dict[str, str] | None, limit_s: float, start_s: float) -> _Running:
    errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with its probe)
    process = subprocess.Popen(
        [sys.executable, "-m", PROBE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        env={**os.environ, **(environment or {})}, start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    asked = {**job.payload, "cells": left, "again": len(left) < len(job.cells)}
    with suppress(BrokenPipeError):
        process.stdin.write(json.dumps(asked).encode())
        process.stdin.close()
    return _Running(job, list(left), process, errors, time.monotonic() + max(start_s, limit_s), limit_s)


def _read(one: _Running) -> Generator[Answer, None, bool]:
    """Take what has come; returns whether the stream ended."""
    assert one.process.stdout is not None
    data = os.read(one.process.stdout.fileno(), 1 << 16)
    if not data:
        return True
    *lines, one.buffer = (one.buffer + data).split(b"\n")
    for line in lines:
        try:
            said = json.loads(line)
        except ValueError:
            continue  # a library that got hold of the pipe: not a word of the probe's
        if not isinstance(said, dict):
            continue
        one.deadline = time.monotonic() + float(said.get("limit_s") or one.limit_s)
        if "at" in said:
            one.at = str(said["at"])
        elif said.get("again"):
            one.again = True
        elif said.get("cell") in one.left:
            one.left.remove(said["cell"])
            one.answered += 1
            yield Answer(said["cell"], said["result"])
    return False


def _over(one: _Running, how: str) -> Generator[Answer, None, list[tuple[Job, list[int]]]]:
    """End a probe; the first cell it still owed is red, the others are to be asked again: returned as waiting."""
    if how == "hang":
        _kill(one)
    code = one.process.wait() if how else _wait(one)
    errors = _tail(one)
    _close(one)
    if not one.left:
        return []
    if one.again and one.answered:
        return [(one.job, one.left)]
    if how == "hang":
        words = f"no word for {one.limit_s:g} s while it was {one.at}"
        status = "hang"
    else:
        words, status = f"{_death(code)} while it was {one.at}", "crash"
    dead, rest = one.left[0], one.left[1:]
    yield Answer(dead, {"status": status, "explanation": f"{words}. {errors}".strip()})
    return [(one.job, rest)] if rest else []


def _wait(one: _Running) -> int:
    try:
        return one.process.wait(5.0)
    except subprocess.TimeoutExpired:
        _kill(one)
        return one.process.wait()


def _death(code: int) -> str:
    if code < 0:
        with suppress(ValueError):
            return f"its process was killed by {signal.Signals(-code).name}"
    return f"its process ended with exit code {code}"


def _tail(one: _Running) -> str:
    """The last lines it printed to stderr, on one."""
    size = one.errors.seek(0, os.SEEK_END)
    one.errors.seek(max(0, size - _TAIL))
    text = one.errors.read().decode(errors="replace")
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    told = " | ".join(lines[-3:])[-400:]
    return f"It said: {told}" if told else ""


def _kill(one: _Running) -> None:
    with suppress(OSError):
        os.killpg(one.process.pid, signal.SIGKILL)
    one.process.wait()


def _close(one: _Running) -> None:
    one.errors.close()
    if one.process.stdout is not None:
        one.process.stdout.close()
