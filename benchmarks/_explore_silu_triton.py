"""silu_and_mul as Inductor writes it for one shape: flat, no mask, the row by a division by a constant."""

import triton
import triton.language as tl


@triton.jit
def silu_flat(x, out, count, H: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[:]
    row = at // H
    column = at % H
    gate = tl.load(x + (column + 2 * H * row), None).to(tl.float32)
    up = tl.load(x + (H + column + 2 * H * row), None).to(tl.float32)
    tl.store(out + at, (gate / (tl.exp(-gate) + 1.0) * up).to(tl.bfloat16), None)
