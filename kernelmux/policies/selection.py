"""Selection: the kernel and configuration chosen for a problem, the reasons, and every other candidate. Callable."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kernelmux.errors import TrustError, UsageError
from kernelmux.policies import standing
from kernelmux.registry.decision import Rejected
from kernelmux.registry.lazy import load
from kernelmux.registry.value import Value, fresh

if TYPE_CHECKING:
    from pathlib import Path

    from kernelmux.device import Device
    from kernelmux.policies.rule import Rule
    from kernelmux.quant import Scheme
    from kernelmux.registry.config import ConfigChoice
    from kernelmux.registry.kernel import Kernel
    from kernelmux.registry.op import Op
    from kernelmux.registry.problem import Problem

SOURCES = ("override", "measured", "policy", "fallback")

prepare_hooks: list[Callable[[Selection], Selection | None]] = [standing.gate]
"""Called with the Selection before weights are converted or, for ops without weights, at ``warmup()`` or the first
call. A hook that raises stops it; one that returns another Selection makes this one take its kernel. The place of the
trust gate."""

_settling = threading.RLock()  # one check at a time; a kernel under check may call other ops
_CHOICE = (
    "declaration", "source", "evidence", "why", "policy_rule", "configs", "conditions", "outranked", "rejected",
)  # fmt: skip


class Outranked(Value):
    """A candidate that could run and was not taken: ``by`` names the rule or choice that took another."""

    backend: str
    kernel: str
    by: str
    conditions: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"backend": self.backend, "kernel": self.kernel, "by": self.by}


class Refused(Value):
    """A candidate that cannot run; ``decision`` holds every reason, the headline first."""

    backend: str
    kernel: str
    decision: Rejected

    @property
    def code(self) -> str:
        return self.decision.code

    @property
    def reason(self) -> str:
        return self.decision.reason

    @property
    def remedy(self) -> str:
        return self.decision.remedy

    @property
    def link(self) -> str | None:
        return self.decision.link

    def to_json(self) -> list[dict[str, Any]]:
        """One object a reason."""
        return [{"backend": self.backend, **reason.to_json()} for reason in self.decision.every()]


_WEIGHT_ONLY = {"nvfp4": "nvfp4_w4a16", "int8_w8a8": "int8_w8a16"}  # schemes whose weight-only form has a name


def is_weight_only(kernel: Kernel, problem: Problem) -> bool:
    """Whether the scheme quantizes activations and this kernel leaves them alone: another numerics."""
    scheme, promises = problem.scheme, kernel.numerics.promises
    alone, both = (f"w{scheme.weight_bits}a{bits}" for bits in (16, scheme.activation_bits))
    return scheme.activation_bits < 16 and alone in promises and both not in promises


def scheme_run(kernel: Kernel, problem: Problem) -> Scheme:
    """The scheme whose numerics this kernel has on the problem's weights, where that has a name."""
    name = _WEIGHT_ONLY.get(problem.scheme.name)
    if name is None or not is_weight_only(kernel, problem):
        return problem.scheme
    return replace(problem.scheme, name=name, activation_bits=16)


class Selection(Value):
    """What runs for one problem on one device, and why. Two selections are equal only if they are one.

    ``source`` says what decided (``override``, ``measured``, ``policy``, ``fallback``), ``rule`` names the policy rule
    where one did, ``evidence`` is what is known of this kernel on this GPU (``measured``, ``compiled``, ``declared``).
    Until it is prepared, warmed or called, the trust gate may give it another kernel, with a warning; from then on it
    keeps its own.
    """

    op: Op
    device: Device
    problem: Problem
    declaration: Kernel
    source: str
    evidence: str
    why: str
    policy_rule: Rule | None = None
    configs: ConfigChoice | None = None
    conditions: tuple[str, ...] = ()
    outranked: tuple[Outranked, ...] = ()
    rejected: tuple[Refused, ...] = ()
    _by_tokens: dict[int, Any] = fresh(dict)
    _state: dict[str, Any] = fresh(dict)

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"<Selection {self.kernel} for {self.problem.brief()} on {self.device.name}: {self.source}>"

    @property
    def backend(self) -> str:
        return self.declaration.backend

    @property
    def kernel(self) -> str:
        return self.declaration.name

    @property
    def scheme(self) -> Scheme:
        """The scheme that runs: the problem's, or its weight-only form where the kernel leaves x unquantized."""
        return scheme_run(self.declaration, self.problem)

    @property
    def rule(self) -> str | None:
        return None if self.policy_rule is None else self.policy_rule.id

    @property
    def tokens(self) -> int | None:
        """The token count, where the problem gives a single one; 0 for an op that has no token axis."""
        if self.op.token_axis is None:
            return 0
        given = self.problem.tokens(self.op.token_axis)
        return given[0] if given and given[0] == given[1] else None

    @property
    def config(self) -> Any:
        """The launch configuration at the problem's token count; None where it gives none or the kernel takes none."""
        tokens = self.tokens
        return None if tokens is None else self.config_at(tokens)

    @property
    def config_source(self) -> str | None:
        return None if self.configs is None else self.configs.source

    @property
    def config_grade(self) -> str | None:
        return None if self.configs is None else self.configs.grade

    @property
    def config_path(self) -> Path | None:
        return None if self.configs is None else self.configs.path

    def to_json(self) -> dict[str, Any]:
        """The object ``kernelmux select --json`` prints. ``rejected`` has one entry a reason, the headline first."""
        device = self.device
        return {
            "op": self.op.name,
            "device": {"name": device.name, "capability": str(device.capability) if device.capability else None},
            "scheme": self.scheme.name,
            "backend": self.backend,
            "kernel": self.kernel,
            "source": self.source,
            "evidence": self.evidence,
            "why": self.why,
            "rule": self.rule,
            "config": None if self.configs is None else self.configs.to_json(self.tokens),
            "config_source": self.config_source,
            "config_grade": self.config_grade,
            "conditions": list(self.conditions),
            "outranked": [other.to_json() for other in self.outranked],
            "rejected": [reason for other in self.rejected for reason in other.to_json()],
        }

    def explain(self) -> str:
        """Every candidate in one table: chosen, outranked by what, rejected why and what would mend it."""
        from kernelmux.policies.explain import explain

        return explain(self)

    def prepare(self, **tensors: Any) -> Any:
        """Convert weights to this kernel's layout: ``sel.prepare(w1=w1, w2=w2)``. As they are where it needs none.

        Without a prepare step a single tensor comes back itself, several as the mapping they were given in.
        Raises UsageError when one of the op's weights is missing, MissingPackage when the kernel's package is not
        importable, FrozenError after ``freeze()`` for a kernel that was not warmed, NoKernel where the trust gate
        leaves none.
        """
        missing = [name for name in self.op.weights if name not in tensors]
        if missing:
            raise UsageError(f"prepare of {self.op.name} lacks {', '.join(missing)}: it takes {self._weights()}.")
        self.check()
        spec = self.declaration.prepare
        if spec is None:
            return next(iter(tensors.values())) if len(tensors) == 1 else tensors
        return load(spec, f"preparing weights for {self.kernel}")(self.device, **tensors)

    def _weights(self) -> str:
        return ", ".join(f"{name}={name}" for name in self.op.weights)

    def check(self, *, converted: bool = False) -> None:
        """Run the prepare hooks, once a Selection. A hook may move it to another kernel.

        Raises TrustError where weights are ``converted`` already and would not be those of the other kernel.
        """
        if "checked" in self._state:
            return
        with _settling:
            if "checked" in self._state:
                return
            for hook in prepare_hooks:
                other = hook(self)
                if other is not None:
                    self._become(other, converted)
            self._state["checked"] = True

    def _become(self, other: Selection, converted: bool) -> None:
        if converted and (self.declaration.prepare or other.declaration.prepare):
            said = next((refused.reason for refused in other.rejected if refused.kernel == self.kernel), "not trusted")
            raise TrustError(
                f"{self.kernel} cannot run, and weights are prepared for it already: {said}. Select again and prepare "
                f"again: {other.kernel} would be taken. {standing.VARIABLE}=off runs it all the same."
            )
        for field in _CHOICE:
            object.__setattr__(self, field, getattr(other, field))
        self._by_tokens.clear()

    def again(self) -> Selection | None:
        """The choice for the same question as things stand now; None for a Selection that nobody asked for."""
        choose: Callable[[], Selection] | None = self._state.get("again")
        return None if choose is None else choose()

    def warm(self) -> None:
        """Load everything a call needs, so that it also runs after ``freeze()``."""
        self.check()
        self._bind()
        if self.declaration.prepare is not None:
            load(self.declaration.prepare, f"preparing weights for {self.kernel}")
        if self.declaration.bind is not None:
            load(self.declaration.bind, f"running {self.kernel}")

    def __call__(self, x: Any, weights: Any = None, **op_args: Any) -> Any:
        """Run the kernel on ``x`` with the weights ``prepare`` gave, at the configuration for this call's tokens.

        The activation is the Selection's own unless the call names one.
        """
        run = self._state.get("run") or self._bind(x, weights is not None)
        if weights is None and self.op.weights:
            raise UsageError(f"{self.op.name} needs weights: after x, what prepare({self._weights()}) returned.")
        if self.problem.activation is not None:
            op_args.setdefault("activation", self.problem.activation)
        if self.configs is None:
            return run(x, weights, config=None, **op_args)
        axis = self.op.token_axis
        tokens = self._state["shape"](x, weights, **op_args)[axis] if axis else 0
        config = self._by_tokens.get(tokens)
        return run(x, weights, config=config or self.config_at(tokens), **op_args)

    def config_at(self, tokens: int) -> Any:
        """The launch configuration for this token count, kept for the next call; None where the kernel takes none."""
        config = self._by_tokens.get(tokens)
        if config is None and self.configs is not None:
            config = self._by_tokens[tokens] = self.configs.at(tokens)
        return config

    def _bind(self, x: Any = None, converted: bool = False) -> Callable[..., Any]:
        place = getattr(getattr(x, "device", None), "type", None)
        if place == "cpu" and self.device.vendor != "cpu" and not os.environ.get("TRITON_INTERPRET"):
            raise UsageError(
                f"this Selection is for {self.device.name} and x is on the CPU. Move the tensors to the GPU, or select "
                "with device=x.device."
            )
        self.check(converted=converted and bool(self.op.weights))
        run: Callable[..., Any] = load(self.declaration.load, f"running {self.kernel}")
        if self.configs is not None:
            shape: Callable[..., Mapping[str, int]] = load(self.op.problem, f"reading the shape of {self.op.name}")
            self._state["shape"] = shape
        if os.environ.get("KERNELMUX_CHECKED", "") not in ("", "0") and self.op.check_values:
            run = _checked(run, load(self.op.check_values, f"checking the arguments of {self.op.name}"))
        self._state["run"] = run
        return run


def _checked(run: Callable[..., Any], check: Callable[..., None]) -> Callable[..., Any]:
    """``run`` behind a look at its arguments' values."""

    def checked(x: Any, weights: Any, *, config: Any, **op_args: Any) -> Any:
        check(x, weights, **op_args)
        return run(x, weights, config=config, **op_args)

    return checked
