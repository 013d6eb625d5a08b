"""Numbers as people read them. None is a dash everywhere."""

from __future__ import annotations

from collections.abc import Sequence

NONE = "–"


def number(value: float | None) -> str:
    """Three to four significant digits: 9.68, 86.4, 1,234."""
    if value is None:
        return NONE
    size = abs(value)
    return f"{value:,.0f}" if size >= 1000 else f"{value:.1f}" if size >= 100 else f"{value:.2f}"


def percent(share: float | None, places: int = 1) -> str:
    """0.0529 is 5.3%."""
    return NONE if share is None else f"{share:.{places}%}"


def signed(share: float | None, places: int = 1) -> str:
    """As `percent` with its sign; what rounds to nothing has none."""
    if share is None:
        return NONE
    text = f"{share:+.{places}%}"
    return text[1:] if float(text[:-1]) == 0 else text.replace("-", "−")


def seconds(value: float | None) -> str:
    """1.5 s, 101 s, 12 min 40 s."""
    if value is None:
        return NONE
    if value >= 600:
        return f"{int(value) // 60} min {int(value) % 60} s"
    return f"{value:.0f} s" if value >= 100 else f"{value:.1f} s"


def count(value: int, one: str, many: str = "") -> str:
    """1 tile, 2 tiles."""
    return f"{value:,} {one if value == 1 else many or one + 's'}"


def listed(values: Sequence[int]) -> str:
    """Token counts: 1, 2, 4; from six on, "64 to 4096 (10 of them)"."""
    if len(values) < 6:
        return ", ".join(map(str, values))
    return f"{min(values)} to {max(values)} ({len(values)} of them)"
