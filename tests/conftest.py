"""What every test gets: its own cache and config folders, and a clear word where a GPU or torch is missing."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("ci", deadline=None, max_examples=60, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's own tables and journal, or waits for a check that it is not about."""
    monkeypatch.setenv("KERNELMUX_TRUST", "off")
    monkeypatch.setenv("KERNELMUX_CACHE_DIR", str(tmp_path / "kernelmux-cache"))
    monkeypatch.setenv("KERNELMUX_CONFIG_DIR", str(tmp_path / "kernelmux-config"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if wanting and not _has_gpu():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU, or no torch built for one, on this machine"))


def _has_gpu() -> bool:
    if find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())
