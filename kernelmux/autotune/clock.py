"""The budget: what is left of it, and how much of that one M may use."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

RESERVE = 0.06  # of the budget, for checking the winners and writing


class Clock:
    """Seconds by stage and against a budget; ``None`` never runs out."""

    def __init__(self, budget_s: float | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self.begun = now()
        self.budget_s = budget_s
        self.stages: dict[str, float] = {}

    @property
    def spent_s(self) -> float:
        return self._now() - self.begun

    @property
    def limit_s(self) -> float:
        return float("inf") if self.budget_s is None else self.budget_s

    @property
    def left_s(self) -> float:
        return float("inf") if self.budget_s is None else self.budget_s * (1 - RESERVE) - self.spent_s

    def until(self, share: float) -> float | None:
        """The moment (time.monotonic) at which ``share`` of the budget is used; None without a budget."""
        return None if self.budget_s is None else self.begun + share * self.budget_s

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time inside towards a stage."""
        start = self._now()
        try:
            yield
        finally:
            self.stages[name] = self.stages.get(name, 0.0) + self._now() - start

    def shares(self, phase_share: float, weights: Mapping[int, float]) -> Shares:
        """Divide ``phase_share`` of what is left now among the M values, in proportion to their weights."""
        return Shares(self, self.left_s * phase_share, dict(weights))


class Shares:
    """What each M of one phase may use; an M that used less leaves the rest to those after it."""

    def __init__(self, clock: Clock, seconds: float, weights: dict[int, float]) -> None:
        self._clock = clock
        self._end = clock.spent_s + seconds
        self._weights = weights
        self._until = float("inf")

    @property
    def exhausted(self) -> bool:
        """Whether nothing at all is left for the M values to come."""
        return self._clock.spent_s >= self._end

    def begin(self, m: int) -> None:
        """Start on ``m``."""
        left = self._end - self._clock.spent_s
        total = sum(self._weights.values())
        mine = left * self._weights.pop(m) / total if total > 0 else left
        self._until = self._clock.spent_s + mine

    @property
    def over(self) -> bool:
        """Whether this M has used its share."""
        return self._clock.spent_s > self._until
