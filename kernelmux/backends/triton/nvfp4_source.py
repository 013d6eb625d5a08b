"""The identity of the NVFP4 kernels' code, which a sweep was made with. Imports nothing that runs."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from ...store.files import sha256

_HERE = Path(__file__).parent
_TRITON = ("nvfp4_weight_only_kernels.py", "nvfp4_asm.py", "nvfp4_planes.py", "nvfp4_arguments.py")
_CSRC = ("nvfp4_gemv.cu", "nvfp4_machine.cuh")


@lru_cache(maxsize=1)
def source_hash() -> str:
    """Of the weight-only kernel in Triton."""
    return sha256(b"".join((_HERE / name).read_bytes() for name in _TRITON))[:16]


@lru_cache(maxsize=1)
def source_hash_of_few() -> str:
    """Of the kernel for few tokens, and of the one that takes more."""
    csrc = _HERE.parent / "jit_cuda" / "csrc"
    return sha256(b"".join((csrc / name).read_bytes() for name in _CSRC) + source_hash().encode())[:16]
