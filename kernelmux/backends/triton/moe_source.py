"""The identity of the Triton MoE kernels' code. Imports nothing that runs, so that a selection can ask for it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from ...store.files import sha256

FILES = ("moe_kernels.py", "moe_launch.py", "moe_rules.py")


@lru_cache(maxsize=1)
def source_hash() -> str:
    """Identity of the kernels a table was tuned on: their source and the launch rules. Read once a process."""
    here = Path(__file__).parent
    return sha256(b"".join((here / name).read_bytes() for name in FILES))[:16]
