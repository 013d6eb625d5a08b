from __future__ import annotations

from pathlib import Path

import pytest

from kernelmux.store.paths import cache_dir, config_dir, journal_path


def test_the_environment_moves_both_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELMUX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("KERNELMUX_CONFIG_DIR", str(tmp_path / "tables"))
    assert cache_dir() == tmp_path / "cache"
    assert journal_path() == tmp_path / "cache" / "journal.sqlite"
    assert config_dir() == tmp_path / "tables"


def test_without_it_they_are_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KERNELMUX_CACHE_DIR", raising=False)
    monkeypatch.delenv("KERNELMUX_CONFIG_DIR", raising=False)
    assert cache_dir() != config_dir()
    assert "kernelmux" in str(cache_dir())
    assert not str(config_dir()).startswith(str(cache_dir()))
