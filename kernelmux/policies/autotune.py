"""Whether a library's own autotuner should run for a kernel: rules in ``autotune.yaml``, asked once before serving."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernelmux.errors import ConfigFileError, UsageError
from kernelmux.registry.kernel import Kernel
from kernelmux.registry.value import Value

if TYPE_CHECKING:
    from kernelmux.device import Device
    from kernelmux.policies.selection import Selection

FILE = Path(__file__).with_name("autotune.yaml")
ROLES = ("target", "draft")
CONDITIONS = ("package_not", "below", "deterministic", "op", "backend", "a2a", "role")
_RULE_KEYS = {"id", "if", "why", "evidence"}


class Autotune(Value):
    """The answer: whether to tune, the rule that says so (None: no rule names the kernel), why, and its evidence."""

    yes: bool
    why: str
    rule: str | None = None
    evidence: str = ""

    def __bool__(self) -> bool:
        return self.yes


def should_autotune(
    kernel: Kernel | Selection,
    device: Device | None = None,
    *,
    a2a: str | None = None,
    role: str | None = None,
    deterministic: bool = False,
) -> Autotune:
    """Whether to race this kernel's tactics on this device before serving.

    ``a2a``: the all-to-all backend in front of the experts (``deepep``, ...). ``role``: "target" or "draft" of a
    speculative pair. ``deterministic``: results must not depend on the batch. A Selection brings its own device.
    Raises UsageError for another role, or where no device is given.
    """
    declaration, own = (kernel, None) if isinstance(kernel, Kernel) else (kernel.declaration, kernel.device)
    here = device if device is not None else own
    if here is None:
        raise UsageError("should_autotune needs the device when it is given a Kernel and not a Selection.")
    if role is not None and role not in ROLES:
        raise UsageError(f"unknown role {role!r}. Known: {', '.join(ROLES)}.")
    capability = here.capability
    facts: dict[str, Any] = {
        "package_not": declaration.name.partition(".")[0],
        "below": capability.major if capability is not None else 0,
        "deterministic": deterministic,
        "op": declaration.op,
        "backend": declaration.backend,
        "a2a": a2a,
        "role": role,
    }
    never, when = _rules()
    for yes, rules in ((False, never), (True, when)):
        for rule in rules:
            if all(_holds(key, wanted, facts[key]) for key, wanted in rule["if"].items()):
                return Autotune(yes, rule["why"], rule["id"], rule["evidence"])
    return Autotune(False, f"no rule says that {declaration.name} has tactics worth a race")


def _holds(key: str, wanted: Any, fact: Any) -> bool:
    if key == "below":
        return bool(fact < wanted)
    if key == "deterministic":
        return bool(fact is wanted)
    return bool((fact in wanted) is not key.endswith("_not"))


@cache
def _rules() -> tuple[tuple[Mapping[str, Any], ...], tuple[Mapping[str, Any], ...]]:
    from kernelmux.policies.strict_yaml import read_yaml

    data = read_yaml(FILE)
    for rule in (*data["never"], *data["when"]):
        if set(rule) != _RULE_KEYS or not set(rule["if"]) <= set(CONDITIONS):
            fix = f"A rule has {', '.join(sorted(_RULE_KEYS))}; a condition knows {', '.join(CONDITIONS)}."
            raise ConfigFileError(FILE, str(rule.get("id", "")), "has an unknown key.", fix)
    return tuple(data["never"]), tuple(data["when"])
