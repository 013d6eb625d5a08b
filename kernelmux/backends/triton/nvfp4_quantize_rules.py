"""How the quantizing kernels are cut into programs. No torch."""

from __future__ import annotations

WIDTH = 1024  # columns a program takes, less for short rows
VALUES = 2048  # values a program takes
MANY_VALUES = 4096  # the same where there are many: on an H200 132 us instead of 141 for 16384 x 7168 in bf16
MANY = 1 << 24  # of a matrix


def geometry(m: int, k: int, whole_rows: bool) -> tuple[int, int, int]:
    """(rows, columns, warps) of a program."""
    width = max(16, _power_of_two(k)) if whole_rows else min(WIDTH, max(16, _power_of_two(k)))
    values = MANY_VALUES if m * k >= MANY and not whole_rows else VALUES
    rows = max(1, min(values // width, _power_of_two(m)))
    return rows, width, max(1, min(16 if whole_rows else 4, rows * width // 512))


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()
