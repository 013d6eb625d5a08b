"""How a register of packed words becomes pairs of bf16 or fp16: PTX that the Triton kernels hold inline.

``$1`` is the register (words of int16 in the layout of nvfp4_planes), ``$2`` the scale word (int32, the same for every
value of the register). The text is also what the tests run on the CPU, instruction by instruction.
"""

from __future__ import annotations

_MASK = "0x81C081C0"

# r = the pair's bits at their places in bf16
_PLACE = (
    f"and.b32 r, $1, {_MASK};",
    f"shl.b32 r, $1, 4; and.b32 r, r, {_MASK};",
    f"shf.l.wrap.b32 r, $1, $1, 10; and.b32 r, r, {_MASK};",
    "shl.b32 r, $1, 6; and.b32 r, r, 0x80C080C0; shr.b32 q, $1, 2; lop3.b32 r, q, 0x01000100, r, 0xEA;",
)
# fp16 has its exponent three places further up: three more instructions
_TO_HALF = "shl.b32 q, r, 3; and.b32 q, q, 0x0E000E00; lop3.b32 r, r, 0x80008000, q, 0xEA;"
_TURN = "prmt.b32 q, $2, $2, 0x2301;"
_SCALE = {
    "bf16": ("lop3.b32 q, {0}, 0x0FF00FF0, 0x70007000, 0xEA;",),
    "fp16": ("and.b32 q, {0}, 0x0FF00FF0;", "shl.b32 q, q, 3;"),
}
_BOTH = ("mov.b32 {lo, hi}, q; mov.b32 q, {lo, lo};", "mov.b32 {lo, hi}, q; mov.b32 q, {hi, hi};")
# 8.0 multiplies no pair of bf16 without adding; -0.0 changes no sum
_MULTIPLY = {"bf16": "mov.b32 z, 0x80008000; fma.rn.bf16x2 $0, r, q, z;", "fp16": "mul.rn.f16x2 $0, r, q;"}


def decode(plane: int, dtype: str) -> str:
    """PTX for one plane in ``bf16`` or ``fp16``: values times scale times 2^-7, exact."""
    half = _TO_HALF if dtype == "fp16" else ""
    turn = _TURN if plane >= 2 else ""
    scale = "".join(_SCALE[dtype]).format("q" if plane >= 2 else "$2")
    body = "".join((_PLACE[plane], half, turn, scale, _BOTH[plane % 2], _MULTIPLY[dtype]))
    return f"{{ .reg .b32 r, q, z; .reg .b16 lo, hi; {body} }}"


BF16 = tuple(decode(plane, "bf16") for plane in range(4))
FP16 = tuple(decode(plane, "fp16") for plane in range(4))
