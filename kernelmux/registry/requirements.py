"""Requirements: testable facts a kernel declares, each with words for both outcomes.

A Requirement looks at one thing and answers Accepted, Conditional (it could not look, and says at what) or Rejected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from kernelmux.registry.decision import ACCEPTED, Conditional, Decision, Rejected, combine
from kernelmux.registry.lazy import load
from kernelmux.registry.value import Value

if TYPE_CHECKING:
    from kernelmux.device import Capability, Device
    from kernelmux.registry.packages import Packages
    from kernelmux.registry.problem import Problem


class Requirement(Protocol):
    """Anything with ``check`` and ``describe``; values, so that they can be printed, compared and tested."""

    def check(self, device: Device, packages: Packages, problem: Problem) -> Decision: ...
    def describe(self) -> str: ...


class _Any:
    """The capability set of a portable kernel."""

    def __repr__(self) -> str:
        return "any"


ANY = _Any()


def _words(values: frozenset[Any] | tuple[Any, ...]) -> str:
    return ", ".join(str(value) for value in sorted(values))


class OnCapability(Value):
    """The GPUs it is for: an explicit set of compute capabilities, or ANY for a portable kernel.

    There is no way to say "at least": 12.0 lacks instructions that 10.0 has.
    """

    capabilities: frozenset[Capability] | _Any
    why: str = ""

    def check(self, device: Device, packages: Packages, problem: Problem) -> Decision:
        if isinstance(self.capabilities, _Any) or device.capability in self.capabilities:
            return ACCEPTED
        here = (
            f"capability {device.capability}"
            if device.capability
            else f"{device.vendor} ({device.arch}), with no CUDA capability"
        )
        why = f" ({self.why})" if self.why else ""
        return Rejected(
            "capability",
            f"it is for capability {_words(self.capabilities)}{why}; {device.name} has {here}",
            "choose a backend made for this GPU, or run on one of those",
        )

    def describe(self) -> str:
        return "any GPU" if isinstance(self.capabilities, _Any) else f"capability {_words(self.capabilities)}"


class VendorIn(Value):
    """The makers it runs on: ``nvidia``, ``amd``, ``cpu``."""

    vendors: frozenset[str]
    why: str = ""

    def check(self, device: Device, packages: Packages, problem: Problem) -> Decision:
        if device.vendor in self.vendors:
            return ACCEPTED
        why = f" ({self.why})" if self.why else ""
        here = device.vendor if device.name == device.vendor else f"{device.name}, which is {device.vendor}"
        remedy = f"choose a backend that runs on {device.vendor}, or a device of {_words(self.vendors)}"
        return Rejected("vendor", f"it runs on {_words(self.vendors)}{why}, not on {here}", remedy)

    def describe(self) -> str:
        return f"on {_words(self.vendors)}"


class NeedsPackage(Value):
    """An installed distribution, in a version range (PEP 440; empty: any version).

    ``to_run`` marks what is needed to run the kernel and not to choose it: where it is missing the answer is a
    condition, so that a machine without it can still decide. ``install`` is the command when it is not plain pip.
    """

    name: str
    spec: str = ""
    why: str = ""
    to_run: bool = False
    install: str = ""
    link: str | None = None

    def check(self, device: Device, packages: Packages, problem: Problem) -> Decision:
        if packages.has(self.name, self.spec):
            return ACCEPTED
        version = packages.get(self.name)
        command = self.install or f"pip install '{self.name}{self.spec}'"
        why = f" ({self.why})" if self.why else ""
        if version is None:
            if self.to_run:
                return Conditional((f"{self.name} is not installed here; it is needed to run this: `{command}`",))
            return Rejected(
                "package_missing",
                f"it needs {self.name}{self.spec}{why}, which is not installed",
                f"`{command}`",
                self.link,
            )
        reason = f"it needs {self.name}{self.spec}{why}; {version} is installed"
        return Rejected("package_version", reason, f"`{command}`", self.link)

    def describe(self) -> str:
        return f"{self.name}{self.spec}" + (" to run" if self.to_run else "")


class DtypeIn(Value):
    """The dtypes of the activations it takes, as torch names them."""

    dtypes: frozenset[str]
    why: str = ""

    def check(self, device: Device, packages: Packages, problem: Problem) -> Decision:
        if problem.dtype is None:
            return Conditional((f"the dtype was not given: it must be one of {_words(self.dtypes)}",))
        if problem.dtype in self.dtypes:
            return ACCEPTED
        why = f" ({self.why})" if self.why else ""
        return Rejected(
            "dtype",
            f"it takes {_words(self.dtypes)}{why}, not {problem.dtype}",
            f"use {_words(self.dtypes)}, or another backend",
        )

    def describe(self) -> str:
        return f"dtype {_words(self.dtypes)}"


class SchemeIn(Value):
    """The quantization schemes it takes."""

    schemes: frozenset[str]
    why: str = ""

    def check(self, device: Device, packages: Packages, problem: Problem) -> Decision:
        if problem.scheme.name in self.schemes:
            return ACCEPTED
        why = f" ({self.why})" if self.why else ""
        remedy = "choose a backend that reads this scheme, or quantize the layer differently"
        return Rejected("scheme", f"it takes quant {_words(self.schemes)}{why}, not {problem.scheme.name}", remedy)

    def describe(self) -> str:
        return f"quant {_words(self.schemes)}"


class ActivationIn(Value):
    """The activations it can apply."""

    activations: frozenset[str]
    why: str = ""

    def check(self, device: Device, packages: Packages, problem: Problem) -> Decision:
        if problem.activation is None:
            return Conditional((f"the activation was not given: it must be one of {_words(self.activations)}",))
        if problem.activation in self.activations:
            return ACCEPTED
        why = f" ({self.why})" if self.why else ""
        reason = f"it applies {_words(self.activations)}{why}, not {problem.activation}"
        return Rejected("activation", reason, "choose a backend that applies it")

    def describe(self) -> str:
        return f"activation {_words(self.activations)}"


class Aligned(Value):
    """An axis that must be a multiple of a number of elements."""

    axis: str
    multiple: int
    why: str = ""

    def check(self, device: Device, packages: Packages, problem: Problem) -> Decision:
        size = problem.shape.get(self.axis)
        if size is None:
            return Conditional((f"{self.axis} was not given: it must be a multiple of {self.multiple}",))
        if isinstance(size, int) and size % self.multiple == 0:
            return ACCEPTED
        why = f" ({self.why})" if self.why else ""
        if not isinstance(size, int):
            size = f"{size[0]}..{size[1]}"  # type: ignore[assignment]  # only in the message
        reason = f"{self.axis} must be a multiple of {self.multiple}{why}; it is {size}"
        return Rejected(
            "alignment", reason, f"pad {self.axis} to a multiple of {self.multiple}, or choose another backend"
        )

    def describe(self) -> str:
        return f"{self.axis} % {self.multiple} == 0"


class SharedMemory(Value):
    """The shared memory a block needs at least, in bytes (opt-in limit of the GPU)."""

    minimum: int
    why: str = ""

    def check(self, device: Device, packages: Packages, problem: Problem) -> Decision:
        if device.shared_bytes >= self.minimum:
            return ACCEPTED
        why = f" ({self.why})" if self.why else ""
        reason = f"it needs {self.minimum} B of shared memory a block{why}; {device.name} has {device.shared_bytes} B"
        return Rejected("shared_memory", reason, "choose another backend, or a GPU with more shared memory")

    def describe(self) -> str:
        return f"{self.minimum} B shared memory"


class KnownIssue(Value):
    """A window in which it is known to be wrong: on these GPUs, while every one of these package ranges holds."""

    capabilities: frozenset[Capability] | _Any
    packages: Mapping[str, str]
    reason: str
    remedy: str
    link: str | None = None

    def check(self, device: Device, packages: Packages, problem: Problem) -> Decision:
        here = isinstance(self.capabilities, _Any) or device.capability in self.capabilities
        if here and all(name in packages and packages.has(name, spec) for name, spec in self.packages.items()):
            return Rejected("known_issue", self.reason, self.remedy, self.link)
        return ACCEPTED

    def describe(self) -> str:
        return f"known issue: {self.reason}"


class Predicate(Value):
    """A rare fact as code: ``module:function(device, packages, problem) -> Decision``."""

    function: str
    summary: str

    def check(self, device: Device, packages: Packages, problem: Problem) -> Decision:
        judge: Callable[[Device, Packages, Problem], Decision] = load(self.function, self.summary)
        return judge(device, packages, problem)

    def describe(self) -> str:
        return self.summary


class AllOf(Value):
    """Every one of them; all reasons are reported, the first in front."""

    requirements: tuple[Requirement, ...]

    def check(self, device: Device, packages: Packages, problem: Problem) -> Decision:
        return combine([requirement.check(device, packages, problem) for requirement in self.requirements])

    def describe(self) -> str:
        return " and ".join(requirement.describe() for requirement in self.requirements)


class AnyOf(Value):
    """One of them is enough: an unconditional one first. When none holds, the reasons of all are reported."""

    requirements: tuple[Requirement, ...]
    why: str = ""

    def check(self, device: Device, packages: Packages, problem: Problem) -> Decision:
        answers = [requirement.check(device, packages, problem) for requirement in self.requirements]
        for kind in (type(ACCEPTED), Conditional):
            for answer in answers:
                if isinstance(answer, kind):
                    return answer
        return combine(answers)

    def describe(self) -> str:
        return " or ".join(requirement.describe() for requirement in self.requirements)
