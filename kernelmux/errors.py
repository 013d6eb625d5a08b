"""The errors a caller can meet, as a small tree: catch by meaning.

Every message says what happened, why, and what to do about it. ``exit_code`` is what the command line
returns: 2 for a usage error, 1 otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

_MOST_LISTED = 24  # names that still read as one sentence; of more the hint says where they are


class KernelmuxError(Exception):
    """Base of every error kernelmux raises on purpose."""

    exit_code = 1


class UsageError(KernelmuxError, ValueError):
    """The caller's words are off: an unknown name, a malformed shape. The command line exits with 2."""

    exit_code = 2


def _unknown(kind: str, name: object, known: Iterable[str], hint: str) -> str:
    names, said = sorted(known), str(name)
    begun = [other for other in names if said and other.startswith(said)]
    near = (begun or _near(said, names))[:4]
    everything = f" Known: {', '.join(names)}." if len(names) <= _MOST_LISTED else ""
    guess = f" Did you mean {' or '.join(near)}?" if near else everything
    return f"unknown {kind} {said!r}.{guess} {hint}".rstrip()


def _near(said: str, names: Sequence[str]) -> list[str]:
    """Names like ``said``, the likest first: by the whole, else by the first word (h101: h100-sxm, h100-pcie, ...)."""
    whole = get_close_matches(said, names, n=3, cutoff=0.75)
    if whole:
        return whole
    heads = get_close_matches(said, sorted({other.partition("-")[0] for other in names}), n=1, cutoff=0.7)
    return [other for other in names if other.partition("-")[0] in heads] or get_close_matches(
        said, names, n=3, cutoff=0.5
    )


class UnknownOp(UsageError):
    """No op of this name is registered."""

    def __init__(self, name: object, known: Iterable[str]):
        super().__init__(_unknown("op", name, known, "List them with `kernelmux ops`."))


class UnknownDevice(UsageError):
    """No GPU of this name is in the catalog or in this machine."""

    def __init__(self, name: object, known: Iterable[str]):
        super().__init__(_unknown("device", name, known, "List them with `kernelmux devices`."))


class UnknownScheme(UsageError):
    """No quantization scheme of this name is known."""

    def __init__(self, name: object, known: Iterable[str]):
        super().__init__(_unknown("quant", name, known, "Use one of these names, or None for an unquantized layer."))


class BadShape(UsageError):
    """A shape cannot be read, or does not fit the op."""


class DeviceNotFound(KernelmuxError):
    """A live device was asked for and this machine has none that answers."""


class DeviceLost(KernelmuxError):
    """The GPU stopped answering while it was being measured. What was measured is in the journal."""


class MissingPackage(KernelmuxError):
    """Something needs a package that is not installed; the message names the pip command."""

    def __init__(self, package: str, needed_for: str, install: str):
        self.package = package
        doing = needed_for[:1].upper() + needed_for[1:]
        super().__init__(f"{doing} needs {package}, which is not installed. Install it with `{install}`.")


class NoKernel(KernelmuxError):
    """No kernel can run the problem, or an explicit choice cannot be honoured.

    ``rejected`` carries the Decision on every candidate, so that a caller can print or act on it.
    """

    def __init__(self, message: str, rejected: Sequence[Any] = ()):
        self.rejected = tuple(rejected)
        super().__init__(message)


class ConfigFileError(KernelmuxError):
    """A tuned table, sidecar, policy or catalog file cannot be used; names the file, the place and the mend."""

    def __init__(self, path: Path | str, where: str, problem: str, fix: str = ""):
        self.path, self.where, self.problem, self.fix = Path(path), where, problem, fix
        place = f" at {where}" if where else ""
        super().__init__(f"{path}{place}: {problem}" + (f" {fix}" if fix else ""))


class StoreError(KernelmuxError):
    """A file cannot be written, locked or opened: no permission, disk full, foreign file."""


class TuneError(KernelmuxError):
    """Tuning cannot go on or has nothing to offer; says at which step and what is kept."""


class CompileFailed(KernelmuxError):
    """A CUDA kernel does not compile. ``log``: all the compiler said; ``source``, ``line``: where it first pointed."""

    def __init__(self, message: str, log: str = "", source: Path | None = None, line: int | None = None):
        self.log, self.source, self.line = log, source, line
        super().__init__(message)


class LaunchFailed(KernelmuxError):
    """The CUDA driver refused to load or launch a kernel."""

    def __init__(self, doing: str, why: str):
        super().__init__(
            f"cannot {doing}: {why}. If an earlier kernel failed, run again with CUDA_LAUNCH_BLOCKING=1 to see which."
        )


class TrustError(KernelmuxError):
    """A kernel failed its check and no other can take its place: weights are prepared for it, or it was asked for."""


class FrozenError(KernelmuxError):
    """After ``freeze()`` nothing tunes, compiles, loads or writes."""
