"""What is wrong with a policy beyond its form: rules nobody reaches, preferences nobody can satisfy, dead windows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from kernelmux.device import Device, catalog
from kernelmux.policies.policy import Policy, fault_of
from kernelmux.policies.releases import none_released
from kernelmux.policies.resolve import complete
from kernelmux.policies.rule import TRAITS, BadRule, Rule
from kernelmux.quant import Scheme
from kernelmux.registry.decision import Rejected
from kernelmux.registry.kernel import BACKENDS, Kernel
from kernelmux.registry.op import Op
from kernelmux.registry.packages import Packages
from kernelmux.registry.problem import Problem
from kernelmux.registry.requirements import AllOf, AnyOf, KnownIssue, NeedsPackage, OnCapability, Requirement

if TYPE_CHECKING:
    from kernelmux.registry.registry import Registry


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of one rule (or of a kernel, named in its place): a stable code, what is wrong, and what to do."""

    rule: str
    code: str
    message: str
    fix: str
    key: str = ""

    def __str__(self) -> str:
        return f"{'kernel' if '[' in self.rule else 'rule'} {self.rule}: {self.message} {self.fix}"

    def to_json(self) -> dict[str, Any]:
        return {"rule": self.rule, "code": self.code, "message": self.message, "fix": self.fix}


def lint(policy: Policy, registry: Registry) -> list[Fault]:
    """Every fault of the policy's rules, in their order, then of the kernels' windows; empty where there is none."""
    ops = {op.name: op for op in registry.ops()}
    faults: list[Fault] = []
    for index, rule in enumerate(policy.rules):
        op = ops.get(rule.op)
        if op is None:
            faults.append(_unknown_op(rule, ops))
            continue
        faults += _words(rule, op)
        faults += _names(rule, registry)
        faults += _preferences(rule, op, registry)
        faults += _nowhere(rule)
        faults += _windows(rule)
        faults += _repeated(rule, policy.rules[:index])
        if not rule.evidence:
            fix = "Give an https link, or 'own measurement: <file>'."
            faults.append(Fault(rule.id, "no_evidence", "it gives no evidence.", fix, "evidence"))
    for op_name in sorted(ops):
        for kernel in registry.kernels(op_name):
            faults += _kernel(kernel)
    return faults


def check_words(policy: Policy, registry: Registry, op: str) -> None:
    """Raise on the first word of a user's rules that nobody knows: an op, and in those of ``op`` also a backend,
    scheme, dtype, activation or axis. ConfigFileError with file, line, key and the allowed values.
    """
    known = registry.names()
    for rule in policy.rules:
        faults: list[Fault] = []
        if rule.op not in known:
            faults = [_unknown_op(rule, known)]
        elif rule.op == op:
            faults = [*_words(rule, registry.op(op)), *_names(rule, registry)]
        for fault in faults:
            raise fault_of(rule, BadRule(fault.key, fault.message, fault.fix))


def _unknown_op(rule: Rule, known: Any) -> Fault:
    return Fault(rule.id, "unknown_op", f"{rule.op} is no op.", f"Known: {', '.join(sorted(known))}.", "when.op")


def _words(rule: Rule, op: Op) -> Iterator[Fault]:
    """Conditions that no problem of the op can meet."""
    for key, values, known in (
        ("scheme", rule.schemes, op.schemes),
        ("dtype", rule.dtypes, frozenset(op.dtypes)),
        ("activation", rule.activations, frozenset(op.activations)),
        ("shape", frozenset(axis for axis, _, _ in rule.shape), frozenset(op.axes) - {op.token_axis}),
    ):
        unknown = sorted((values or frozenset()) - known)
        if unknown:
            word = "axis" if key == "shape" else key
            message = f"{op.name} has no {word} {', '.join(unknown)}."
            yield Fault(
                rule.id, f"unknown_{word}", message, f"Known: {', '.join(sorted(known)) or 'none'}.", f"when.{key}"
            )
    if rule.tokens is not None and op.token_axis is None:
        message = f"{op.name} has no token axis."
        yield Fault(rule.id, "no_token_axis", message, "Drop the condition on tokens.", "when.tokens")


def _names(rule: Rule, registry: Registry) -> Iterator[Fault]:
    """Words that are neither a backend nor a kernel of the op."""
    named = {kernel.name for kernel in registry.kernels(rule.op)}
    for words in rule.names:
        if words not in BACKENDS and words not in named and not (rule.forbid and words in TRAITS):
            message = f"{words!r} is no backend and no kernel of {rule.op}."
            known = ", ".join((*BACKENDS, *sorted(named)))
            yield Fault(rule.id, "unknown_backend", message, f"Known: {known}.", _verb(rule))


def _verb(rule: Rule) -> str:
    return "prefer" if rule.prefer else "forbid" if rule.forbid else "pin"


def _preferences(rule: Rule, op: Op, registry: Registry) -> Iterator[Fault]:
    """Names of the rule that stand for no kernel, or for none that could run in any case of the rule."""
    kernels = registry.kernels(rule.op)
    declared = sorted({kernel.backend for kernel in kernels})
    for words in rule.names:
        meant = [kernel for kernel in kernels if words in (kernel.backend, kernel.name)]
        if not meant and words in BACKENDS:
            message = f"it names {words}, and no kernel of {rule.op} is on it."
            yield Fault(rule.id, "no_such_kernel", message, f"Declared: {', '.join(declared) or 'none'}.", _verb(rule))
        elif meant and _has_case(rule, op) and not any(_possible(rule, op, kernel) for kernel in meant):
            message = f"it names {words}, whose kernels can run in no case of the rule."
            yield Fault(rule.id, "never_satisfied", message, "Drop it, or correct the conditions.", _verb(rule))


def _has_case(rule: Rule, op: Op) -> bool:
    """Whether the words of its conditions exist at all: where they do not, that is the fault."""
    return not list(_words(rule, op)) and not list(_nowhere(rule))


def _possible(rule: Rule, op: Op, kernel: Kernel) -> bool:
    """Whether some problem of the rule, on some GPU of the catalog, is not refused with every package there."""
    packages = Packages.assume_all()
    shape = {axis: low if low else high for axis, low, high in rule.shape}
    if rule.tokens is not None and op.token_axis is not None:
        shape[op.token_axis] = max(rule.tokens[0], 1)
    cases = product(sorted(rule.schemes or op.schemes), sorted(rule.dtypes or [""]), sorted(rule.activations or [""]))
    problems = [Problem(op.name, Scheme.of(s), d or None, shape, a or None, rule.demands) for s, d, a in cases]
    for device in _places(rule):
        for problem in problems:
            asked, _ = complete(op, device, problem)
            if not isinstance(kernel.judge(op, device, packages, asked), Rejected):
                return True
    return False


def _places(rule: Rule) -> list[Device]:
    """One device of the catalog for each architecture the rule is about."""
    found = {device.arch: device for device in catalog().values() if _there(rule, device)}
    return list(found.values())


def _there(rule: Rule, device: Device) -> bool:
    return (rule.capabilities is None or device.capability in rule.capabilities) and (
        rule.vendors is None or device.vendor in rule.vendors
    )


def _nowhere(rule: Rule) -> Iterator[Fault]:
    """A set of capabilities and vendors that no GPU of the catalog has."""
    if not any(_there(rule, device) for device in catalog().values()):
        message = "no GPU of the catalog meets its condition."
        yield Fault(rule.id, "no_gpu", message, "See `kernelmux devices`.", "when.capability")


def _windows(rule: Rule) -> Iterator[Fault]:
    for package, spec in rule.holds_for:
        if none_released(package, spec):
            message = f"no released version of {package} is in {spec}, so it never applies."
            yield Fault(
                rule.id, "dead_window", message, "Correct the range, or refresh the list of releases.", "holds_for"
            )


def _repeated(rule: Rule, earlier: tuple[Rule, ...]) -> Iterator[Fault]:
    for other in earlier:
        if other.id == rule.id:
            yield Fault(rule.id, "repeated_id", "another rule has this id.", "Give every rule its own id.", "id")
        if _verb(other) == _verb(rule) != "forbid" and other.covers(rule):
            message = f"it is never reached: {other.id}, before it, covers every case of it."
            fix = "Put it first, or narrow the other one; what should come second belongs in the other's own list."
            yield Fault(rule.id, "unreachable", message, fix, "when")
            return


def _kernel(kernel: Kernel) -> Iterator[Fault]:
    """Windows and capability sets of a declaration that nothing falls into."""
    for requirement in _flat(kernel.requirements):
        if isinstance(requirement, NeedsPackage) and none_released(requirement.name, requirement.spec):
            message = f"no released version of {requirement.name} is in {requirement.spec}."
            yield Fault(kernel.name, "dead_window", message, "Correct the range, or refresh the list of releases.")
        if isinstance(requirement, KnownIssue):
            for package, spec in requirement.packages.items():
                if none_released(package, spec):
                    message = f"its known issue is in {package}{spec}, and no released version is."
                    yield Fault(kernel.name, "dead_window", message, "Correct the range, or drop the issue.")
        sets = requirement.capabilities if isinstance(requirement, (OnCapability, KnownIssue)) else None
        if isinstance(sets, frozenset) and not any(device.capability in sets for device in catalog().values()):
            message = f"no GPU of the catalog is in its set {', '.join(map(str, sorted(sets)))}."
            yield Fault(kernel.name, "no_gpu", message, "See `kernelmux devices`.")


def _flat(requirements: tuple[Requirement, ...]) -> Iterator[Requirement]:
    for requirement in requirements:
        if isinstance(requirement, (AllOf, AnyOf)):
            yield from _flat(requirement.requirements)
        else:
            yield requirement
