"""Policy: ordered rules. The built-in ones are one file an op, read when that op is first asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernelmux import twin
from kernelmux.errors import ConfigFileError
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
        """Read a policy file. Raises ConfigFileError naming file, line, key and the expected form."""
        return _policy(Path(path), _yaml(Path(path)))

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

    def over(self, base: Policy) -> Policy:
        """These rules first, then those of ``base``."""
        return Policy((*self.rules, *base.rules))

    def first(
        self, op: Op, device: Device, packages: Packages, problem: Problem
    ) -> tuple[Rule | None, tuple[str, ...]]:
        """The first rule that matches, and notes on rules before it that were passed over for want of a fact."""
        notes: list[str] = []
        for rule in self.rules:
            if rule.op != op.name:
                continue
            matched, note = rule.matches(op, device, packages, problem)
            if matched:
                return rule, tuple(notes)
            if note:
                notes.append(note)
        return None, tuple(notes)


def _builtin_from(path: Path) -> Policy:
    return _policy(path, twin.read(path, _yaml))


def _yaml(path: Path) -> Any:
    from kernelmux.policies.strict_yaml import read_yaml

    return read_yaml(path)


def _policy(path: Path, data: Any) -> Policy:
    rules = data.get("rules") if isinstance(data, dict) else None
    if not isinstance(data, dict) or set(data) != {"rules"} or not isinstance(rules, list):
        raise ConfigFileError(path, "", "is no policy.", "It has one key, rules, that holds a list of rules.")
    read: dict[str, Rule] = {}
    for index, entry in enumerate(rules):
        try:
            rule = read_rule(entry)
            if rule.id in read:
                raise BadRule("id", f"{rule.id!r} stands twice.", "Give every rule its own id.")
        except BadRule as error:
            raise _placed(error, path, index, entry) from None
        read[rule.id] = rule
    return Policy(tuple(read.values()))


def _placed(error: BadRule, path: Path, index: int, entry: Any) -> ConfigFileError:
    """The fault with its file, line, rule and key."""
    from kernelmux.policies.strict_yaml import line_of

    line = line_of(path, ("rules", index, *error.key.split(".", 2)))
    name = entry.get("id") if isinstance(entry, dict) else None
    words = [f"line {line}" if line else "", f"rule {name or index + 1}", error.key]
    return ConfigFileError(path, ", ".join(word for word in words if word), error.problem, error.fix)
