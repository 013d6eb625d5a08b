"""One policy rule: when it applies, what it prefers, forbids or pins, why, and how it is read from data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernelmux.device import Capability, Device, capabilities
from kernelmux.errors import KernelmuxError
from kernelmux.registry.packages import Packages
from kernelmux.registry.problem import Problem, dtype_name
from kernelmux.registry.value import Value

if TYPE_CHECKING:
    from kernelmux.registry.op import Op

VENDORS = ("nvidia", "amd", "cpu")
WHEN_KEYS = ("op", "scheme", "capability", "vendor", "tokens", "dtype", "activation", "demands", "shape")
TRAITS = ("fast_math",)  # of a kernel's declared numerics: words that may be forbidden
VERBS = ("prefer", "forbid", "pin")
POSITIONS = ("before", "after")
RULE_KEYS = ("id", "when", *VERBS, "why", "evidence", "holds_for", *POSITIONS)
OWN_MEASUREMENT = "own measurement: "
_NO_LIMIT = 1 << 62
# Text until a rule has tokens or a shape: compiling it takes 1 ms of a first selection.
_RANGE = r"(?P<sign><=|>=|<|>|=)?\s*(?P<number>\d+)|(?P<low>\d+)\s*\.\.\s*(?P<high>\d+)"
_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class BadRule(KernelmuxError):
    """What is wrong in a rule: ``key`` is the path inside it (``when.tokens``), ``fix`` the expected form."""

    def __init__(self, key: str, problem: str, fix: str = ""):
        self.key, self.problem, self.fix = key, problem, fix
        super().__init__(f"{key}: {problem}" + (f" {fix}" if fix else ""))


class Rule(Value):
    """What is preferred, forbidden or pinned under a condition. None in a condition means "any".

    - ``prefer``: backends or kernel names, best first; the first that can run is taken
    - ``forbid``: backends, kernel names or TRAITS that are no candidates, whoever would choose them
    - ``pin``: one backend or kernel that is taken or, where it cannot run, an error

    ``tokens`` is the lowest and highest token count, both included; ``shape`` the same for other axes. ``demands`` are
    promises on numerics that the problem must ask for. ``holds_for`` gives the package versions for which the evidence
    was found. ``position`` is ("before" | "after", id of a rule) in a policy laid over another; ``origin`` the file
    it stands in and its place there, for messages.
    """

    id: str
    op: str
    why: str
    prefer: tuple[str, ...] = ()
    forbid: tuple[str, ...] = ()
    pin: str | None = None
    evidence: str = ""
    schemes: frozenset[str] | None = None
    capabilities: frozenset[Capability] | None = None
    vendors: frozenset[str] | None = None
    tokens: tuple[int, int] | None = None
    dtypes: frozenset[str] | None = None
    activations: frozenset[str] | None = None
    demands: frozenset[str] = frozenset()
    shape: tuple[tuple[str, int, int], ...] = ()
    holds_for: tuple[tuple[str, str], ...] = ()
    position: tuple[str, str] | None = None
    origin: tuple[Path, int] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The backends and kernels it speaks of."""
        return self.prefer or self.forbid or ((self.pin,) if self.pin else ())

    def matches(
        self, op: Op, device: Device, packages: Packages, problem: Problem, *, partly: bool = False
    ) -> tuple[bool, str]:
        """Whether the rule applies; and, where it would but for something worth saying, a note.

        ``partly``: also where it covers only some of the problem's token counts.
        """
        if not self._facts_match(device, problem):
            return False, ""
        if self.activations is not None and problem.activation not in self.activations:
            if problem.activation is None:
                return False, f"the activation was not given, so rule {self.id} on it was passed over"
            return False, ""
        for axis, low, high in self.shape:
            size = problem.shape.get(axis)
            if size is None:
                return False, f"{axis} was not given, so rule {self.id} on it was passed over"
            if not isinstance(size, int) or not low <= size <= high:
                return False, ""
        if self.tokens is not None:
            given = problem.tokens(op.token_axis)
            if given is None:
                return False, f"{op.token_axis} was not given, so rule {self.id} on the token count was passed over"
            if not self.tokens[0] <= given[0] <= given[1] <= self.tokens[1]:
                overlap = given[0] <= self.tokens[1] and self.tokens[0] <= given[1]
                if not (partly and overlap):
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
            and self.demands <= problem.demands
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
        if set(self.holds_for) - set(other.holds_for) or self.demands - other.demands:
            return False
        theirs_by_axis = {axis: (low, high) for axis, low, high in other.shape}
        ranges = [(self.tokens, other.tokens), *(((low, high), theirs_by_axis.get(a)) for a, low, high in self.shape)]
        return all(
            mine is None or (theirs is not None and mine[0] <= theirs[0] and theirs[1] <= mine[1])
            for mine, theirs in ranges
        )


def read_rule(data: object, *, own: bool = False) -> Rule:
    """A Rule from plain data. Raises BadRule naming the key, what stands there and what was expected.

    ``own``: a rule of a user's policy, which may stand before or after another and need not give evidence. Checked by
    hand and not by a schema library: importing one costs 20 ms of the 50 ms a first selection may take.
    """
    rule = _mapping(data, "", RULE_KEYS)
    needed = ("id", "when", "why") if own else ("id", "when", "why", "evidence")
    for key in needed:
        if not rule.get(key):
            form = f"A rule has {', '.join(needed)} and one of {', '.join(VERBS)}; it may have holds_for."
            raise BadRule(key, "is missing.", form)
    verbs = [verb for verb in VERBS if verb in rule]
    if len(verbs) != 1:
        problem = f"is given beside {verbs[0]}." if verbs else "is missing."
        raise BadRule(verbs[-1] if verbs else "prefer", problem, f"A rule has one of {', '.join(VERBS)}.")
    when = _mapping(rule["when"], "when", WHEN_KEYS)
    identity = _text(rule["id"], "id")
    if not _ID.fullmatch(identity):
        raise BadRule("id", f"{identity!r} is not an id.", "Write lower-case words joined by dashes.")
    evidence = _text(rule["evidence"], "evidence") if "evidence" in rule else ""
    if evidence and (not evidence.startswith(("https://", OWN_MEASUREMENT)) or evidence == OWN_MEASUREMENT.strip()):
        raise BadRule("evidence", f"{evidence!r} is no evidence.", f"Give an https link, or '{OWN_MEASUREMENT}<file>'.")
    if "op" not in when:
        raise BadRule("when.op", "is missing.", "Every rule is about one op.")
    return Rule(
        id=identity,
        op=_text(when["op"], "when.op"),
        why=_text(rule["why"], "why"),
        prefer=tuple(_texts(rule["prefer"], "prefer")) if "prefer" in rule else (),
        forbid=tuple(_texts(rule["forbid"], "forbid")) if "forbid" in rule else (),
        pin=_text(rule["pin"], "pin") if "pin" in rule else None,
        evidence=evidence,
        schemes=_set(when, "scheme"),
        capabilities=_capabilities(when),
        vendors=_vendors(when),
        tokens=_range(when["tokens"], "when.tokens") if "tokens" in when else None,
        dtypes=_dtypes(when),
        activations=_set(when, "activation"),
        demands=_set(when, "demands") or frozenset(),
        shape=_shape(when.get("shape", {})),
        holds_for=_holds_for(rule.get("holds_for", {})),
        position=_position(rule, own),
    )


def _position(rule: Mapping[str, Any], own: bool) -> tuple[str, str] | None:
    given = [key for key in POSITIONS if key in rule]
    if not given:
        return None
    if not own:
        raise BadRule(given[0], "has no meaning in a built-in file.", "There the order of the file is the order.")
    if len(given) == 2:
        raise BadRule("after", "is given beside before.", "Give one of them.")
    return given[0], _text(rule[given[0]], given[0])


def _shape(value: object) -> tuple[tuple[str, int, int], ...]:
    if not isinstance(value, Mapping):
        raise BadRule("when.shape", "must map an axis to a range.", 'As in {E: ">=64", N: "704"}.')
    return tuple((str(axis), *_range(extent, f"when.shape.{axis}")) for axis, extent in value.items())


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


def _range(value: object, where: str) -> tuple[int, int]:
    found = re.fullmatch(_RANGE, str(value).strip())
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
        raise BadRule(where, f"{value!r} is no range of whole numbers.", 'Write ">=256", "<64" or "64..256".')
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
