"""Triton kernels of the activations: one formula a line in ``activated``, one kernel for all of them.

A tile is ROWS rows by BLOCK columns; the columns of a row are dealt to COLUMN_TILES tiles. Strides, contraction and
``out`` as in norm_kernels; every tile is read before it is written, so ``out`` may be x where it has x's columns.
"""

import triton
import triton.language as tl

from .norm_kernels import divide, exp, exp_of_sum, silu


@triton.jit
def gelu(x, EXACT: tl.constexpr):
    """x times the share of a normal distribution below x. 1 + erf(x / sqrt 2) would lose it where x is negative."""
    size = tl.minimum(tl.abs(x), 20.0)  # beyond, the share below -size is 0 in fp32
    # erfc(z) = t * exp(-z^2 + polynomial of t), t = 2 / (2 + z), to 1.2e-7; -z^2 = -x^2 / 2.
    t = divide(1.0, tl.fma(size, 0.3535533906, 1.0), EXACT)
    series = tl.fma(t, 0.17087277, -0.82215223)
    series = tl.fma(t, series, 1.48851587)
    series = tl.fma(t, series, -1.13520398)
    series = tl.fma(t, series, 0.27886807)
    series = tl.fma(t, series, -0.18628806)
    series = tl.fma(t, series, 0.09678418)
    series = tl.fma(t, series, 0.37409196)
    series = tl.fma(t, series, 1.00002368)
    series = tl.fma(t, series, -1.26551223)
    if EXACT:
        square = size * size
        power = exp_of_sum(-0.5 * square, tl.fma(-0.5, tl.fma(size, size, -square), series))
    else:
        power = exp(tl.fma(-0.5 * size, size, series), False)
    below = 0.5 * t * power
    share = tl.where(x < 0.0, below, 1.0 - below)
    if EXACT:
        share = tl.where(x > -1.0, 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)), share)
    return x * share


@triton.jit
def gelu_tanh(x, EXACT: tl.constexpr):
    """(1 + tanh(u)) / 2 = 1 / (1 + exp(-2u)), which loses nothing where tanh is near -1."""
    return divide(x, 1.0 + exp(-1.5957691216057308 * (x + 0.044715 * (x * x * x)), EXACT), EXACT)


@triton.jit
def relu2(x, EXACT: tl.constexpr):
    positive = tl.where(x <= 0.0, 0.0, x)  # a NaN stays one
    return positive * positive


@triton.jit
def activated(x, OP: tl.constexpr, EXACT: tl.constexpr):
    """The formula of an op on fp32, of a gated one that of the gate: a line each. Only the op's own is compiled."""
    return (
        silu(x, EXACT) if OP == "silu_and_mul"
        else gelu(x, EXACT) if OP == "gelu_and_mul"
        else gelu_tanh(x, EXACT) if OP == "gelu_tanh_and_mul"
        else relu2(x, EXACT) if OP == "relu2"
        else tl.static_assert(False, "no formula of this op")
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows", "x_units", "out_units"])
def activate_tiles(
    x,
    out,
    rows,
    x_units,
    out_units,
    H: tl.constexpr,  # of out
    UNIT: tl.constexpr,
    OP: tl.constexpr,  # its name: Triton writes the arguments of a launch as JSON, functions are none
    GATED: tl.constexpr,
    CAST: tl.constexpr,  # the activated gate is rounded before the product
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMN_TILES: tl.constexpr,
    STAGES: tl.constexpr,
    PERSISTENT: tl.constexpr,
    PDL: tl.constexpr,
):
    """out [rows, H] from x [rows, 2H] = [gate, up], or from x [rows, H]."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    dtype: tl.constexpr = x.dtype.element_ty
    EXACT: tl.constexpr = dtype == tl.float32
    first = tl.program_id(0)
    if PERSISTENT:
        last = (rows + ROWS - 1) // ROWS * COLUMN_TILES
        step = tl.num_programs(0)
    else:
        last = first + 1
        step = 1
    for tile in tl.range(first, last, step, num_stages=STAGES):
        row = tile // COLUMN_TILES * ROWS + tl.arange(0, ROWS)[:, None]
        at = tile % COLUMN_TILES * BLOCK + tl.arange(0, BLOCK)[None, :]
        mask = (row < rows) & (at < H)
        token = row.to(tl.int64)
        source = x + token * x_units * UNIT + at
        value = tl.load(source, mask=mask, other=0.0)
        if GATED:
            up = tl.load(source + H, mask=mask, other=0.0)
            gate = activated(value.to(tl.float32), OP, EXACT)
            if CAST:
                gate = gate.to(dtype).to(tl.float32)
            result = gate * up.to(tl.float32)
        else:
            result = activated(value.to(tl.float32), OP, EXACT)
        tl.store(out + token * out_units * UNIT + at, result.to(dtype), mask=mask)
