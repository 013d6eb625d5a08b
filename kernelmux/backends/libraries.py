"""Requirements that only kernels of other libraries have, and the way their modules are imported.

How a CUDA version is known: an installed set of Packages names it by the package that carries it (`CUDA_CARRIERS`), or
by the local version of torch (``2.11.0+cu130``). A described set may say it directly, ``{"cuda": "12.9"}``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import MissingPackage
from ..registry import ACCEPTED, Conditional, Decision, Rejected, Requirement
from ..registry.value import Value

if TYPE_CHECKING:
    from ..device import Capability, Device
    from ..registry import Packages, Problem

CUDA_CARRIERS = ("cuda", "nvidia-cuda-runtime", "nvidia-cuda-runtime-cu13", "nvidia-cuda-runtime-cu12")
CUDNN_CARRIERS = ("nvidia-cudnn-cu13", "nvidia-cudnn-cu12", "cudnn")


class NeedsToolkit(Value):
    """A version of CUDA or cuDNN, whichever package carries it.

    One carrier in range is enough. With none installed the version cannot be known from the packages (a system-wide
    CUDA, a container): a condition. ``what`` is shown to people.
    """

    what: str
    carriers: tuple[str, ...]
    spec: str
    why: str
    install: str
    link: str | None = None

    def check(self, device: Device, packages: Packages, problem: Problem) -> Decision:
        found = [version for name in self.carriers if (version := packages.get(name)) is not None]
        if any(packages.has(name, self.spec) for name in self.carriers):
            return ACCEPTED
        if "cuda" in self.carriers:
            built = cuda_of_torch(packages.get("torch"))
            if built is not None:
                from ..registry.packages import satisfies

                if satisfies(built, self.spec):
                    return ACCEPTED
                found.append(built)
        if not found:
            return Conditional(
                (f"the installed packages do not tell the version of {self.what}: it must be {self.spec}",)
            )
        reason = f"it needs {self.what}{self.spec} ({self.why}); {found[0]} is installed"
        return Rejected("package_version", reason, self.install, self.link)

    def describe(self) -> str:
        return f"{self.what}{self.spec}"


def needs_cuda(spec: str, why: str, link: str | None = None) -> NeedsToolkit:
    """A CUDA version, such as ``>=12.9``."""
    install = f"install torch built for CUDA {spec.lstrip('>=')} or later"
    return NeedsToolkit("CUDA", CUDA_CARRIERS, spec, why, install, link)


def needs_cudnn(spec: str, why: str, link: str | None = None) -> NeedsToolkit:
    """A cuDNN version, such as ``>=9.10.2``."""
    return NeedsToolkit("cuDNN", CUDNN_CARRIERS, spec, why, f"`pip install 'nvidia-cudnn-cu13{spec}'` (or -cu12)", link)


def cuda_of_torch(version: str | None) -> str | None:
    """The CUDA version in torch's local version: ``2.11.0+cu130`` -> ``13.0``; None where it names none."""
    local = (version or "").partition("+")[2]
    digits = local.removeprefix("cu")
    if not local.startswith("cu") or not digits.isdigit() or len(digits) < 3:
        return None
    return f"{int(digits[:-1])}.{digits[-1]}"


class Bounded(Value):
    """An axis between two sizes, both allowed. None: no bound on that side."""

    axis: str
    least: int | None = None
    most: int | None = None
    why: str = ""

    def check(self, device: Device, packages: Packages, problem: Problem) -> Decision:
        size = problem.shape.get(self.axis)
        if size is None:
            return Conditional((f"{self.axis} was not given: it must be {self._range()}",))
        low, high = (size, size) if isinstance(size, int) else size
        if (self.least is None or low >= self.least) and (self.most is None or high <= self.most):
            return ACCEPTED
        given = str(low) if low == high else f"{low}..{high}"
        why = f" ({self.why})" if self.why else ""
        remedy = "choose another backend for this size, or ask for a range inside"
        return Rejected("size", f"{self.axis} must be {self._range()}{why}; it is {given}", remedy)

    def _range(self) -> str:
        if self.least is None:
            return f"at most {self.most}"
        return f"at least {self.least}" + ("" if self.most is None else f" and at most {self.most}")

    def describe(self) -> str:
        return f"{self.axis} {self._range()}"


class SizesIn(Value):
    """Axes that come only in the combinations a library was compiled for."""

    axes: tuple[str, ...]
    sizes: frozenset[tuple[int, ...]]
    why: str

    def check(self, device: Device, packages: Packages, problem: Problem) -> Decision:
        given = tuple(problem.shape.get(axis) for axis in self.axes)
        known = " or ".join("x".join(map(str, one)) for one in sorted(self.sizes))
        if None in given:
            lacking = ", ".join(axis for axis, size in zip(self.axes, given, strict=True) if size is None)
            names = "x".join(self.axes)
            return Conditional((f"{lacking} was not given: {names} must be {known}",))
        if given in self.sizes:
            return ACCEPTED
        reason = f"{'x'.join(self.axes)} must be {known} ({self.why}); it is {'x'.join(map(str, given))}"
        return Rejected("size", reason, "choose another backend for this size")

    def describe(self) -> str:
        return f"{'x'.join(self.axes)} of a fixed set"


class Where(Value):
    """A requirement that holds on some GPUs only."""

    capabilities: frozenset[Capability]
    requirement: Requirement

    def check(self, device: Device, packages: Packages, problem: Problem) -> Decision:
        if device.capability in self.capabilities:
            return self.requirement.check(device, packages, problem)
        return ACCEPTED

    def describe(self) -> str:
        return f"on {', '.join(map(str, sorted(self.capabilities)))}: {self.requirement.describe()}"


class WithActivation(Value):
    """A requirement that holds for some activations only."""

    activations: frozenset[str]
    requirement: Requirement

    def check(self, device: Device, packages: Packages, problem: Problem) -> Decision:
        if problem.activation in self.activations:
            return self.requirement.check(device, packages, problem)
        return ACCEPTED

    def describe(self) -> str:
        return f"with {', '.join(sorted(self.activations))}: {self.requirement.describe()}"


class ShapeIssue(Value):
    """A known fault of some shapes: an axis that is no multiple of a number, on these GPUs, in these versions."""

    capabilities: frozenset[Capability]
    package: str
    spec: str
    axis: str
    multiple: int
    reason: str
    link: str

    def check(self, device: Device, packages: Packages, problem: Problem) -> Decision:
        if device.capability not in self.capabilities or not packages.has(self.package, self.spec):
            return ACCEPTED
        size = problem.shape.get(self.axis)
        if size is None:
            return Conditional(
                (f"{self.axis} was not given: it must be a multiple of {self.multiple}, or {self.reason}",)
            )
        if isinstance(size, int) and size % self.multiple == 0:
            return ACCEPTED
        remedy = f"pad {self.axis} to a multiple of {self.multiple}, or choose another backend"
        return Rejected(
            "known_issue", f"{self.reason} ({self.axis}={size}, no multiple of {self.multiple})", remedy, self.link
        )

    def describe(self) -> str:
        return f"{self.axis} % {self.multiple} == 0 (known issue)"


class Provided(Value):
    """Something the caller must bring that no shape tells, such as calibrated scales of a checkpoint: a condition."""

    what: str

    def check(self, device: Device, packages: Packages, problem: Problem) -> Decision:
        return Conditional((self.what,))

    def describe(self) -> str:
        return self.what


class OnDemand(Value):
    """A kernel with a calling convention of its own: offered to a caller who demands it by name only."""

    demand: str
    reason: str
    remedy: str

    def check(self, device: Device, packages: Packages, problem: Problem) -> Decision:
        if self.demand in problem.demands:
            return ACCEPTED
        return Rejected("demand", self.reason, self.remedy)

    def describe(self) -> str:
        return f"on demand of {self.demand}"


def module(name: str, package: str, needed_for: str) -> Any:
    """Import a library's module. Raises MissingPackage naming the pip command when it is not there."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise MissingPackage(package, needed_for, f"pip install '{package}'") from None
        raise
