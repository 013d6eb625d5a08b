"""Kernel: one op on one backend, declared without importing anything that runs it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from kernelmux.errors import UsageError
from kernelmux.registry.decision import Decision, Rejected, combine
from kernelmux.registry.lazy import is_spec
from kernelmux.registry.requirements import ANY, OnCapability, Requirement
from kernelmux.registry.value import Value

if TYPE_CHECKING:
    from kernelmux.device import Capability, Device
    from kernelmux.registry.op import Op
    from kernelmux.registry.packages import Packages
    from kernelmux.registry.problem import Problem

BACKENDS = (
    "torch", "torch_compile", "triton", "jit_cuda", "cutlass", "cudnn", "cublas", "trtllm", "cutedsl", "cutile", "b12x",
    "deepgemm", "marlin", "humming", "aiter",
)  # fmt: skip
EVIDENCE = ("measured", "compiled", "declared")
_LAZY = ("load", "prepare", "configs", "source", "warmup", "bind", "compile")


class Numerics(Value):
    """What a kernel declares about its arithmetic. ``rounding`` lists where values are rounded, in order.

    ``promises`` are the words a caller may demand (``batch_invariant``, ``cast_before_mul``, ``deterministic``, ...).
    """

    accumulate: str = "float32"
    rounding: tuple[str, ...] = ()
    fast_math: bool = False
    promises: frozenset[str] = frozenset()


class Kernel(Value):
    """A kernel by name, equal to itself alone.

    ``load``, ``prepare``, ``configs``, ``source``, ``warmup``, ``bind`` and ``compile`` are lazy ``module:function``.

    - ``load``: ``run(x, weights, *, config, **op_args) -> Tensor``; of an op with outs, they are keywords of it
    - ``prepare``: ``prepare(device, **tensors) -> weights``, the kernel's own layout (None: the tensors as they are)
    - ``configs``: ``provider(device, packages, problem) -> ConfigChoice | None``
    - ``source``: ``source() -> str``, the identity of its code, compared with the one a table was tuned on
    - ``warmup``: ``warmup(selection, ms) -> None``, compiles what calls with these token counts will need
    - ``bind``: ``bind(scalars, *tensors) -> call(*tensors) -> None``, a launch for just these shapes, strides, dtypes
      and this device. The tensors are those of the schema in its order (None where one is left out), then the outs;
      all are checked, and only where they lie in memory may change from call to call
    - ``compile``: ``jobs(device, dtype, shape) -> [CompileJob]``, what calls will need of a compiler on such a GPU;
      axes may be missing from the shape (common sizes then). For ``kernelmux compile``
    - ``evidence``: capability (or arch, where there is none) -> ``measured`` | ``compiled``; ``declared`` elsewhere
    - ``layout``: the name of its weight layout; kernels of one layout can share prepared weights
    """

    name: str
    op: str
    backend: str
    load: str
    requirements: tuple[Requirement, ...]
    numerics: Numerics = Numerics()
    layout: str = "plain"
    prepare: str | None = None
    configs: str | None = None
    source: str | None = None
    warmup: str | None = None
    bind: str | None = None
    compile: str | None = None
    capturable: bool = False
    evidence: Mapping[Capability | str, str] = MappingProxyType({})

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def capabilities(self) -> frozenset[Capability] | None:
        """The GPUs it is for; None means any."""
        for requirement in self.requirements:
            if isinstance(requirement, OnCapability):
                return None if requirement.capabilities is ANY else requirement.capabilities  # type: ignore[return-value]
        raise UsageError(f"kernel {self.name} declares no OnCapability.")

    @property
    def portable(self) -> bool:
        """Whether it says ``any`` GPU, so that it may run on one that nobody has listed."""
        return self.capabilities is None

    def evidence_on(self, device: Device) -> str:
        """What is known of this kernel on that GPU: ``measured``, ``compiled`` or ``declared``."""
        key = device.arch if device.capability is None else device.capability
        return self.evidence.get(key, "declared")

    def judge(self, op: Op, device: Device, packages: Packages, problem: Problem) -> Decision:
        """Every requirement against this device, these packages and this problem; no reason is left out."""
        answers: list[Decision] = [*_contract(op, problem)]
        if not device.trusted and not self.portable:
            answers.append(_untrusted(device))
        said = {answer.code for answer in answers if isinstance(answer, Rejected)}
        for requirement in self.requirements:
            answer = requirement.check(device, packages, problem)
            if not (isinstance(answer, Rejected) and answer.code in said):  # the op has said it: no kernel is to blame
                answers.append(answer)
        answers += [_demand(self, demand) for demand in sorted(problem.demands - self.numerics.promises)]
        return combine(answers)

    def faults(self) -> list[str]:
        """What is wrong with the declaration itself; empty for one that may be registered."""
        found = []
        if self.backend not in BACKENDS:
            found.append(f"backend {self.backend!r} is not one of {', '.join(BACKENDS)}")
        found += [
            f"{field_name} must read module:function, not {spec!r}"
            for field_name in _LAZY
            if (spec := getattr(self, field_name)) is not None and not is_spec(spec)
        ]
        sets = sum(isinstance(requirement, OnCapability) for requirement in self.requirements)
        if sets != 1:
            found.append(f"it must declare exactly one OnCapability (a set, or ANY), not {sets}")
        found += [
            f"evidence {word!r} is not one of {', '.join(EVIDENCE)}"
            for word in set(self.evidence.values()) - {*EVIDENCE}
        ]
        return found


def _contract(op: Op, problem: Problem) -> list[Rejected]:
    """What the op itself does not define, whoever implements it."""
    found = []
    if problem.scheme.name not in op.schemes:
        known = ", ".join(sorted(op.schemes))
        found.append(
            Rejected("scheme", f"{op.name} is not defined for quant {problem.scheme.name}", f"use one of: {known}")
        )
    if problem.dtype is not None and problem.dtype not in op.dtypes:
        found.append(
            Rejected("dtype", f"{op.name} is not defined for {problem.dtype}", f"use one of: {', '.join(op.dtypes)}")
        )
    return found


def _untrusted(device: Device) -> Rejected:
    return Rejected(
        "untrusted",
        f"{device.torch_name} ({device.arch}) is untrusted (nobody has listed this GPU): portable kernels only",
        "use a portable backend (triton, torch), or add the GPU to devices.yaml with its facts",
    )


def _demand(kernel: Kernel, demand: str) -> Rejected:
    has = ", ".join(sorted(kernel.numerics.promises)) or "nothing"
    return Rejected(
        "numerics",
        f"it does not promise {demand} (it promises {has})",
        f"drop the demand {demand}, or choose a kernel that makes it",
    )
