"""Policy: ordered rules. The built-in ones are one file an op, read when that op is first asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernelmux import twin
from kernelmux.errors import ConfigFileError, KernelmuxError, UsageError
from kernelmux.policies.rule import BadRule, Rule, read_rule
from kernelmux.registry.frozen import guard
from kernelmux.registry.value import Value

if TYPE_CHECKING:
    from kernelmux.device import Device
    from kernelmux.registry.op import Op
    from kernelmux.registry.packages import Packages
    from kernelmux.registry.problem import Problem

RULES_FOLDER = Path(__file__).with_name("rules")
_builtin: dict[str, Policy] = {}


class Policy(Value):
    """Rules in order; the first that matches decides. Equal to itself alone."""

    rules: tuple[Rule, ...] = ()

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @classmethod
    def load(cls, path: Path | str) -> Policy:
        """Read a user's policy file. Raises ConfigFileError naming file, line, key and the expected form."""
        return _policy(Path(path), _yaml(Path(path)), own=True)

    @classmethod
    def builtin(cls, op: str) -> Policy:
        """The rules kernelmux ships for this op, read once; none for an op without a rules file."""
        found = _builtin.get(op)
        if found is None:
            path = RULES_FOLDER / f"{op}.yaml"
            guard(f"read the rules of {op}")
            found = _builtin[op] = _builtin_from(path) if op.isidentifier() and path.is_file() else cls()
        return found

    @classmethod
    def builtin_all(cls) -> Policy:
        """Every rule kernelmux ships, file by file."""
        return cls(tuple(rule for path in sorted(RULES_FOLDER.glob("*.yaml")) for rule in cls.builtin(path.stem).rules))

    def over(self, base: Policy, op: str = "") -> Policy:
        """These rules laid over ``base``: in front of it, but for those that say where they stand.

        ``op``: only the rules of this op. Raises ConfigFileError (UsageError for rules of no file) for an id that
        ``base`` has, a position beside a rule that is not there, and positions that form a cycle.
        """
        from kernelmux.policies.positions import laid_over

        mine = tuple(rule for rule in self.rules if rule.op == op) if op else self.rules
        return Policy(laid_over(mine, base.rules)) if mine else base

    def first(
        self, op: Op, device: Device, packages: Packages, problem: Problem
    ) -> tuple[Rule | None, tuple[str, ...]]:
        """The first rule that matches, and notes on rules before it that were passed over for want of a fact."""
        notes: list[str] = []
        for rule, note in self.walk(op, device, packages, problem):
            if rule is not None:
                return rule, tuple(notes)
            notes.append(note)
        return None, tuple(notes)

    def walk(
        self, op: Op, device: Device, packages: Packages, problem: Problem, verb: str = "prefer"
    ) -> Iterator[tuple[Rule | None, str]]:
        """Every rule of this verb that matches, in order; between them notes on those passed over for want of a fact.

        A rule that forbids counts where it covers any of the problem's token counts.
        """
        for rule in self.rules:
            if rule.op != op.name or not getattr(rule, verb):
                continue
            matched, note = rule.matches(op, device, packages, problem, partly=verb == "forbid")
            if matched:
                yield rule, ""
            elif note:
                yield None, note


def _builtin_from(path: Path) -> Policy:
    return _policy(path, twin.read(path, _yaml), own=False)


def _yaml(path: Path) -> Any:
    from kernelmux.policies.strict_yaml import read_yaml

    return read_yaml(path)


def _policy(path: Path, data: Any, *, own: bool) -> Policy:
    rules = data.get("rules") if isinstance(data, dict) else None
    if not isinstance(data, dict) or set(data) != {"rules"} or not isinstance(rules, list):
        raise ConfigFileError(path, "", "is no policy.", "It has one key, rules, that holds a list of rules.")
    read: dict[str, Rule] = {}
    for index, entry in enumerate(rules):
        try:
            rule = read_rule(entry, own=own)
            if rule.id in read:
                raise BadRule("id", f"{rule.id!r} stands twice.", "Give every rule its own id.")
        except BadRule as error:
            name = entry.get("id") if isinstance(entry, dict) else None
            raise placed(error, path, index, name) from None
        read[rule.id] = rule.but(origin=(path, index))
    return Policy(tuple(read.values()))


def placed(error: BadRule, path: Path, index: int, name: object) -> ConfigFileError:
    """The fault with its file, line, rule and key."""
    from kernelmux.policies.strict_yaml import line_of

    line = line_of(path, ("rules", index, *error.key.split(".", 2)))
    words = [f"line {line}" if line else "", f"rule {name or index + 1}", error.key]
    return ConfigFileError(path, ", ".join(word for word in words if word), error.problem, error.fix)


def fault_of(rule: Rule, error: BadRule) -> KernelmuxError:
    """The fault of a rule that was read already, with its file and line where it stands in one."""
    if rule.origin is None:
        return UsageError(f"rule {rule.id}, {error}")
    return placed(error, *rule.origin, rule.id)
