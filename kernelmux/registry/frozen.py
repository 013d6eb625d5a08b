"""Whether this process is frozen: from then on nothing tunes, compiles, loads or touches a file."""

from __future__ import annotations

from kernelmux.errors import FrozenError

_frozen = False


def is_frozen() -> bool:
    return _frozen


def set_frozen(value: bool) -> None:
    """Freeze, or thaw (for tests and for a server that reconfigures itself)."""
    global _frozen
    _frozen = value


def guard(what: str) -> None:
    """Raise FrozenError when frozen. ``what`` completes "this would ...": ``load kernelmux.rms_norm[triton]``."""
    if _frozen:
        raise FrozenError(f"kernelmux is frozen and this would {what}. Do it before km.freeze(), with km.warmup().")
