"""One policy rule: when it applies, what it prefers, why, and how it is read from data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kernelmux.device import Capability, Device, capabilities
from kernelmux.errors import KernelmuxError
from kernelmux.registry.packages import Packages
from kernelmux.registry.problem import Problem, dtype_name
from kernelmux.registry.value import Value

if TYPE_CHECKING:
    from kernelmux.registry.op import Op

VENDORS = ("nvidia", "amd", "cpu")
WHEN_KEYS = ("op", "scheme", "capability", "vendor", "tokens", "dtype", "activation")
RULE_KEYS = ("id", "when", "prefer", "why", "evidence", "holds_for")
OWN_MEASUREMENT = "own measurement: "
_NO_LIMIT = 1 << 62
_TOKENS = re.compile(r"(?P<sign><=|>=|<|>|=)?\s*(?P<number>\d+)|(?P<low>\d+)\s*\.\.\s*(?P<high>\d+)")
_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class BadRule(KernelmuxError):
    """What is wrong in a rule: ``key`` is the path inside it (``when.tokens``), ``fix`` the expected form."""

    def __init__(self, key: str, problem: str, fix: str = ""):
        self.key, self.problem, self.fix = key, problem, fix
        super().__init__(f"{key}: {problem}" + (f" {fix}" if fix else ""))


class Rule(Value):
    """Preferences over backends under a condition. None in a condition means "any".

    ``tokens`` is the lowest and highest token count, both included. ``prefer`` holds backends or kernel names, best
    first. ``holds_for`` gives the package versions for which the evidence was found.
    """

    id: str
    op: str
    prefer: tuple[str, ...]
    why: str
    evidence: str
    schemes: frozenset[str] | None = None
    capabilities: frozenset[Capability] | None = None
    vendors: frozenset[str] | None = None
    tokens: tuple[int, int] | None = None
    dtypes: frozenset[str] | None = None
    activations: frozenset[str] | None = None
    holds_for: tuple[tuple[str, str], ...] = ()

    def matches(self, op: Op, device: Device, packages: Packages, problem: Problem) -> tuple[bool, str]:
        """Whether the rule applies; and, where it would but for something worth saying, a note."""
        if not self._facts_match(device, problem):
            return False, ""
        if self.tokens is not None:
            given = problem.tokens(op.token_axis)
            if given is None:
                return False, f"{op.token_axis} was not given, so rule {self.id} on the token count was passed over"
            if not self.tokens[0] <= given[0] <= given[1] <= self.tokens[1]:
                overlap = given[0] <= self.tokens[1] and self.tokens[0] <= given[1]
                return False, f"rule {self.id} covers only a part of the token range" if overlap else ""
        for package, spec in self.holds_for:
            if package in packages and not packages.has(package, spec):
                version = packages[package]
                return False, f"rule {self.id} was found for {package}{spec} and is passed over: {version} is installed"
        return True, ""

    def _facts_match(self, device: Device, problem: Problem) -> bool:
        return (
            (self.schemes is None or problem.scheme.name in self.schemes)
            and (self.capabilities is None or device.capability in self.capabilities)
            and (self.vendors is None or device.vendor in self.vendors)
            and (self.dtypes is None or problem.dtype in self.dtypes)
            and (self.activations is None or problem.activation in self.activations)
        )

    def covers(self, other: Rule) -> bool:
        """Whether every problem that ``other`` applies to is this rule's already."""
        sets = (
            (self.schemes, other.schemes),
            (self.capabilities, other.capabilities),
            (self.vendors, other.vendors),
            (self.dtypes, other.dtypes),
            (self.activations, other.activations),
        )
        if self.op != other.op or any(mine is not None and not (theirs and theirs <= mine) for mine, theirs in sets):
            return False
        if self.holds_for and set(self.holds_for) - set(other.holds_for):
            return False
        if self.tokens is None:
            return True
        return other.tokens is not None and self.tokens[0] <= other.tokens[0] and other.tokens[1] <= self.tokens[1]


def read_rule(data: object) -> Rule:
    """A Rule from plain data. Raises BadRule naming the key, what stands there and what was expected.

    Checked by hand and not by a schema library: importing one costs 20 ms of the 50 ms a first selection may take.
    """
    rule = _mapping(data, "", RULE_KEYS)
    for key in ("id", "when", "prefer", "why", "evidence"):
        if not rule.get(key):
            raise BadRule(key, "is missing.", f"A rule has {', '.join(RULE_KEYS[:5])}, and may have holds_for.")
    when = _mapping(rule["when"], "when", WHEN_KEYS)
    identity = _text(rule["id"], "id")
    if not _ID.fullmatch(identity):
        raise BadRule("id", f"{identity!r} is not an id.", "Write lower-case words joined by dashes.")
    evidence = _text(rule["evidence"], "evidence")
    if not evidence.startswith(("https://", OWN_MEASUREMENT)) or evidence == OWN_MEASUREMENT.strip():
        raise BadRule("evidence", f"{evidence!r} is no evidence.", f"Give an https link, or '{OWN_MEASUREMENT}<file>'.")
    if "op" not in when:
        raise BadRule("when.op", "is missing.", "Every rule is about one op.")
    return Rule(
        id=identity,
        op=_text(when["op"], "when.op"),
        prefer=tuple(_texts(rule["prefer"], "prefer")),
        why=_text(rule["why"], "why"),
        evidence=evidence,
        schemes=_set(when, "scheme"),
        capabilities=_capabilities(when),
        vendors=_vendors(when),
        tokens=_tokens(when.get("tokens")),
        dtypes=_dtypes(when),
        activations=_set(when, "activation"),
        holds_for=_holds_for(rule.get("holds_for", {})),
    )


def _mapping(value: object, where: str, known: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise BadRule(where, f"must be a mapping with {', '.join(known)}, not {type(value).__name__}.")
    for key in value:
        if key not in known:
            place = f"{where}.{key}" if where else str(key)
            raise BadRule(place, "is not a key that is known here.", f"Use {', '.join(known)}.")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadRule(where, f"must be text, not {value!r}.")
    return value


def _texts(value: object, where: str) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if not values:
        raise BadRule(where, "is empty.", "Name at least one.")
    if len({str(item) for item in values}) != len(values):
        raise BadRule(where, f"names something twice: {', '.join(map(str, values))}.")
    return [_text(item, where) for item in values]


def _set(when: Mapping[str, Any], key: str) -> frozenset[str] | None:
    return frozenset(_texts(when[key], f"when.{key}")) if key in when else None


def _vendors(when: Mapping[str, Any]) -> frozenset[str] | None:
    vendors = _set(when, "vendor")
    if vendors is not None and vendors - set(VENDORS):
        raise BadRule("when.vendor", f"{', '.join(sorted(vendors))}: unknown vendor.", f"Use {', '.join(VENDORS)}.")
    return vendors


def _capabilities(when: Mapping[str, Any]) -> frozenset[Capability] | None:
    if "capability" not in when:
        return None
    value = when["capability"]
    if isinstance(value, (int, float)) or (isinstance(value, list) and any(isinstance(v, (int, float)) for v in value)):
        raise BadRule("when.capability", f"{value!r} reads as a number.", 'Quote it: "9.0".')
    try:
        return capabilities(*_texts(value, "when.capability"))
    except ValueError as error:
        raise BadRule("when.capability", str(error)) from None


def _dtypes(when: Mapping[str, Any]) -> frozenset[str] | None:
    dtypes = _set(when, "dtype")
    try:
        return None if dtypes is None else frozenset(str(dtype_name(dtype)) for dtype in dtypes)
    except ValueError as error:
        raise BadRule("when.dtype", str(error)) from None


def _tokens(value: object) -> tuple[int, int] | None:
    if value is None:
        return None
    found = _TOKENS.fullmatch(str(value).strip())
    low, high = 1, 0
    if found and found["number"]:
        number = int(found["number"])
        ends = {
            "<": (0, number - 1),
            "<=": (0, number),
            ">": (number + 1, _NO_LIMIT),
            ">=": (number, _NO_LIMIT),
        }
        low, high = ends.get(found["sign"] or "=", (number, number))
    elif found:
        low, high = int(found["low"]), int(found["high"])
    if low > high:
        raise BadRule("when.tokens", f"{value!r} is no range of token counts.", 'Write ">=256", "<64" or "64..256".')
    return low, high


def _holds_for(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping):
        raise BadRule("holds_for", "must map a package to a version range.", 'As in {triton: ">=3.5,<4"}.')
    ranges = []
    for package, spec in value.items():
        text = _text(spec, f"holds_for.{package}")
        if not all(_SPEC.fullmatch(clause.strip()) for clause in text.split(",")):
            raise BadRule(f"holds_for.{package}", f"{text!r} is no version range.", 'As in ">=3.5,<4".')
        ranges.append((str(package), text))
    return tuple(ranges)


_SPEC = re.compile(r"(?:~=|===|==|!=|<=|>=|<|>)\s*[A-Za-z0-9_.*+!-]+")
