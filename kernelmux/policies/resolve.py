"""The choice: a pure function of a device, its packages, a problem, the policy and what was measured.

Order: what a rule forbids, or failed its check here, is no candidate; an explicit choice, which is honoured or raises;
a rule that pins, which is too; the fastest valid measurement; the first matching rule with a preference that can run;
the portable fallback.
Nothing is read, imported or looked up here that was not passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from kernelmux.errors import FrozenError, NoKernel, UsageError
from kernelmux.policies.policy import Policy
from kernelmux.policies.selection import Outranked, Refused, Selection, is_weight_only
from kernelmux.registry.decision import Conditional, Decision, Rejected
from kernelmux.registry.kernel import BACKENDS, Kernel
from kernelmux.registry.measurement import Measurement
from kernelmux.registry.packages import ASSUMED, Packages
from kernelmux.registry.problem import Problem, check_shape, dtype_name
from kernelmux.registry.registry import Registry
from kernelmux.registry.value import Value

if TYPE_CHECKING:
    from kernelmux.device import Device
    from kernelmux.policies.rule import Rule
    from kernelmux.policies.standing import Doubt
    from kernelmux.registry.config import ConfigChoice
    from kernelmux.registry.op import Op

FALLBACK = ("triton", "torch")
ConfigLookup = Callable[[Kernel, "Device", Packages, Problem], "ConfigChoice | None"]


class Explicit(Value):
    """A choice the caller made: a backend (or the name of a kernel), and by which means."""

    backend: str
    by: str = "argument"


class _Choice(Value):
    kernel: Kernel
    source: str
    why: str
    by: str  # what the others are outranked by
    rule: Rule | None = None


def resolve(
    op: str,
    device: Device,
    packages: Packages,
    problem: Problem,
    *,
    policy: Policy,
    registry: Registry,
    override: Explicit | str | None = None,
    measurements: Iterable[Measurement] = (),
    demands: Iterable[str] = (),
    configs: ConfigLookup | None = None,
    source_of: Callable[[Kernel], str] | None = None,
    doubt: Doubt | None = None,
) -> Selection:
    """Choose a kernel for the problem. Raises NoKernel with the Decision on every candidate when none can be had.

    ``source_of`` answers for ``Kernel.source``: a configuration found with another version of the kernel is used, and
    a condition says so. ``doubt`` tells what the trust gate holds against a kernel that could run; FrozenError where
    only kernels are left that nobody can check now.
    """
    contract = registry.op(op)
    problem, conditions = complete(contract, device, problem, demands)
    judged = [(kernel, kernel.judge(contract, device, packages, problem)) for kernel in registry.kernels(op)]
    judged = _forbidden(contract, device, packages, problem, policy, judged)
    explicit = Explicit(override) if isinstance(override, str) else override
    notes: list[str] = []
    if doubt is not None:
        judged = [
            (k, d if isinstance(d, Rejected) else _doubted(k, d, problem, doubt, explicit, notes)) for k, d in judged
        ]
    accepted = {kernel: decision for kernel, decision in judged if not isinstance(decision, Rejected)}
    rejected = tuple(Refused(k.backend, k.name, d) for k, d in judged if isinstance(d, Rejected))
    choice: _Choice | None
    try:
        if explicit is not None:
            choice = _explicit(explicit, contract, registry, problem, device, accepted, rejected)
        else:
            choice = _pinned(contract, registry, device, packages, problem, policy, accepted, rejected)
            choice = choice or _measured(contract, device, packages, problem, measurements, accepted, source_of, notes)
            choice = choice or _by_policy(contract, device, packages, problem, policy, accepted, notes)
            choice = choice or _fallback(accepted, notes)
        if choice is None:
            raise NoKernel(_nothing(problem, device, accepted, rejected), rejected)
    except NoKernel as error:
        unchecked = [other.kernel for other in error.rejected if other.code == "ungated"]
        if unchecked:
            raise FrozenError(_too_late(problem, device, unchecked)) from None
        raise
    chosen = choice.kernel
    config = configs(chosen, device, packages, problem) if configs is not None and chosen.configs else None
    notes += getattr(config, "notes", ())
    notes += _other_version(chosen, config, source_of)
    if is_weight_only(chosen, problem):
        notes.append(
            f"weight-only: {chosen.name} does not quantize x, so the numerics are w{problem.scheme.weight_bits}a16 and "
            f"not those of {problem.scheme}"
        )
    return Selection(
        op=contract,
        device=device,
        problem=problem,
        declaration=chosen,
        source=choice.source,
        evidence="measured" if choice.source == "measured" else chosen.evidence_on(device),
        why=choice.why,
        policy_rule=choice.rule,
        configs=config,
        conditions=tuple(dict.fromkeys((*conditions, *_conditions(accepted[chosen]), *notes))),
        outranked=tuple(
            Outranked(kernel.backend, kernel.name, choice.by, _conditions(decision))
            for kernel, decision in accepted.items()
            if kernel is not chosen
        ),
        rejected=rejected,
    )


def _other_version(
    kernel: Kernel, config: ConfigChoice | None, source_of: Callable[[Kernel], str] | None
) -> tuple[str, ...]:
    tuned_on = getattr(config, "tuned_on", "")
    if not (config is not None and tuned_on and kernel.source and source_of):
        return ()
    here = source_of(kernel)
    if here == tuned_on:
        return ()
    found = "predicted for" if config.source == "predicted" else "tuned on"
    return (
        f"{config.path} was {found} another version of {kernel.name} (source {tuned_on}, here {here}): its tiles run, "
        "and may no longer be the best; tune the shape again",
    )


def complete(op: Op, device: Device, problem: Problem, demands: Iterable[str] = ()) -> tuple[Problem, tuple[str, ...]]:
    """The problem with its shape checked and its dtype given, and what had to be assumed.

    bfloat16 is assumed, float16 below 8.0, which has no bf16 units. Raises BadShape or UsageError.
    """
    conditions = []
    dtype = dtype_name(problem.dtype)
    if dtype is None and op.dtypes:
        old = device.capability is not None and device.capability.major < 8
        usual = "float16" if old else "bfloat16"
        dtype = usual if usual in op.dtypes else op.dtypes[0]
        conditions.append(f"the dtype was not given: {dtype} is assumed")
    if problem.activation is not None and problem.activation not in op.activations:
        known = f"Known: {', '.join(op.activations)}." if op.activations else "It takes none."
        raise UsageError(f"unknown activation {problem.activation!r} for {op.name}. {known}")
    if not device.trusted:
        conditions.append(f"{device.torch_name} is untrusted: nobody has listed this GPU, so portable kernels only")
    if device.note.startswith("stands for"):
        conditions.append(f"{device.name} {device.note.partition('. ')[0]}")
    shape = check_shape(op.name, op.axes, op.token_axis, problem.shape)
    asked = problem.demands.union(demands)
    return problem.but(op=op.name, dtype=dtype, shape=shape, demands=asked), tuple(conditions)


def _conditions(decision: Decision) -> tuple[str, ...]:
    return decision.conditions if isinstance(decision, Conditional) else ()


def speaks_of(word: str, kernel: Kernel) -> bool:
    """Whether a word of a rule means this kernel: its backend, its name, or (to forbid) a trait of it."""
    return word in (kernel.backend, kernel.name) or (word == "fast_math" and kernel.numerics.fast_math)


def _named(words: str, kernels: Iterable[Kernel]) -> list[Kernel]:
    """The kernels that a backend or a kernel name means, by name; an unconditional one is not preferred."""
    return [kernel for kernel in kernels if words in (kernel.backend, kernel.name)]


def _explicit(
    explicit: Explicit,
    op: Op,
    registry: Registry,
    problem: Problem,
    device: Device,
    accepted: Mapping[Kernel, Decision],
    rejected: tuple[Refused, ...],
) -> _Choice:
    means = f"the {explicit.by} backend={explicit.backend!r}" if explicit.by == "argument" else explicit.by
    check_backend(explicit, op, registry)
    found = _named(explicit.backend, accepted)
    if found:
        why = f"asked for by {means}"
        return _Choice(found[0], "override", why, f"override: {means}")
    others = ", ".join(sorted({kernel.backend for kernel in accepted})) or "nothing"
    refused = [other for other in rejected if explicit.backend in (other.backend, other.kernel)]
    if not refused:
        head = f"{op.name} has no kernel on {explicit.backend}, which {means} asks for."
    else:
        head = f"{explicit.backend}, asked for by {means}, cannot run {problem.brief()} on {device.name}."
    raise NoKernel(f"{head} What would work: {others}.\n{table(refused or rejected)}".rstrip(), refused or rejected)


def check_backend(explicit: Explicit, op: Op, registry: Registry) -> None:
    """Raise UsageError for a word that is neither a backend nor a kernel of the op."""
    word = explicit.backend
    if word in BACKENDS or _named(word, registry.kernels(op.name)):
        return
    from difflib import get_close_matches

    known = sorted({kernel.backend for kernel in registry.kernels(op.name)})
    near = get_close_matches(word, BACKENDS, n=2, cutoff=0.5)
    guess = f" Did you mean {' or '.join(near)}?" if near else ""
    raise UsageError(f"unknown backend {word!r} ({explicit.by}).{guess} {op.name} has: {', '.join(known) or 'none'}.")


def _measured(
    op: Op,
    device: Device,
    packages: Packages,
    problem: Problem,
    measurements: Iterable[Measurement],
    accepted: Mapping[Kernel, Decision],
    source_of: Callable[[Kernel], str] | None,
    notes: list[str],
) -> _Choice | None:
    tokens = problem.tokens(op.token_axis) or ((0, 0) if op.token_axis is None else None)
    shape = tuple(sorted((axis, size) for axis, size in problem.shape.items() if axis != op.token_axis))
    key = (op.name, device.table_name, problem.scheme.name, problem.dtype, problem.activation, shape)
    by_name = {kernel.name: kernel for kernel in accepted}
    newest: dict[str, Measurement] = {}

    def version(package: str, kernel: Kernel) -> str | None:
        if package == "driver":
            return device.driver or ""  # of a described device nobody knows it
        if package == "source":
            return source_of(kernel) if source_of and kernel.source else ""
        return "" if packages.get(package) == ASSUMED else packages.get(package)

    for found in measurements:
        if (found.op, found.device, found.scheme, found.dtype, found.activation, found.shape) != key:
            continue
        if tokens is None:
            notes.append(f"{op.token_axis} was not given, so what was measured here could not decide")
            return None
        if not (found.m_lo <= tokens[0] and tokens[1] <= found.m_hi) or found.kernel not in by_name:
            continue
        stale = found.stale(partial(version, kernel=by_name[found.kernel]))
        if stale:
            notes.append(f"a measurement of {found.kernel} is out of date: {stale}")
        elif found.kernel not in newest or newest[found.kernel].when < found.when:
            newest[found.kernel] = found
    if not newest:
        return None
    order = sorted(newest.values(), key=lambda m: (m.us, m.kernel))
    best = order[0]
    rest = ", ".join(f"{by_name[m.kernel].backend} {m.us:.1f} us" for m in order[1:])
    why = f"measured here at {best.us:.1f} us" + (f", against {rest}" if rest else "; no other kernel was measured")
    return _Choice(by_name[best.kernel], "measured", why, f"measurement: {why}")


def _forbidden(
    op: Op,
    device: Device,
    packages: Packages,
    problem: Problem,
    policy: Policy,
    judged: list[tuple[Kernel, Decision]],
) -> list[tuple[Kernel, Decision]]:
    """The judgements, with a rejection where a rule forbids a kernel that could run."""
    for rule, _ in policy.walk(op, device, packages, problem, "forbid"):
        if rule is None:
            continue
        told = f" in {rule.origin[0]}" if rule.origin else ""
        no = Rejected("forbidden", f"rule {rule.id}{told} forbids it: {rule.why}", "change that rule")
        judged = [
            (k, no if not isinstance(d, Rejected) and any(speaks_of(word, k) for word in rule.forbid) else d)
            for k, d in judged
        ]
    return judged


def _pinned(
    op: Op,
    registry: Registry,
    device: Device,
    packages: Packages,
    problem: Problem,
    policy: Policy,
    accepted: Mapping[Kernel, Decision],
    rejected: tuple[Refused, ...],
) -> _Choice | None:
    for rule, _ in policy.walk(op, device, packages, problem, "pin"):
        if rule is not None and rule.pin:
            means = Explicit(rule.pin, f"rule {rule.id}, which pins it")
            found = _explicit(means, op, registry, problem, device, accepted, rejected)
            return _Choice(found.kernel, "policy", rule.why, rule.id, rule)
    return None


def _by_policy(
    op: Op,
    device: Device,
    packages: Packages,
    problem: Problem,
    policy: Policy,
    accepted: Mapping[Kernel, Decision],
    notes: list[str],
) -> _Choice | None:
    for rule, note in policy.walk(op, device, packages, problem):
        if rule is None:
            notes.append(note)
            continue
        for words in rule.prefer:
            found = _named(words, accepted)
            if found:
                return _Choice(found[0], "policy", rule.why, rule.id, rule)
        notes.append(f"rule {rule.id} applies, but none of what it prefers can run: {', '.join(rule.prefer)}")
    return None


def _fallback(accepted: Mapping[Kernel, Decision], notes: list[str]) -> _Choice | None:
    for backend in FALLBACK:
        found = _named(backend, accepted)
        if found:
            why = f"no rule prefers another kernel here: the portable fallback, {backend}"
            return _Choice(found[0], "fallback", why, f"fallback: {', then '.join(FALLBACK)}")
    return None


def _doubted(
    kernel: Kernel, decision: Decision, problem: Problem, doubt: Doubt, explicit: Explicit | None, notes: list[str]
) -> Decision:
    """The judgement on a kernel that could run, or the rejection for what its check found."""
    asked_for = explicit is not None and explicit.backend in (kernel.backend, kernel.name)
    no = doubt(kernel, problem, asked_for)
    if no is None:
        return decision
    if no.code == "quarantined":
        notes.append(f"{kernel.name} is quarantined: {no.reason}")
    return no


def _too_late(problem: Problem, device: Device, kernels: list[str]) -> str:
    return (
        f"kernelmux is frozen or a CUDA graph is being captured, and no kernel that could run {problem.brief()} has "
        f"been checked on {device.torch_name}: {', '.join(kernels)}. Check them before, with km.warmup()."
    )


def _nothing(
    problem: Problem, device: Device, accepted: Mapping[Kernel, Decision], rejected: tuple[Refused, ...]
) -> str:
    if accepted:
        names = ", ".join(sorted({kernel.backend for kernel in accepted}))
        return (
            f"no rule chooses a kernel for {problem.brief()} on {device.name}, and there is no portable one. "
            f"These can run and must be asked for: {names}, as in backend={min(names.split(', '))!r}."
        )
    if not rejected:
        return f"{problem.op} has no kernel at all. Install a package that brings one, or see `kernelmux ops`."
    return f"no kernel can run {problem.brief()} on {device.name}:\n{table(rejected)}"


def table(rejected: Iterable[Refused]) -> str:
    """Every reason on a line of its own, with what would mend it."""
    return "\n".join(
        f"  {other.backend}: {reason.reason}. Remedy: {reason.remedy}."
        + (f" See {reason.link}." if reason.link else "")
        for other in rejected
        for reason in other.decision.every()
    )
