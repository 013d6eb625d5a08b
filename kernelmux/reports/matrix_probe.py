"""The probe: tries one kernel in a process of its own. Started by ``matrix_pool`` and by nobody else."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1


class Pipe:
    """The way back: the stdout this process was given, which nothing else can write to any more."""

    def __init__(self) -> None:
        self._file = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # what a library prints goes to stderr

    def at(self, words: str, limit_s: float | None = None) -> None:
        """Say what comes next, and how long it may take if that is not the usual."""
        self._send({"at": words, "limit_s": limit_s})

    def result(self, cell: int, result: dict[str, Any]) -> None:
        """Answer for one cell."""
        self._send({"cell": cell, "result": result})

    def again(self) -> None:
        """Say that this process can do no more, and another may do the rest."""
        self._send({"again": True})

    def _send(self, said: dict[str, Any]) -> None:
        self._file.write(json.dumps(said) + "\n")
        self._file.flush()


def main() -> None:
    if sys.platform == "linux":  # no probe outlives a run that was killed
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    pipe = Pipe()
    job = json.load(sys.stdin)
    if job["kind"] == "compiled":
        from kernelmux.reports.matrix_compile_probe import probe
    else:
        from kernelmux.reports.matrix_live_probe import probe
    probe(job, pipe)


if __name__ == "__main__":
    main()
