"""Laying one list of rules over another: in front, or before or after a named rule."""

from __future__ import annotations

from difflib import get_close_matches
from itertools import pairwise

from kernelmux.policies.policy import fault_of
from kernelmux.policies.rule import BadRule, Rule


def laid_over(own: tuple[Rule, ...], base: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """``own`` in front of ``base``, those with a position beside the rule they name, in the order of their file."""
    taken = {rule.id for rule in base}
    for rule in own:
        if rule.id in taken:
            problem = f"{rule.id!r} is the id of a rule below it already."
            raise fault_of(rule, BadRule("id", problem, "Give it another; before/after place it beside that one."))
    order = [*(rule for rule in own if rule.position is None), *base]
    waiting = [rule for rule in own if rule.position is not None]
    known = {*taken, *(rule.id for rule in own)}
    while waiting:
        here = {rule.id for rule in order}
        ready = [rule for rule in waiting if rule.position and rule.position[1] in here]
        if not ready:
            raise _stuck(waiting, known)
        for rule in ready:
            _insert(order, rule)
        waiting = [rule for rule in waiting if rule not in ready]
    return tuple(order)


def _insert(order: list[Rule], rule: Rule) -> None:
    word, anchor = rule.position or ("before", "")
    place = next(index for index, other in enumerate(order) if other.id == anchor)
    if word == "after":
        place += 1
        while place < len(order) and order[place].position == rule.position:  # those of the file before it
            place += 1
    order.insert(place, rule)


def _stuck(waiting: list[Rule], known: set[str]) -> Exception:
    for rule in waiting:
        word, anchor = rule.position or ("", "")
        if anchor not in known:
            near = get_close_matches(anchor, known - {rule.id}, n=3, cutoff=0.5)
            allowed = near or sorted(known - {rule.id})[:12]
            fix = (
                f"Did you mean {' or '.join(near)}?" if near else f"Its op has {', '.join(allowed) or 'no other rule'}."
            )
            return fault_of(rule, BadRule(word, f"there is no rule {anchor!r} of {rule.op}.", fix))
    first = waiting[0]
    by_id = {rule.id: rule for rule in waiting}
    chain = [first.id]
    while True:
        following = (by_id[chain[-1]].position or ("", ""))[1]
        if following in chain:
            cycle = [*chain[chain.index(following) :], following]
            break
        chain.append(following)
    rule = by_id[cycle[0]]
    word = (rule.position or ("before",))[0]
    steps = ", ".join(f"{one} {(by_id[one].position or ('',))[0]} {two}" for one, two in pairwise(cycle))
    return fault_of(
        rule, BadRule(word, f"the positions form a cycle: {steps}.", "Place one of them beside another rule.")
    )
