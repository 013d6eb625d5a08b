"""The static matrix: what would be chosen everywhere, and why; nothing runs, and no GPU and no torch is needed.

Policy alone decides, and the tuned tables that are installed: what was measured on this machine belongs to this
machine, and would make two runs of one version differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from kernelmux import __version__
from kernelmux.errors import NoKernel, UsageError
from kernelmux.policies.policy import Policy
from kernelmux.policies.resolve import resolve
from kernelmux.policies.selection import Refused, Selection
from kernelmux.registry.lazy import load
from kernelmux.reports.matrix import (
    Case,
    Cell,
    DeviceFacts,
    Header,
    Matrix,
    OpFacts,
    Other,
    Outcome,
    PackageFacts,
    Rejection,
    Shard,
)
from kernelmux.reports.matrix_cases import (
    TOKENS,
    Filter,
    Progress,
    cases,
    dtype_of,
    in_order,
    plan_id,
    problem_of,
    shard_of,
    takes,
    takes_cell,
)

T = TypeVar("T")

if TYPE_CHECKING:
    from kernelmux.device import Device
    from kernelmux.registry.config import ConfigChoice
    from kernelmux.registry.kernel import Kernel
    from kernelmux.registry.op import Op
    from kernelmux.registry.packages import Packages
    from kernelmux.registry.problem import Problem
    from kernelmux.registry.registry import Registry


def static(
    devices: Sequence[Device],
    packages: Packages,
    facts: PackageFacts,
    *,
    registry: Registry | None = None,
    policy_of: Callable[[str], Policy] = Policy.builtin,
    tokens: Sequence[int] = TOKENS,
    filters: Sequence[Filter] = (),
    shard: tuple[int, int] | None = None,
    say: Progress = lambda text: None,
) -> Matrix:
    """Every op, scheme and variant on these devices at these token counts. Raises UsageError where none is left."""
    begun = time.perf_counter()
    registry = registry or _registered()
    asked = list(questions(registry, devices, tokens, filters))
    if not asked:
        raise nothing_left(filters)
    chooser = Chooser(registry, packages, policy_of)
    cells = []
    for number, (case, device, m) in enumerate(mine := shard_of(asked, shard)):
        if number % 20000 == 19999:
            say(f"{len(mine) - number} cells left")
        cell = Cell(case, device.name, m, chooser.outcome(case, device, m))
        if takes_cell(filters, cell):
            cells.append(cell)
    if not cells and shard is None:
        raise nothing_left(filters)
    names = {case.op for case, _, _ in asked}
    plan = plan_id(
        __version__, "chosen", [msgspec.to_builtins(case) for case in dict.fromkeys(case for case, _, _ in asked)],
        [device.name for device in devices], tokens, [one.text for one in filters], msgspec.to_builtins(facts),
    )  # fmt: skip
    head = header(
        registry, devices, facts, names, kinds=("chosen",), tokens=tuple(tokens), plan=plan, shard=shard,
        filters=filters, seconds=time.perf_counter() - begun,
    )  # fmt: skip
    return Matrix(head, in_order(cells, [device.name for device in devices]))


def questions(
    registry: Registry, devices: Sequence[Device], tokens: Sequence[int], filters: Sequence[Filter]
) -> Iterable[tuple[Case, Device, int]]:
    """What is to be decided, without what the filters leave out whatever the answer."""
    for op in registry.ops():
        for device in devices:
            for case in cases(op, dtype_of(op, device)):
                for m in tokens if op.token_axis else (0,):
                    if takes(
                        filters, op=case.op, scheme=case.scheme, variant=case.variant, dtype=case.dtype,
                        device=device.name, m=m, kind="chosen",
                    ):  # fmt: skip
                        yield case, device, m


def nothing_left(filters: Sequence[Filter]) -> UsageError:
    words = " and ".join(one.text for one in filters) or "these devices and token counts"
    return UsageError(f"no cell is left by {words}: a matrix of nothing would hide every change. Loosen --filter.")


class _Without:
    """A registry that lacks one kernel: what resolve would take then is the runner-up."""

    def __init__(self, registry: Registry, kernel: Kernel):
        self._registry, self._kernel = registry, kernel

    def op(self, name: str) -> Op:
        return self._registry.op(name)

    def kernels(self, op: str) -> tuple[Kernel, ...]:
        return tuple(kernel for kernel in self._registry.kernels(op) if kernel is not self._kernel)


class Chooser:
    """Answers the questions of one registry, package set and policy; equal answers are one object."""

    def __init__(self, registry: Registry, packages: Packages, policy_of: Callable[[str], Policy] = Policy.builtin):
        self.registry, self.packages, self._policy_of = registry, packages, policy_of
        self._configs: dict[Any, ConfigChoice | None] = {}
        self._seen: dict[Any, Any] = {}

    def outcome(self, case: Case, device: Device, m: int) -> Outcome:
        """What is chosen there, the runner-up in front of those it outranks; or why there is nothing."""
        problem = problem_of(case, self.registry.op(case.op), m)
        try:
            found = self._resolve(device, problem, self.registry)
        except NoKernel as error:
            return self._one(_nothing(error, self._reasons(error.rejected)))
        others = self._ranked(found, device, problem)
        return self._one(
            Outcome(
                backend=found.backend, kernel=found.kernel, runs_as=found.scheme.name, source=found.source,
                rule=found.rule, link=found.policy_rule.evidence if found.policy_rule else None, why=found.why,
                evidence=found.evidence, config_source=found.config_source, config_grade=found.config_grade,
                conditions=found.conditions, outranked=tuple(others), rejected=self._reasons(found.rejected),
            )
        )  # fmt: skip

    def select(self, case: Case, device: Device, m: int | tuple[int, int], kernel: str | None = None) -> Selection:
        """The Selection of a case, of this kernel if it is named. Raises NoKernel."""
        return self._resolve(device, problem_of(case, self.registry.op(case.op), m), self.registry, kernel)

    def _resolve(self, device: Device, problem: Problem, registry: Any, override: str | None = None) -> Selection:
        return resolve(
            problem.op, device, self.packages, problem, policy=self._policy_of(problem.op), registry=registry,
            override=override, configs=self._config,
        )  # fmt: skip

    def _ranked(self, found: Selection, device: Device, problem: Problem) -> list[Other]:
        others = [self._one(Other(one.backend, one.kernel, one.by)) for one in found.outranked]
        if len(others) > 1:
            try:
                second = self._resolve(device, problem, _Without(self.registry, found.declaration)).kernel
            except NoKernel:
                return others
            others.sort(key=lambda one: one.kernel != second)
        return others

    def _reasons(self, refused: Sequence[Refused]) -> tuple[Rejection, ...]:
        return self._one(
            tuple(
                self._one(Rejection(one.backend, one.kernel, why.code, why.reason, why.remedy, why.link))
                for one in refused
                for why in one.decision.every()
            )
        )

    def _config(self, kernel: Kernel, device: Device, packages: Packages, problem: Problem) -> ConfigChoice | None:
        axis = self.registry.op(problem.op).token_axis
        shape = tuple(sorted((name, size) for name, size in problem.shape.items() if name != axis))
        key = (kernel.name, device, problem.scheme, problem.dtype, problem.activation, shape)
        if key not in self._configs:
            self._configs[key] = load(str(kernel.configs))(device, packages, problem)
        return self._configs[key]

    def _one(self, value: T) -> T:
        found: T = self._seen.setdefault(value, value)
        return found


def _nothing(error: NoKernel, rejected: tuple[Rejection, ...]) -> Outcome:
    why = str(error).splitlines()[0].rstrip(":")
    return Outcome(None, None, None, None, None, None, why, None, rejected=rejected)


def header(
    registry: Registry,
    devices: Sequence[Device],
    packages: PackageFacts,
    ops: Iterable[str],
    *,
    kinds: tuple[str, ...],
    tokens: tuple[int, ...],
    plan: str,
    shard: tuple[int, int] | None = None,
    filters: Sequence[Filter] = (),
    compilers: dict[str, str] | None = None,
    seconds: float | None = None,
) -> Header:
    """The head of a matrix made now."""
    return Header(
        kernelmux=__version__,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z"),
        packages=packages,
        devices=tuple(map(device_facts, devices)),
        ops=tuple(_op_facts(registry, name) for name in sorted(ops)),
        kinds=kinds, tokens=tokens, filters=tuple(one.text for one in filters), compilers=compilers or {}, plan=plan,
        shard=None if shard is None else Shard(*shard), seconds=None if seconds is None else round(seconds, 2),
    )  # fmt: skip


def device_facts(device: Device) -> DeviceFacts:
    """What the matrix keeps of a device."""
    return DeviceFacts(
        device.name, device.torch_name, device.vendor, str(device.capability) if device.capability else None,
        device.arch, device.sm_count, device.shared_bytes, device.l2_bytes, device.bandwidth_gbs, device.memory_gb,
        dict(device.peak_tflops), device.trusted, device.live, device.driver, device.note,
    )  # fmt: skip


def _op_facts(registry: Registry, name: str) -> OpFacts:
    op = registry.op(name)
    return OpFacts(
        name=op.name, summary=op.summary, schemes=tuple(sorted(op.schemes)), dtypes=op.dtypes,
        kernels=tuple(kernel.name for kernel in registry.kernels(op.name)),
        tolerance={dtype: (allowed.rtol, allowed.atol) for dtype, allowed in sorted(op.tolerance.items())},
    )  # fmt: skip


def _registered() -> Registry:
    from kernelmux.registry.discovery import registry

    return registry()


__all__ = ["Chooser", "device_facts", "header", "nothing_left", "questions", "static"]
