"""A counter of everything that selections depend on in this process.

Whoever changes it (a table written, a measurement recorded, a kernel registered) calls ``bump()``; cached selections
are then made anew. A change by another process is not seen: start afresh, or call ``kernelmux.refresh()``.
"""

from __future__ import annotations

from collections.abc import Callable

value = 0
_listeners: list[Callable[[], None]] = []
_op_listeners: list[Callable[[str], None]] = []


def bump() -> int:
    """Say that something a selection depends on has changed. Returns the new count."""
    global value
    value += 1
    for listener in _listeners:
        listener()
    return value


def bump_op(op: str) -> int:
    """The same for what the choices of one op alone depend on: nothing is read again. Returns the new count."""
    global value
    value += 1
    for listener in _op_listeners:
        listener(op)
    return value


def listen(listener: Callable[[], None]) -> None:
    """Call ``listener`` at every bump."""
    _listeners.append(listener)


def listen_op(listener: Callable[[str], None]) -> None:
    """Call ``listener`` with the op at every bump of a single one."""
    _op_listeners.append(listener)
