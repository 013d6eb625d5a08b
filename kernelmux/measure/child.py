"""The process that owns the GPU: answers one request at a time, and says what it is at, so that a death has a cause."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from ..backends.triton.moe_variant import MoeVariant
from ..contracts.moe_shape import MoeShape
from ..device import Device

if TYPE_CHECKING:
    from .stand import Stand

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent dies, so that no killed tuner leaves a process on the GPU."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def one_line(error: BaseException) -> str:
    """The error in one line: its type and its first words."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def main(pipe: Connection, shape: MoeShape, device: Device, variant: MoeVariant) -> None:
    """Serve ("time" | "align" | "check" | "facts", args) until the pipe closes.

    Answers ("done", value) or ("lost", why); ("at", i) says that tile i of the request is being worked on.
    """
    die_with_parent()
    os.setpgid(0, 0)
    try:
        from .stand import Stand

        stand = Stand(shape, device, variant)
    except Exception as error:
        pipe.send(("lost", one_line(error)))
        return
    pipe.send(("done", None))
    serve(pipe, stand)


def serve(pipe: Connection, stand: Stand) -> None:
    """Answer requests until the pipe closes or the GPU's context is gone."""

    def at(index: int) -> None:
        pipe.send(("at", index))

    while True:
        try:
            verb, args = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer: Any
            if verb == "time":
                m, side, tiles, samples = args
                answer = [plain(value) for value in stand.time(m, side, tiles, samples, at)]
            elif verb == "check":
                m, pairs = args
                answer = [plain(value) for value in stand.check(m, pairs, at)]
            elif verb == "align":
                answer = stand.align(*args)
            else:
                answer = stand.conditions()
        except Exception as error:  # a context that is gone: only a new process can go on
            pipe.send(("lost", one_line(error)))
            return
        pipe.send(("done", answer))


def plain(value: Any) -> Any:
    """An exception as its one line, marked; anything else as it is."""
    return ("raised", one_line(value)) if isinstance(value, BaseException) else value
