"""Where kernelmux keeps things: measurements in the cache, the user's tuned tables in the data folder."""

from __future__ import annotations

import os
from pathlib import Path

from kernelmux.errors import StoreError

CACHE_VARIABLE = "KERNELMUX_CACHE_DIR"
CONFIG_VARIABLE = "KERNELMUX_CONFIG_DIR"


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
    import platformdirs

    try:
        found: Path = getattr(platformdirs, function)("kernelmux", appauthor=False)
        return found / "configs" if variable == CONFIG_VARIABLE else found
    except (OSError, RuntimeError) as error:
        raise StoreError(f"this user has no folder for kernelmux ({error}). Set {variable} to one.") from error
