"""Triton compiles or loads a kernel at the first launch that needs it: not after ``freeze()``, not during a capture."""

from __future__ import annotations

from typing import Any

from ...registry.frozen import guard

_installed = False


def install() -> None:
    """From now on a launch of a kernelmux kernel that is not in memory raises FrozenError where it may not be fetched.

    Uses Triton's hook for kernels it has not in memory, behind whichever hook is there; kernels of others pass.
    """
    global _installed
    if _installed:
        return
    from triton import knobs

    before = knobs.runtime.jit_cache_hook

    def hook(*, fn: Any, **about: Any) -> Any:
        if fn.module.partition(".")[0] == "kernelmux":
            guard(
                f"compile or load {fn.name.rpartition('.')[2]} in a variant not used so far",
                "with km.warmup(selection, ms=[...]) or one call with such arguments",
            )
        return before(fn=fn, **about) if before else None

    knobs.runtime.jit_cache_hook = hook
    _installed = True
