"""What the ops that end in e4m3 share."""

from __future__ import annotations

from ..registry import Tolerance

BLOCK = 128  # values of one scale of silu_and_mul_fp8
TOLERANCE = Tolerance(
    rtol=6.3e-2,
    atol=1e-3,
    why="rounded once to e4m3: 2**-4 of a value with 4 significant bits, 2**-10 of a subnormal; scales are fp32",
)
