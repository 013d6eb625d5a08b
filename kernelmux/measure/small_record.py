"""From races to what select_backend goes by: measurements in the journal, each for a range of token counts."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..device import Device
from ..registry import AnyOf, Kernel, NeedsPackage, Requirement
from ..registry.lazy import load
from ..registry.measurement import Measurement
from ..registry.packages import ASSUMED, Packages

if TYPE_CHECKING:
    from .small import Race

REACH = 4
"""A time stands for token counts up to this many times more or fewer, and never beyond halfway to a neighbour."""


def token_ranges(ms: Iterable[int]) -> dict[int, tuple[int, int]]:
    """For each measured M the token counts it stands for, both ends included, without overlap.

    Halfway is meant in proportion: 16 and 256 meet at 64, which belongs to the upper one.
    """
    order = sorted(set(ms))
    found = {}
    for i, m in enumerate(order):
        low, high = math.ceil(m / REACH), m * REACH
        if i:
            low = max(low, math.ceil(math.sqrt(order[i - 1] * m)))
        if i + 1 < len(order):
            high = min(high, math.ceil(math.sqrt(m * order[i + 1])) - 1)
        found[m] = (low, max(high, m))
    return found


def measurements(
    races: Sequence[Race], device: Device, kernels: Mapping[str, Kernel], packages: Packages | None = None
) -> list[Measurement]:
    """A Measurement for each kernel that ran right, of races over one or more M; peers and copies are left out."""
    packages = packages if packages is not None else Packages.installed()
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    identities: dict[str, dict[str, str]] = {}
    found = []
    for race in races:
        point = race.point
        if point.options:
            continue  # select_backend does not know these options: a time with them is not for everybody
        beside = [r.point.m for r in races if _row(r) == _row(race)]
        low, high = token_ranges(beside)[point.m]
        for standing in race.standings:
            kernel = kernels.get(standing.name)
            if kernel is None or not standing.ok or standing.us is None:
                continue
            if kernel.name not in identities:
                identities[kernel.name] = versions(kernel, device, packages)
            found.append(
                Measurement(
                    op=point.op,
                    device=device.table_name,
                    scheme="none",
                    dtype=point.dtype,
                    shape=(("H", point.h),),
                    activation=None,
                    m_lo=low,
                    m_hi=high,
                    kernel=kernel.name,
                    us=round(standing.us, 4),
                    versions=identities[kernel.name],
                    when=when,
                )
            )
    return found


def _row(race: Race) -> tuple[str, int, str, tuple[tuple[str, object], ...]]:
    point = race.point
    return point.op, point.h, point.dtype, tuple(sorted(point.options.items()))


def versions(kernel: Kernel, device: Device, packages: Packages) -> dict[str, str]:
    """What must stay for a time of this kernel to count: its packages, torch, the driver and its own code."""
    names = {"torch"}.union(*(_packages(requirement) for requirement in kernel.requirements))
    found = {
        name: version
        for name in sorted(names)
        if (version := packages.get(name)) is not None and version not in ("", ASSUMED)
    }
    if device.driver:
        found["driver"] = device.driver
    if kernel.source is not None:
        found["source"] = str(load(kernel.source)())
    return found


def _packages(requirement: Requirement) -> set[str]:
    """Names of the packages a requirement speaks of, also inside an AnyOf."""
    if isinstance(requirement, AnyOf):
        return set().union(*(_packages(part) for part in requirement.requirements))
    return {requirement.name} if isinstance(requirement, NeedsPackage) else set()


def record(found: Sequence[Measurement], path: Path | None = None) -> Path:
    """Write them to the journal, the default one if none is named. Raises StoreError."""
    from ..store.journal import Journal
    from ..store.paths import journal_path

    path = path or journal_path()
    with Journal(path) as journal:
        journal.record_measurement(*found)
    return path
