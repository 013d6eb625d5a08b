"""Kernels under Triton's interpreter, on the CPU. Triton decides at import whether it interprets, so these tests run in
a pytest of their own with TRITON_INTERPRET=1: tests/unit/backends/test_interpreted.py starts it."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def float16():
    """The interpreter computes no bf16 (it multiplies the bits as integers), so numerics are proven in fp16 here."""
    import torch

    return torch.float16
