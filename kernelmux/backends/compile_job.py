"""What a kernel's ``compile`` hook answers with: the compilations its calls will need, each to be run or not."""

from __future__ import annotations

from collections.abc import Callable

from ..registry.value import Value


class CompileJob(Value):
    """One compilation. ``run`` answers whether a compiler was needed: False where the cache had it already."""

    what: str
    run: Callable[[], bool]
