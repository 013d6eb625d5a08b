"""Measurement: the time one whole kernel took for one problem, and what must still hold for it to count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from kernelmux.registry.value import Value


class Measurement(Value):
    """One kernel's time over token counts ``m_lo..m_hi`` (both included), median microseconds of one call.

    ``device`` is the Device's ``table_name``. ``shape`` lists (axis, size) without the token axis, sorted by axis.
    ``versions`` are of the packages that decide speed (``triton``, ``torch``, ...) as they were installed then, of the
    ``driver``, and of the kernel's own code (``source``, what ``Kernel.source`` answered).
    ``when`` is an ISO 8601 time in UTC.
    """

    op: str
    device: str
    scheme: str
    dtype: str
    shape: tuple[tuple[str, int], ...]
    activation: str | None
    m_lo: int
    m_hi: int
    kernel: str
    us: float
    versions: Mapping[str, str] = MappingProxyType({})
    when: str = ""

    def __hash__(self) -> int:
        return hash((self.op, self.device, self.kernel, self.shape, self.m_lo, self.m_hi, self.us, self.when))

    def stale(self, version: Callable[[str], str | None]) -> str | None:
        """Why it no longer counts, or None. Build tags do not matter.

        ``version`` gives a package's version now: None where it is not installed, "" where that cannot be known.
        """
        for package, then in self.versions.items():
            now = version(package)
            if now == "":
                continue
            if now is None or release(now) != release(then):
                return f"{package} was {then} and is {now or 'not installed'}"
        return None


def release(version: str) -> str:
    """The first three numbers of a version, without build tags: ``2.9.1+cu128`` -> ``2.9.1``."""
    return ".".join(version.partition("+")[0].split(".")[:3])
