"""NVFP4 quantization a second time, by other means than the contract's: one block in exact rational arithmetic, and
whole arrays with numpy by looking values up between neighbours. And the inputs on which two of them are compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E4M3 = tuple(  # of codes 0..126
    (code & 7) * 2.0**-9 if code < 8 else (1 + (code & 7) / 8) * 2.0 ** ((code >> 3) - 7) for code in range(127)
)
NAN_SCALE, NAN_CODE = 0x7F, 7


# one block, exactly


def fp32(value: Fraction) -> Fraction | float:
    """The nearest fp32 number, ties to even, subnormals included; inf where it is too large."""
    if value == 0:
        return Fraction(0)
    exponent = max(math.floor(_log2(abs(value))), -126)
    step = Fraction(2) ** (exponent - 23)
    rounded = round(value / step) * step  # round() of a Fraction takes the even one of two
    return math.inf if rounded >= Fraction(2) ** 128 else rounded


def _log2(value: Fraction) -> int:
    """The largest n with 2**n <= value."""
    n = value.numerator.bit_length() - value.denominator.bit_length()
    return n if Fraction(2) ** n <= value else n - 1


def nearest(value: Fraction, table: Sequence[float]) -> int:
    """The index of the nearest entry, the even one of two, the last beyond the end."""
    return min(range(len(table)), key=lambda i: (abs(Fraction(table[i]) - value), i % 2))


def scalar_block(values: Sequence[float], factor: float) -> tuple[list[int], int]:
    """(codes, scale code) of 16 numbers, each the value of an fp32, under an fp32 global scale."""
    if any(math.isnan(value) for value in values):
        return [NAN_CODE] * len(values), NAN_SCALE
    six = fp32(6 * Fraction(factor))
    largest = max(abs(value) for value in values)
    if math.isinf(largest):
        scale = 126
    else:
        ideal = fp32(Fraction(largest) / six)
        scale = 126 if ideal == math.inf else nearest(ideal, E4M3)
    unit = fp32(Fraction(E4M3[scale]) * Fraction(factor))
    codes = []
    for value in values:
        sign = 8 if math.copysign(1.0, value) < 0 else 0
        if unit == 0:
            codes.append(sign)
        elif math.isinf(value):
            codes.append(sign + 7)
        else:
            ratio = fp32(abs(Fraction(value)) / unit)
            codes.append(sign + (7 if ratio == math.inf else nearest(ratio, E2M1)))
    return codes, scale


# whole arrays


def lookup(values: np.ndarray, table: Sequence[float]) -> np.ndarray:
    """Indices of the nearest entries, the even ones of two; values are not negative and no NaN."""
    middles = (np.array(table[:-1]) + np.array(table[1:])) / 2
    index = np.searchsorted(middles, values.astype(np.float64), side="left")
    tie = (index < len(middles)) & (middles[np.minimum(index, len(middles) - 1)] == values)
    return index + (tie & (index % 2 == 1))


def quantize(blocks: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """(codes u8 [.., 16], scale codes u8 [..]) of fp32 blocks [.., 16]; numpy divides as IEEE says."""
    factor = np.float32(factor)
    with np.errstate(all="ignore"):
        nan = np.isnan(blocks).any(-1)
        size = np.abs(blocks)
        ideal = np.where(nan, 0, size.max(-1)) / (np.float32(6) * factor)
        scale = lookup(np.minimum(np.where(np.isnan(ideal), 0, ideal), np.float32(448)), E4M3)
        unit = (np.array(E4M3, dtype=np.float32)[scale] * factor)[..., None]
        ratio = np.where(unit == 0, np.float32(0), size / unit)
        codes = lookup(np.where(np.isnan(ratio), 0, ratio), E2M1) + 8 * np.signbit(blocks)
    codes = np.where(nan[..., None], NAN_CODE, codes)
    return codes.astype(np.uint8), np.where(nan, NAN_SCALE, scale).astype(np.uint8)


def packed(codes: np.ndarray) -> np.ndarray:
    """Two codes a byte, the first in the low four bits."""
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


# inputs


def bf16_values(bits: np.ndarray) -> np.ndarray:
    """fp32 values of 16-bit patterns."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bf16(values: np.ndarray) -> np.ndarray:
    """fp32 values cut to what bf16 holds."""
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


# Shares of the largest value of a block, about the thresholds of e2m1 (at 0.25, 0.75, .. 5 of 6) and at ties.
SHARES = (0.0, -0.0, 1 / 24, 0.0625, -0.125, 0.1875, 1 / 6, 0.25, -0.3, 5 / 12, 0.5, 0.5859375, 2 / 3, 5 / 6, -0.875)


def every_maximum(signs: bool = True) -> np.ndarray:
    """A block [65536, 16] for each bf16 pattern, all of them: it is the largest value, the others are shares of it."""
    values = bf16_values(np.arange(1 << 16 if signs else 1 << 15, dtype=np.uint32))
    with np.errstate(all="ignore"):
        shares = to_bf16((values[:, None] * np.array(SHARES, dtype=np.float32)).astype(np.float32))
    blocks = np.concatenate((shares, values[:, None]), axis=1)
    turned = np.arange(16)[None, :] + np.arange(len(blocks))[:, None]  # the largest at every place
    return np.take_along_axis(blocks, turned % 16, axis=1)


def infinite_beside_finite() -> np.ndarray:
    """Blocks with an infinity, a NaN, or both among every finite size."""
    values = bf16_values(np.arange(0, 1 << 16, 7, dtype=np.uint32))
    blocks = np.resize(values, (len(values) // 16 * 3, 16)).copy()
    blocks[0::3, 3], blocks[1::3, 9] = np.inf, np.nan
    blocks[2::3, 0], blocks[2::3, 15] = -np.inf, np.nan
    return blocks


def every_value_under_every_scale(factor: float) -> Iterator[np.ndarray]:
    """Blocks [.., 16], a batch for each scale code from 0 on: every finite bf16 value that the scale's largest allows.

    The first of each block is the largest bf16 number that gives the scale, so the other 15 are free below it.
    """
    finite = bf16_values(np.arange(1 << 16, dtype=np.uint32))
    finite = finite[np.isfinite(finite)]
    positive = np.sort(finite[~np.signbit(finite)])
    alone = np.zeros((len(positive), 16), dtype=np.float32)
    alone[:, 0] = positive
    scales = quantize(alone, factor)[1]
    for code in range(127):
        found = np.nonzero(scales == code)[0]
        if not len(found):
            continue
        largest = positive[found[-1]]
        inside = finite[np.abs(finite) <= largest]
        rest = np.resize(inside, (-(-len(inside) // 15), 15))
        yield np.concatenate((np.full((len(rest), 1), largest, dtype=np.float32), rest), axis=1)


def factors(count: int = 8, seed: int = 0) -> list[float]:
    """Global scales: powers of two, what models have, any mantissa, the ends of the normal numbers and beyond."""
    random = np.random.default_rng(seed)
    some = [1.0, 2.0**-9, 2.0**40, 2.0**-60, 0.37, 1 / 2688, 3.3e-4, 0.0123, 77.0, 1e-20, 2.0**-110, 2.0**110]
    ends = [1e-38, 2.0**-126, 1e-40, 2.0**-149, 1e34, 1.26e35]
    drawn = np.exp(12 * random.standard_normal(count)).tolist()
    return [float(np.float32(value)) for value in (*some, *ends, *drawn)]
