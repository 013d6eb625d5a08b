"""What a kernel's ``compile`` hook answers with: the compilations its calls will need, each to be run or not."""

from __future__ import annotations

from collections.abc import Callable

from ..registry.value import Value


class CompileFacts(Value):
    """What the compiler says of one kernel: registers and bytes of local memory (spills) a thread, shared a block."""

    registers: int
    spills: int
    shared_bytes: int


class CompileJob(Value):
    """One compilation. ``run`` answers whether a compiler was needed: False where the cache had it already.

    ``facts`` tells, after ``run``, what came out; None for a job that cannot tell.
    """

    what: str
    run: Callable[[], bool]
    facts: Callable[[], CompileFacts] | None = None
