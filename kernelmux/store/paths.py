"""Where kernelmux keeps things: measurements in the cache, the user's tuned tables in the data folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

CACHE_VARIABLE = "KERNELMUX_CACHE_DIR"
CONFIG_VARIABLE = "KERNELMUX_CONFIG_DIR"
_XDG = {CACHE_VARIABLE: ("XDG_CACHE_HOME", ".cache"), CONFIG_VARIABLE: ("XDG_DATA_HOME", ".local/share")}


def cache_dir() -> Path:
    """The folder of the journal and of whatever can be made again; ``KERNELMUX_CACHE_DIR`` moves it."""
    return _folder(CACHE_VARIABLE, "user_cache_path")


def config_dir() -> Path:
    """The folder of the user's tuned tables, one sub-folder a Triton version; ``KERNELMUX_CONFIG_DIR`` moves it."""
    return _folder(CONFIG_VARIABLE, "user_data_path")


def journal_path() -> Path:
    """The default measurement journal."""
    return cache_dir() / "journal.sqlite"


def _folder(variable: str, function: str) -> Path:
    given = os.environ.get(variable)
    if given:
        return Path(given).expanduser()
    system: str = sys.platform
    if system == "linux":  # what platformdirs answers there, without its import (10 ms of a first select)
        home, below = _XDG[variable]
        base = os.environ.get(home, "").strip()
        found = (Path(base) if os.path.isabs(base) else Path("~").expanduser() / below) / "kernelmux"
    else:
        import platformdirs

        found = Path(getattr(platformdirs, function)("kernelmux", appauthor=False))
    return found / "configs" if variable == CONFIG_VARIABLE else found
