"""The layout of NVFP4 weights that the weight-only kernels read: four planes of 64 values in a chunk of 256 along K.

A chunk of a row is 64 words of 16 bits (128 bytes) and 16 scales of 8 bits, 0.5625 bytes a value:

- ``words [K/256, N, 64]`` int16: word ``j`` holds the values ``k = 64 * p + j`` for the planes p = 0..3. Two neighbours
  make a 32-bit register whose eight values come out as four pairs of bf16 with one or two shifts each and no table
  (``SHIFTS``): what is left after the mask is sign, exponent and mantissa of e2m1 at their places in bf16, which is the
  value times 2^-126.
- ``scales [K/256, N, 4]`` int32: word ``b`` holds the scales of the values ``j // 16 == b`` of all planes, one byte
  each, as an unsigned e5m3 number that no e4m3 scale overflows or makes subnormal. Planes 0 and 1 lie at bits 4..11 of
  the two halves, so that a mask gives them; planes 2 and 3 come there when the bytes of each half change places.

A scale as bf16 carries 2^119 and as fp16 2^7, the values 2^-126 and 2^-14: either way a product carries 2^-7, is exact,
and the kernel's last factor ``global_scale * 128`` takes it away. Rows and K are padded with zeros.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...contracts.nvfp4 import GROUP
from ...contracts.nvfp4_checks import check_weights
from ...contracts.nvfp4_math import unpack
from .nvfp4_shape import CHUNK, PLANES, WORDS

ROWS = 64  # N is padded to whole groups of so many rows
PRODUCT = 128.0  # what a decoded product lacks

# Places of sign, upper exponent, lower exponent and mantissa of a value in bf16, and by how much a plane's register of
# 32 bits is turned left to bring each there. Found by exhaustive search: nine instructions for eight values.
PLACES = (15, 8, 7, 6)
SHIFTS = ((0, 0, 0, 0), (4, 4, 4, 4), (10, 10, 10, 10), (6, -2, 6, 6))

_NAN_CODE = 0xFF
_EXPONENT = 22  # of the e5m3 code of 1.0; 448 has exponent 8 and code 30


class PlanesWeights(NamedTuple):
    """Prepared weights: 0.5625 bytes a value, which is 0.281 of bf16's."""

    words: Tensor  # int16 [K/256, N up to 64, 64]
    scales: Tensor  # int32 [K/256, N up to 64, 4]
    factor: Tensor  # fp32 [1]: 128 * the weight's global scale
    n: int
    k: int


def prepare(
    device: object = None,
    *,
    w: Tensor,
    w_scale: Tensor,
    w_global_scale: Tensor,
    input_scale: Tensor | None = None,
) -> PlanesWeights:
    """w u8 [N, K/2], w_scale e4m3 [N, K/16]. An input scale is not read: x stays as it is. Raises BadShape."""
    check_weights(w, w_scale, w_global_scale, input_scale)
    n, k = w.shape[0], 2 * w.shape[1]
    chunks, rows = -(-k // CHUNK), -(-n // ROWS) * ROWS
    words = torch.zeros(chunks, rows, WORDS // 2, dtype=torch.int32, device=w.device)
    scales = torch.zeros(chunks, rows, WORDS // GROUP, dtype=torch.int32, device=w.device)
    step = max(ROWS, (1 << 24) // (chunks * CHUNK) // ROWS * ROWS)  # bounds what is held besides the result
    for begin in range(0, n, step):
        end = min(n, begin + step)
        codes, said = _split(w[begin:end], w_scale[begin:end], chunks)
        words[:, begin:end] = pack_words(codes).transpose(0, 1)
        scales[:, begin:end] = pack_scales(said).transpose(0, 1)
    factor = (w_global_scale.float() * PRODUCT).reshape(1)
    return PlanesWeights(words.view(torch.int16), scales, factor, n, k)


def _split(w: Tensor, w_scale: Tensor, chunks: int) -> tuple[Tensor, Tensor]:
    """(codes uint8 [rows, chunks, 4, 64], e4m3 bits [rows, chunks, 4, 4]); a scale's sign goes to its codes."""
    rows, blocks = w_scale.shape
    codes = torch.zeros(rows, chunks * CHUNK, dtype=torch.uint8, device=w.device)
    codes[:, : 2 * w.shape[1]] = unpack(w)
    bits = torch.zeros(rows, chunks * CHUNK // GROUP, dtype=torch.uint8, device=w.device)
    bits[:, :blocks] = w_scale.view(torch.uint8)
    blocked = codes.view(rows, -1, GROUP)
    blocked ^= ((bits >> 7) << 3).unsqueeze(-1)
    bits &= 0x7F
    blocked *= (bits != 0).unsqueeze(-1)  # a scale of 0 has no code of its own, so its values are zeros
    return codes.view(rows, chunks, PLANES, WORDS), bits.view(rows, chunks, PLANES, WORDS // GROUP)


def pack_words(codes: Tensor) -> Tensor:
    """int32 [..., 32] of codes uint8 [..., 4, 64]: the register of words 2i and 2i + 1."""
    wide = codes.int()
    out = torch.zeros(*codes.shape[:-2], WORDS // 2, dtype=torch.int32, device=codes.device)
    for plane, turns in enumerate(SHIFTS):
        for half in (0, 1):
            values = wide[..., plane, half::2]
            for bit, (place, turn) in enumerate(zip(PLACES, turns, strict=True)):
                out |= ((values >> (3 - bit)) & 1) << ((place + 16 * half - turn) % 32)
    return out


def scale_codes(bits: Tensor) -> Tensor:
    """int32 e5m3 codes of positive e4m3 bits (uint8): 8 * (exponent + 22) + mantissa; 0 for 0, 255 for NaN."""
    wide = bits.int()
    exponent, mantissa = wide >> 3, wide & 7
    normal = ((exponent - 7 + _EXPONENT) << 3) | mantissa
    # m * 2^-9 = 1.f * 2^(top - 9), top the place of m's highest bit
    top = (mantissa >= 2).int() + (mantissa >= 4).int()
    small = ((top - 9 + _EXPONENT) << 3) | ((mantissa << (3 - top)) & 7)
    found = torch.where(exponent > 0, normal, torch.where(mantissa > 0, small, 0))
    return torch.where(wide == 0x7F, _NAN_CODE, found)


def pack_scales(bits: Tensor) -> Tensor:
    """int32 [..., 4] of e4m3 bits uint8 [..., 4 planes, 4 blocks]: planes 0, 1 at bits 4..11, 2, 3 around them."""
    first, second, third, fourth = scale_codes(bits).unbind(-2)
    lower = (first << 4) | (third >> 4) | ((third & 15) << 12)
    upper = (second << 4) | (fourth >> 4) | ((fourth & 15) << 12)
    return lower | (upper << 16)
