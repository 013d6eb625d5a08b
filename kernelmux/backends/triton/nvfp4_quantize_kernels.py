"""Triton kernels that write NVFP4: bit for bit what contracts/nvfp4_math specifies, on every GPU.

Nothing here leans on a conversion to e4m3 or e2m1, which not every GPU has, or on a division that is not rounded to
nearest: amax is an integer maximum (so that a NaN wins), both roundings are integer additions, and a quotient is either
``div.rn`` or a product with a rounded reciprocal that two fused multiply-adds correct (Markstein: then it is the
rounded quotient, as long as nothing underflows or overflows on the way, which the global scale decides).
"""

import triton
import triton.language as tl


@triton.jit
def e4m3_bits(x):
    """int32 bits of fp32 x >= 0, at most 448 or NaN, rounded to e4m3, ties to even."""
    bits = x.to(tl.int32, bitcast=True)
    small = (x + 16384.0).to(tl.int32, bitcast=True) - 0x46800000  # below 2^-6 the step is that of floats at 2^14
    normal = (bits + 0x7FFFF + ((bits >> 20) & 1) - 0x3C000000) >> 20
    rounded = tl.where(bits < 0x3C800000, small, normal)
    return tl.where(bits > 0x7F800000, 0x7F, rounded)


@triton.jit
def e4m3_value(bits):
    """fp32 of positive e4m3 bits (int32)."""
    normal = ((bits << 20) + 0x3C000000).to(tl.float32, bitcast=True)
    small = bits.to(tl.float32) * 0.001953125
    value = tl.where(bits < 8, small, normal)
    return tl.where(bits == 0x7F, float("nan"), value)


@triton.jit
def e2m1_bits(x, signed):
    """int32 codes 0..15 of fp32 x: to nearest, ties to the even code, saturating; 7 for NaN.

    The sign is that of ``signed``: of two sums that are zero, one has lost it.
    """
    size = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    small = (size.to(tl.float32, bitcast=True) + 4194304.0).to(tl.int32, bitcast=True) - 0x4A800000  # steps of a half
    normal = ((size + 0x1FFFFF + ((size >> 22) & 1)) >> 22) - 252
    code = tl.minimum(tl.where(size < 0x3F800000, small, normal), 7)
    code = code | ((signed.to(tl.int32, bitcast=True) >> 28) & 8)
    return tl.where(size > 0x7F800000, 7, code)


@triton.jit
def bounded_e2m1_bits(x, signed):
    """The same of 0 <= x <= 6 in fewer steps: x plus 2^22, 2^23 or 2^24, by its exponent, ends in the code."""
    exponent = (tl.maximum(x, 1.0).to(tl.int32, bitcast=True) >> 23) - 127
    step = (0x4A800000 + exponent * 0x00800002).to(tl.float32, bitcast=True)
    code = (x + step).to(tl.int32, bitcast=True) & 7
    return code | ((signed.to(tl.int32, bitcast=True) >> 28) & 8)


@triton.jit
def blocks_of(x, factor, ROWS: tl.constexpr, WIDTH: tl.constexpr, FAST: tl.constexpr):
    """(packed bytes [ROWS, WIDTH / 2], scale bits [ROWS, WIDTH / 16]; int32) of fp32 x [ROWS, WIDTH]."""
    values = x.reshape(ROWS, WIDTH // 16, 16)
    amax = tl.max(values.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=2).to(tl.float32, bitcast=True)
    ideal = tl.div_rn(amax, tl.zeros_like(amax) + factor * 6.0)
    scale = e4m3_bits(tl.where(ideal > 448.0, 448.0, ideal))
    unit = e4m3_value(scale) * factor
    zero = unit == 0.0
    if FAST:
        inverse = tl.where(zero, 0.0, tl.div_rn(tl.zeros_like(unit) + 1.0, unit))[:, :, None]
        size = tl.minimum(tl.abs(values), (unit * 6.0)[:, :, None])
        first = size * inverse
        # The block's unit is negated, not every quotient, which would be computed twice.
        rest = tl.fma(first, tl.broadcast_to(-unit[:, :, None], first.shape), size)
        codes = bounded_e2m1_bits(tl.fma(rest, tl.broadcast_to(inverse, first.shape), first), values)
        codes = tl.where((scale == 0x7F)[:, :, None], 7, codes)
    else:
        divisor = tl.broadcast_to(tl.where(zero, 1.0, unit)[:, :, None], values.shape)
        codes = e2m1_bits(tl.where(zero[:, :, None], values * 0.0, tl.div_rn(values, divisor)), values)
    low, high = tl.split(codes.reshape(ROWS, WIDTH // 2, 2))
    return low | (high << 4), scale


@triton.jit
def scale_place(rows, columns, COLUMNS_4, SWIZZLED: tl.constexpr, stride):
    """Where the scales of these rows [R, 1] and columns [1, C] lie: linear, or blocks of 128 rows and 4 columns."""
    if SWIZZLED:
        block = (rows // 128).to(tl.int64) * COLUMNS_4 + columns // 4
        return block * 512 + rows % 32 * 16 + rows % 128 // 32 * 4 + columns % 4
    return rows.to(tl.int64) * stride + columns


@triton.jit
def store_blocks(
    x,
    factor,
    values,
    scales,
    rows,
    first,
    M,
    K,
    stride_values,
    stride_scales,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    SWIZZLED: tl.constexpr,
):
    """Quantize fp32 x [ROWS, WIDTH], columns from ``first`` on, and write it; swizzled, with zeros as padding."""
    # 2^-80 < factor < 2^80 keeps every step of the fast quotient normal.
    if (factor > 8.3e-25) & (factor < 1.2e24):
        packed, scale = blocks_of(x, factor, ROWS, WIDTH, True)
    else:
        packed, scale = blocks_of(x, factor, ROWS, WIDTH, False)
    byte = first // 2 + tl.arange(0, WIDTH // 2)[None, :]
    tl.store(
        values + rows[:, None].to(tl.int64) * stride_values + byte,
        packed.to(tl.uint8),
        mask=(rows[:, None] < M) & (byte < K // 2),
    )
    column = first // 16 + tl.arange(0, WIDTH // 16)[None, :]
    columns_4 = (K // 16 + 3) // 4
    at = scale_place(rows[:, None], column, columns_4, SWIZZLED, stride_scales)
    if SWIZZLED:
        inside = (rows[:, None] < (M + 127) // 128 * 128) & (column < columns_4 * 4)
    else:
        inside = (rows[:, None] < M) & (column < K // 16)
    tl.store(scales + at, scale.to(tl.uint8), mask=inside)


@triton.jit(do_not_specialize=["M"])
def nvfp4_quantize_rows(
    x,
    global_scale,
    values,
    scales,
    M,
    K,
    stride_x,
    stride_values,
    stride_scales,  # of linear scales
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    SWIZZLED: tl.constexpr,
):
    """values u8 [M, K/2] and e4m3 bits of x [M, K] under the global scale."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * WIDTH
    k = first + tl.arange(0, WIDTH)
    inside = (rows < M)[:, None] & (k < K)[None, :]
    held = tl.load(x + rows[:, None].to(tl.int64) * stride_x + k[None, :], mask=inside, other=0.0).to(tl.float32)
    store_blocks(
        held,
        tl.load(global_scale),
        values,
        scales,
        rows,
        first,
        M,
        K,
        stride_values,
        stride_scales,
        ROWS,
        WIDTH,
        SWIZZLED,
    )


@triton.jit(do_not_specialize=["M"])
def silu_and_mul_nvfp4_rows(
    x,
    global_scale,
    values,
    scales,
    M,
    K,
    stride_x,
    stride_values,
    stride_scales,  # of linear scales
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    SWIZZLED: tl.constexpr,
):
    """The same of silu(x[:, :K]) * x[:, K:], which is not rounded before it is quantized."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * WIDTH
    k = first + tl.arange(0, WIDTH)
    inside = (rows < M)[:, None] & (k < K)[None, :]
    at = x + rows[:, None].to(tl.int64) * stride_x + k[None, :]
    gate = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(at + K, mask=inside, other=0.0).to(tl.float32)
    held = tl.div_rn(gate, 1.0 + tl.exp(-gate)) * up
    store_blocks(
        held,
        tl.load(global_scale),
        values,
        scales,
        rows,
        first,
        M,
        K,
        stride_values,
        stride_scales,
        ROWS,
        WIDTH,
        SWIZZLED,
    )


@triton.jit(do_not_specialize=["M", "eps"])
def rms_norm_nvfp4_rows(
    x,
    weight,
    global_scale,
    values,
    scales,
    M,
    K,
    stride_x,
    stride_values,
    stride_scales,  # of linear scales
    eps,
    weight_bias,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,  # K up to a power of two: a program holds whole rows
    SWIZZLED: tl.constexpr,
):
    """The same of x / rms(x) * (weight + weight_bias), all in fp32, which is not rounded before it is quantized."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, WIDTH)
    inside = (rows < M)[:, None] & (k < K)[None, :]
    held = tl.load(x + rows[:, None].to(tl.int64) * stride_x + k[None, :], mask=inside, other=0.0).to(tl.float32)
    mean = tl.div_rn(tl.sum(held * held, axis=1), tl.zeros((ROWS,), tl.float32) + K)
    by = tl.div_rn(tl.zeros((ROWS,), tl.float32) + 1.0, tl.sqrt_rn(mean + eps))
    weights = tl.load(weight + k, mask=k < K, other=0.0).to(tl.float32) + weight_bias
    held = held * by[:, None] * weights[None, :]
    store_blocks(
        held, tl.load(global_scale), values, scales, rows, 0, M, K, stride_values, stride_scales, ROWS, WIDTH, SWIZZLED
    )
