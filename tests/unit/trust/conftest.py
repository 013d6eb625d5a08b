"""The gate in force on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("torch", reason="kernels are checked with torch")


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from kernelmux.registry import frozen
    from tests.unit.trust import planted

    monkeypatch.setenv("KERNELMUX_TRUST", "strict")
    monkeypatch.setattr(planted, "version", "1")
    monkeypatch.setattr(planted, "mended", False)
    planted.runs.clear()
    _fresh()
    yield
    frozen.set_frozen(False)
    _fresh()


def _fresh() -> None:
    from kernelmux.policies import standing
    from kernelmux.registry import discovery, epoch

    discovery.forget()
    standing.forget()
    standing._passed_over.clear()
    epoch.bump()
