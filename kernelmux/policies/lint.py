"""What is wrong with a policy beyond its form: rules nobody reaches, preferences nobody can satisfy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kernelmux.device import catalog
from kernelmux.policies.policy import Policy
from kernelmux.policies.rule import Rule
from kernelmux.registry.kernel import BACKENDS
from kernelmux.registry.op import Op
from kernelmux.registry.registry import Registry


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of one rule: a stable code, what is wrong, and what to do."""

    rule: str
    code: str
    message: str
    fix: str

    def __str__(self) -> str:
        return f"rule {self.rule}: {self.message} {self.fix}"

    def to_json(self) -> dict[str, Any]:
        return {"rule": self.rule, "code": self.code, "message": self.message, "fix": self.fix}


def lint(policy: Policy, registry: Registry) -> list[Fault]:
    """Every fault of the policy's rules, in their order; empty for a policy with none."""
    ops = {op.name: op for op in registry.ops()}
    faults: list[Fault] = []
    for index, rule in enumerate(policy.rules):
        op = ops.get(rule.op)
        if op is None:
            message = f"{rule.op} is no op."
            faults.append(Fault(rule.id, "unknown_op", message, f"Known: {', '.join(sorted(ops))}."))
            continue
        faults += _words(rule, op)
        faults += _preferences(rule, registry)
        faults += _nowhere(rule)
        faults += _repeated(rule, policy.rules[:index])
    return faults


def _words(rule: Rule, op: Op) -> Iterator[Fault]:
    """Conditions that no problem of the op can meet."""
    for key, values, known in (
        ("scheme", rule.schemes, op.schemes),
        ("dtype", rule.dtypes, frozenset(op.dtypes)),
        ("activation", rule.activations, frozenset(op.activations)),
    ):
        unknown = sorted((values or frozenset()) - known)
        if unknown:
            message = f"{op.name} has no {key} {', '.join(unknown)}."
            yield Fault(rule.id, f"unknown_{key}", message, f"Known: {', '.join(sorted(known)) or 'none'}.")
    if rule.tokens is not None and op.token_axis is None:
        yield Fault(rule.id, "no_token_axis", f"{op.name} has no token axis.", "Drop the condition on tokens.")


def _preferences(rule: Rule, registry: Registry) -> Iterator[Fault]:
    kernels = registry.kernels(rule.op)
    named = {kernel.name for kernel in kernels}
    declared = sorted({kernel.backend for kernel in kernels})
    for words in rule.prefer:
        if words not in BACKENDS and words not in named:
            yield Fault(rule.id, "unknown_backend", f"{words!r} is no backend.", f"Known: {', '.join(BACKENDS)}.")
            continue
        meant = [kernel for kernel in kernels if words in (kernel.backend, kernel.name)]
        if not meant:
            message = f"it prefers {words}, and no kernel of {rule.op} is on it."
            yield Fault(rule.id, "no_such_kernel", message, f"Declared: {', '.join(declared) or 'none'}.")
        elif rule.capabilities is not None and not any(
            kernel.capabilities is None or kernel.capabilities & rule.capabilities for kernel in meant
        ):
            message = f"it prefers {words}, whose kernels are for none of the capabilities of the rule."
            yield Fault(rule.id, "never_satisfied", message, "Drop it, or correct the capabilities.")


def _nowhere(rule: Rule) -> Iterator[Fault]:
    """A set of capabilities and vendors that no GPU of the catalog has."""
    if not any(
        (rule.capabilities is None or device.capability in rule.capabilities)
        and (rule.vendors is None or device.vendor in rule.vendors)
        for device in catalog().values()
    ):
        yield Fault(rule.id, "no_gpu", "no GPU of the catalog meets its condition.", "See `kernelmux devices`.")


def _repeated(rule: Rule, earlier: tuple[Rule, ...]) -> Iterator[Fault]:
    for other in earlier:
        if other.id == rule.id:
            yield Fault(rule.id, "repeated_id", "another rule has this id.", "Give every rule its own id.")
        if other.covers(rule):
            message = f"it is never reached: {other.id}, before it, covers every case of it."
            yield Fault(rule.id, "unreachable", message, "Put it first, or narrow the other one.")
            return
