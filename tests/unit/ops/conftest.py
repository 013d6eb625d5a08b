"""The toy op, registered for the tests of this folder alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch registers the ops")


@pytest.fixture
def toy() -> Iterator[Callable[..., Any]]:
    from tests.unit.ops.toy import world

    with world() as made:
        yield made
