"""The identity of the CUDA kernels' code. Imports nothing that runs, so that a selection can ask for it.

What a measurement was made with is the source, what the source includes, and what chooses its geometry.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from ...store.files import sha256

HERE = Path(__file__).parent
_EVERY = ("csrc/common.cuh", "fast_math.yaml", "launch.py")


def norms() -> str:
    """Of csrc/norms.cu."""
    return _identity("csrc/norms.cu", "norms.py", "norm_*.py", "norm_*.json")


def activations() -> str:
    """Of csrc/activations.cu."""
    return _identity("csrc/activations.cu", *_TOGETHER, "activations.py", *_ROWS)


def fp8_epilogues() -> str:
    """Of csrc/fp8_epilogues.cu."""
    return _identity("csrc/fp8_epilogues.cu", *_TOGETHER, "fp8_epilogues.py", *_ROWS)


_TOGETHER = ("csrc/formulas.cuh", "csrc/together.cuh")
_ROWS = ("rows_of_tensors.py", "activation_*.py", "activation_*.json")


@lru_cache(maxsize=8)
def _identity(*patterns: str) -> str:
    files = sorted({path for pattern in (*_EVERY, *patterns) for path in HERE.glob(pattern)})
    return sha256(b"".join(path.name.encode() + b"\0" + path.read_bytes() for path in files))[:16]
