"""Whether this process is frozen, or capturing a CUDA graph: then nothing tunes, compiles, loads or touches a file."""

from __future__ import annotations

import sys

from kernelmux.errors import FrozenError

_frozen = False


def is_frozen() -> bool:
    return _frozen


def set_frozen(value: bool) -> None:
    """Freeze, or thaw (for tests and for a server that reconfigures itself)."""
    global _frozen
    _frozen = value


def is_capturing() -> bool:
    """Whether the current stream of this thread is being captured into a CUDA graph. Starts no CUDA."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    begun = getattr(cuda, "is_initialized", None)
    return cuda is not None and begun is not None and begun() and bool(cuda.is_current_stream_capturing())


def guard(what: str, instead: str = "with km.warmup()") -> None:
    """Raise FrozenError when frozen or capturing; for what happens once, never on a warm path.

    ``what`` completes "this would ...": ``load kernelmux.rms_norm[triton]``; ``instead`` says how to do it in time.
    """
    if _frozen:
        raise FrozenError(f"kernelmux is frozen and this would {what}. Do it before km.freeze(), {instead}.")
    if is_capturing():
        raise FrozenError(f"a CUDA graph is being captured and this would {what}. Do it before the capture, {instead}.")
