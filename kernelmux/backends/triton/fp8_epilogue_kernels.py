# mypy: disable-error-code="assignment, unreachable"
# Tuples grow in unrolled loops, which mypy takes for ones that never run.
"""Triton kernels that end in e4m3: rms_norm with one scale or one a row, silu_and_mul with one a block of 128.

What is quantized is the fp32 result, rounded once, to nearest even and saturating. Values are stored as bytes, so that
GPUs without e4m3 conversion (before 8.9) run the same launch. Tiles, strides and contraction as in norm_kernels.
"""

import triton
import triton.language as tl

from .norm_kernels import inverse_rms, silu, weigh

MOST: tl.constexpr = tl.constexpr(448.0)
LEAST: tl.constexpr = tl.constexpr(1e-10)
GROUP: tl.constexpr = tl.constexpr(128)


@triton.jit
def to_e4m3(x, HARDWARE: tl.constexpr):
    """The e4m3fn byte of each fp32 value: nearest even, saturating at 448; NaN is 0x7f."""
    if HARDWARE:
        return x.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    bits = x.to(tl.uint32, bitcast=True)
    size = bits & 0x7FFFFFFF
    # Half a unit of the third mantissa bit, less one where that bit is even; then the exponent's bias from 127 to 7.
    normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2**-6 a unit is 2**-9, which is the last bit of a sum with 2**14.
    small = (tl.abs(x) + 16384.0).to(tl.uint32, bitcast=True) - 0x46800000
    code = tl.where(size < 0x3C800000, small, tl.minimum(normal, 0x7E))
    code = tl.where(size >= 0x43F00000, 0x7E, code)  # 480 and more, whose sum above may pass 32 bits
    return tl.where(size > 0x7F800000, 0x7F, code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def divide_by(x, scale, inverse):
    """x / scale, correctly rounded, for inverse = 1 / scale correctly rounded: one step of refinement."""
    quotient = x * inverse
    refined = tl.fma(tl.fma(-quotient, scale, x), inverse, quotient)
    return tl.where(tl.abs(quotient) <= 1e30, refined, quotient)


@triton.jit(do_not_specialize=["rows", "x_units", "out_units", "scale_stride"])
def norm_rows_fp8(
    x,
    weight,
    scale,  # given: [1]; else any
    out,  # bytes
    scale_out,  # one a row; given: [1], takes a copy
    rows,
    x_units,
    out_units,
    scale_stride,
    eps,
    H: tl.constexpr,
    UNIT: tl.constexpr,
    GIVEN: tl.constexpr,
    BIAS: tl.constexpr,
    HARDWARE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
    STAGES: tl.constexpr,
    PERSISTENT: tl.constexpr,
    PDL: tl.constexpr,
):
    """rms_norm multiplied in fp32, quantized by a scale that is given or by max(amax, LEAST) / 448 of the row."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    columns = tl.arange(0, BLOCK)[None, :]
    weights = ()
    for c in tl.static_range(CHUNKS):
        at = c * BLOCK + columns
        weights = weights + (tl.load(weight + at, mask=at < H, other=0.0),)
    first = tl.program_id(0)
    if PERSISTENT:
        last = (rows + ROWS - 1) // ROWS
        step = tl.num_programs(0)
    else:
        last = first + 1
        step = 1
    for tile in tl.range(first, last, step, num_stages=STAGES):
        row = tile * ROWS + tl.arange(0, ROWS)[:, None]
        token = row.to(tl.int64)
        inside = row < rows
        values = ()
        squares = tl.zeros((ROWS, BLOCK), tl.float32)
        for c in tl.static_range(CHUNKS):
            at = c * BLOCK + columns
            value = tl.load(x + token * x_units * UNIT + at, mask=inside & (at < H), other=0.0)
            values = values + (value,)
            wide = value.to(tl.float32)
            squares = tl.fma(wide, wide, squares)
        rms = inverse_rms(squares, H, eps)
        if GIVEN:
            unit = tl.load(scale) + tl.zeros((ROWS, 1), tl.float32)
            if tile == 0:
                tl.store(scale_out, tl.load(scale))
        else:
            most = tl.zeros((ROWS, BLOCK), tl.float32)
            for c in tl.static_range(CHUNKS):
                result = weigh(values[c].to(tl.float32) * rms, weights[c], tl.float32, False, BIAS)
                most = tl.maximum(most, tl.abs(result))
            unit = tl.math.div_rn(tl.maximum(tl.max(most, axis=1, keep_dims=True), LEAST), MOST)
            tl.store(scale_out + token * scale_stride, unit, mask=inside)
        inverse = tl.math.div_rn(1.0, unit)
        for c in tl.static_range(CHUNKS):
            at = c * BLOCK + columns
            result = weigh(values[c].to(tl.float32) * rms, weights[c], tl.float32, False, BIAS)
            code = to_e4m3(divide_by(result, unit, inverse), HARDWARE)
            tl.store(out + token * out_units * UNIT + at, code, mask=inside & (at < H))


@triton.jit(do_not_specialize=["rows", "x_units", "out_units", "scale_stride"])
def norm_long_rows_fp8(
    x,
    weight,
    scale,
    out,
    scale_out,
    rows,
    x_units,
    out_units,
    scale_stride,
    eps,
    H: tl.constexpr,
    UNIT: tl.constexpr,
    GIVEN: tl.constexpr,
    BIAS: tl.constexpr,
    HARDWARE: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One row a program, read once for each of: the sum of squares, the largest value, the result."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    token = tl.program_id(0).to(tl.int64)
    x_row = x + token * x_units * UNIT
    out_row = out + token * out_units * UNIT
    columns = tl.arange(0, BLOCK)[None, :]
    squares = tl.zeros((1, BLOCK), tl.float32)
    for begin in range(0, H, BLOCK):
        wide = tl.load(x_row + begin + columns, mask=begin + columns < H, other=0.0).to(tl.float32)
        squares = tl.fma(wide, wide, squares)
    rms = inverse_rms(squares, H, eps)
    if GIVEN:
        unit = tl.load(scale) + tl.zeros((1, 1), tl.float32)
        if tl.program_id(0) == 0:
            tl.store(scale_out, tl.load(scale))
    else:
        most = tl.zeros((1, BLOCK), tl.float32)
        for begin in range(0, H, BLOCK):
            at = begin + columns
            wide = tl.load(x_row + at, mask=at < H, other=0.0).to(tl.float32)
            factor = tl.load(weight + at, mask=at < H, other=0.0)
            most = tl.maximum(most, tl.abs(weigh(wide * rms, factor, tl.float32, False, BIAS)))
        unit = tl.math.div_rn(tl.maximum(tl.max(most, axis=1, keep_dims=True), LEAST), MOST)
        tl.store(scale_out + token * scale_stride + tl.zeros((1, 1), tl.int32), unit)
    inverse = tl.math.div_rn(1.0, unit)
    for begin in range(0, H, BLOCK):
        at = begin + columns
        wide = tl.load(x_row + at, mask=at < H, other=0.0).to(tl.float32)
        factor = tl.load(weight + at, mask=at < H, other=0.0)
        result = weigh(wide * rms, factor, tl.float32, False, BIAS)
        tl.store(out_row + at, to_e4m3(divide_by(result, unit, inverse), HARDWARE), mask=at < H)


@triton.jit(do_not_specialize=["blocks", "x_units", "out_units", "scale_stride"])
def silu_and_mul_blocks_fp8(
    x,
    out,  # bytes
    scale_out,
    blocks,  # of 128 columns, over all rows
    x_units,
    out_units,
    scale_stride,
    H: tl.constexpr,
    UNIT: tl.constexpr,
    HARDWARE: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    PERSISTENT: tl.constexpr,
    PDL: tl.constexpr,
):
    """ROWS blocks a tile: silu(gate) * up in fp32, each block by its own scale max(amax, LEAST) / 448."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    EXACT: tl.constexpr = x.dtype.element_ty == tl.float32
    BLOCKS: tl.constexpr = H // GROUP
    first = tl.program_id(0)
    if PERSISTENT:
        last = (blocks + ROWS - 1) // ROWS
        step = tl.num_programs(0)
    else:
        last = first + 1
        step = 1
    for tile in tl.range(first, last, step, num_stages=STAGES):
        block = tile * ROWS + tl.arange(0, ROWS)[:, None]
        token = (block // BLOCKS).to(tl.int64)
        nth = block % BLOCKS
        at = nth * GROUP + tl.arange(0, GROUP)[None, :]
        inside = block < blocks
        mask = inside & (at < H)
        source = x + token * x_units * UNIT + at
        gate = tl.load(source, mask=mask, other=0.0).to(tl.float32)
        up = tl.load(source + H, mask=mask, other=0.0).to(tl.float32)
        result = silu(gate, EXACT) * up
        unit = tl.math.div_rn(tl.maximum(tl.max(tl.abs(result), axis=1, keep_dims=True), LEAST), MOST)
        code = to_e4m3(divide_by(result, unit, tl.math.div_rn(1.0, unit)), HARDWARE)
        tl.store(scale_out + token * scale_stride + nth, unit, mask=inside)
        tl.store(out + token * out_units * UNIT + at, code, mask=mask)
