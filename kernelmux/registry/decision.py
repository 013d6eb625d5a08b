"""The three answers of a Requirement. Each carries the words shown to people."""

from __future__ import annotations

from typing import Any, Union

from kernelmux.registry.value import Value


class Accepted(Value):
    """Nothing stands in the way."""


class Conditional(Value):
    """Accepted, if what was not given turns out as ``conditions`` say."""

    conditions: tuple[str, ...]


class Rejected(Value):
    """It cannot run: a stable ``code``, why, and what would mend it.

    ``also`` holds the other reasons against the same kernel, in the order of its requirements.
    """

    code: str
    reason: str
    remedy: str
    link: str | None = None
    also: tuple[Rejected, ...] = ()

    def every(self) -> tuple[Rejected, ...]:
        """The headline and every other reason, each on its own."""
        alone = Rejected(self.code, self.reason, self.remedy, self.link) if self.also else self
        return (alone, *self.also)

    def to_json(self) -> dict[str, Any]:
        return {"code": self.code, "reason": self.reason, "remedy": self.remedy, "link": self.link}


Decision = Union[Accepted, Conditional, Rejected]  # noqa: UP007  (a run-time alias; 3.10 has no `type` statement)
ACCEPTED = Accepted()


def combine(answers: list[Decision]) -> Decision:
    """One Decision of many: all reasons kept, the first one in front; conditions joined without repeats."""
    rejected = [reason for answer in answers if isinstance(answer, Rejected) for reason in answer.every()]
    if rejected:
        first, rest = rejected[0], tuple(rejected[1:])
        if not rest and not first.also:
            return first
        return Rejected(first.code, first.reason, first.remedy, first.link, rest)
    conditions = [text for answer in answers if isinstance(answer, Conditional) for text in answer.conditions]
    return Conditional(tuple(dict.fromkeys(conditions))) if conditions else ACCEPTED
