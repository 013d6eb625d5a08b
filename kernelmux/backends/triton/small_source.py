"""The identity of the small ops' Triton code. Imports nothing that runs, so that a selection can ask for it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from ...store.files import sha256

FILES = (
    "norm_kernels.py", "activation_kernels.py", "fp8_epilogue_kernels.py", "small_launch.py", "small_rules.py",
    "small_tiles.json",
)  # fmt: skip


@lru_cache(maxsize=1)
def source_hash() -> str:
    """Identity of what a measurement of these kernels was made with: their source, launch rules and tiles."""
    here = Path(__file__).parent
    return sha256(b"".join((here / name).read_bytes() for name in FILES))[:16]
