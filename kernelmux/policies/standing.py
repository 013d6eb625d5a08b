"""What is known of a kernel on this very GPU: the verdicts of the trust gate, as a selection reads them.

Only reads, and only for a GPU that is there: the check itself is ``kernelmux.trust``, loaded by name where a kernel is
about to be used for the first time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernelmux.errors import UsageError
from kernelmux.registry import frozen
from kernelmux.registry.decision import Rejected
from kernelmux.registry.lazy import load
from kernelmux.registry.packages import ASSUMED, Packages
from kernelmux.registry.requirements import AnyOf, NeedsPackage

if TYPE_CHECKING:
    from kernelmux.device import Device
    from kernelmux.policies.selection import Selection
    from kernelmux.registry.kernel import Kernel
    from kernelmux.registry.problem import Problem
    from kernelmux.registry.requirements import Requirement
    from kernelmux.store.quarantine import Verdict

VARIABLE = "KERNELMUX_TRUST"
OFF, ON, STRICT = MODES = ("off", "on", "strict")
_TORCH = "kernelmux.backends.torch."

Doubt = Callable[["Kernel", "Problem", bool], "Rejected | None"]
"""(kernel, problem, whether the caller asked for it) -> why it is not to be taken here."""

_passed_over: set[str] = set()  # kernels not taken because they could not be checked then
_identities: dict[tuple[str, str, str | None], dict[str, str]] = {}


def mode() -> str:
    """``off``, ``on`` or ``strict``, from KERNELMUX_TRUST. Raises UsageError for another word."""
    word = os.environ.get(VARIABLE, "").strip().lower() or ON
    if word not in MODES:
        raise UsageError(f"{VARIABLE}={word} is none of {', '.join(MODES)}: see docs/trust.md.")
    return word


def applies(device: Device) -> bool:
    """Whether kernels are checked there: on a GPU that is present; in strict mode on the CPU too."""
    how = mode()
    if how == OFF:
        return False
    return how == STRICT if device.vendor == "cpu" else device.live


def exempt(kernel: Kernel) -> bool:
    """Whether it is trusted by construction: kernelmux's torch kernels, which are the references' kin."""
    return kernel.load.startswith(_TORCH) and mode() != STRICT


def restricted() -> bool:
    """Whether nothing can be checked now: after ``freeze()``, or in a capture."""
    return frozen.is_frozen() or frozen.is_capturing()


def gate(selection: Selection) -> Selection | None:
    """The prepare hook: what to take instead of a kernel that fails its check; None for one that is sound."""
    if not applies(selection.device):
        return None
    replaced: Selection | None = load("kernelmux.trust.gate:gate")(selection)
    return replaced


def doubts(device: Device) -> Doubt | None:
    """What stands against kernels on this device; None for nothing, which is what a described GPU has."""
    if not applies(device):
        return None
    from kernelmux.store import quarantine

    held = restricted()
    book = quarantine.book(read=not held)
    if not held and not len(book):
        return None

    def doubt(kernel: Kernel, problem: Problem, asked_for: bool) -> Rejected | None:
        if exempt(kernel):
            return _no_capture(kernel) if held and not asked_for else None
        found = verdict(kernel, device, problem) if book.speaks_of(kernel.name) else None
        if found is not None and found.status == quarantine.QUARANTINED:
            return quarantined(found)
        if found is not None and found.status == quarantine.UNCHECKED and mode() == STRICT:
            return Rejected("unchecked", f"it could not be checked on this GPU: {found.reason}", f"set {VARIABLE}=on")
        if held and (not asked_for or mode() == STRICT) and found is None:
            _passed_over.add(kernel.name)
            return Rejected(
                "ungated",
                "it has not been checked on this GPU, and nothing can be checked after freeze() or in a capture",
                "check it before, with km.warmup()",
            )
        return _no_capture(kernel) if held and not asked_for else None

    return doubt


def _no_capture(kernel: Kernel) -> Rejected | None:
    if kernel.capturable or not frozen.is_capturing():
        return None
    return Rejected("capture", "it cannot run in a CUDA graph", "call it before the capture, or choose another backend")


def quarantined(found: Verdict) -> Rejected:
    """The words for a kernel that failed its check."""
    return Rejected(
        "quarantined",
        f"it failed its check on this GPU ({found.when[:10]}): {found.reason}",
        f"`kernelmux doctor --retry '{found.kernel}'` checks it again; {VARIABLE}=off takes it all the same",
    )


def verdict(kernel: Kernel, device: Device, problem: Problem) -> Verdict | None:
    """What the gate found for this kernel in the problem's form; None where it has not looked."""
    from kernelmux.store import quarantine

    identity = fingerprint(kernel, device)
    if identity is None:
        return None
    key = quarantine.key_of(kernel.name, problem.scheme.name, problem.dtype or "", problem.activation, identity)
    return quarantine.book(read=not restricted()).find(key)


def passed_over(kernel: str) -> bool:
    """Whether it was left out of a choice because it could not be checked; says so once."""
    found = kernel in _passed_over
    _passed_over.discard(kernel)
    return found


def fingerprint(kernel: Kernel, device: Device) -> dict[str, str] | None:
    """All that a verdict depends on; None where it is not in memory and no file may be read now."""
    key = (kernel.name, device.torch_name, device.driver)
    found = _identities.get(key)
    if found is None:
        if restricted():
            return None
        found = _identities[key] = _fingerprint(kernel, device)
    return found


def _fingerprint(kernel: Kernel, device: Device) -> dict[str, str]:
    packages = Packages.installed()
    names = {"torch"}.union(*(packages_of(requirement) for requirement in kernel.requirements))
    built = {}
    if "flashinfer-python" in names:  # what its kernels are built from: one that could not be built may be later
        names |= {"flashinfer-jit-cache", "flashinfer-cubin"}
        built = {name: value for name in ("FLASHINFER_DISABLE_JIT",) if (value := os.environ.get(name))}
    versions = {name: version for name in sorted(names) if (version := packages.get(name)) not in (None, "", ASSUMED)}
    return {
        "device": device.torch_name,
        "capability": str(device.capability or device.arch),
        "driver": device.driver or "",
        "kernelmux": sys.modules["kernelmux"].__version__,
        **{name: str(version) for name, version in versions.items()},
        **built,
        "source": str(load(kernel.source)()) if kernel.source else _file_hash(kernel.load.partition(":")[0]),
    }


def packages_of(requirement: Requirement | Any) -> set[str]:
    """The packages a requirement speaks of, also inside another requirement."""
    if isinstance(requirement, NeedsPackage):
        return {requirement.name}
    inside = (
        requirement.requirements if isinstance(requirement, AnyOf) else (getattr(requirement, "requirement", None),)
    )
    carriers = getattr(requirement, "carriers", ())  # of a toolkit, which several packages may carry
    return set(carriers).union(*(packages_of(part) for part in inside if part is not None))


@lru_cache(maxsize=512)
def _file_hash(module: str) -> str:
    """The identity of the file a kernel's function is in, without importing it or its parents; empty if unknown."""
    from importlib.util import find_spec

    from kernelmux.store.files import sha256

    top, *rest = module.split(".")
    loaded = getattr(sys.modules.get(module), "__file__", None)
    candidates = [Path(loaded)] if loaded else []
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        spec = None
    if spec is not None:
        roots = [Path(root) for root in spec.submodule_search_locations or ()]
        candidates += [root.joinpath(*rest).with_suffix(".py") for root in roots if rest]
        candidates += [root.joinpath(*rest, "__init__.py") for root in roots]
        candidates += [Path(spec.origin)] if spec.origin and not rest else []
    for path in candidates:
        if path.is_file():
            return sha256(path.read_bytes())[:16]
    return ""


def forget() -> None:
    """See the packages and the verdicts that are there now."""
    from kernelmux.store import quarantine

    _identities.clear()
    _file_hash.cache_clear()
    quarantine.refresh()
