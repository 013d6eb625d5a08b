# mypy: disable-error-code="assignment, unreachable"
# Tuples grow in unrolled loops, which mypy takes for ones that never run.
"""Triton kernels of the norms: whole rows in registers, and a loop over the row where it is too long for that.

A tile is ROWS rows by CHUNKS times BLOCK columns. A *row* here is one group: row ``r`` is group ``r % GROUPS`` of token
``r // GROUPS``, H wide. Row strides come in units of UNIT elements, so that the compiler sees how they are aligned
while no variant hangs on their values. Everything between a load and a store is fp32, rounded only where it says
``round_to``; the launches switch floating-point contraction off (``enable_fp_fusion=False``), so that no product is
fused across a rounding.

An output may be its own input: a row is read whole, or chunk by chunk at the same columns, before it is written.
"""

import triton
import triton.language as tl


@triton.jit
def exp(x, EXACT: tl.constexpr):
    """e**x in fp32 within 3 units in the last place, EXACT within 1; 0 below -100.

    ``tl.exp`` rounds x * log2(e) and leaves it there, which costs a unit in the last place for each power of two in x.
    """
    if EXACT:
        return exp_of_sum(x, 0.0)
    x = tl.maximum(x, -100.0)
    power = x * 1.4426950216293335
    # Times -1.0 is a sign that costs nothing; Triton's own minus is a subtraction from 0.
    rest = tl.fma(x, 1.9259629911e-8, tl.fma(x, 1.4426950216293335, power * -1.0))
    return tl.exp2(power) * tl.fma(rest, 0.6931471805599453, 1.0)


@triton.jit
def exp_of_sum(x, more):
    """e**(x + more) in fp32 within 1 unit in the last place; more is what x has no bits for.

    2**n * e**r, n the nearest whole number to (x + more) / ln 2; Taylor's series of e**r is better than the GPU's 2**r.
    """
    n = (x + more) * 1.4426950408889634 + 12582912.0  # 1.5 * 2**23: the sum's last bit counts units
    # Bits of 2**n below need n in [-126, 127]; beyond, r grows instead and e**r overflows or vanishes as e**x does.
    n = tl.minimum(tl.maximum(n, 12582786.0), 12583039.0)
    whole = n - 12582912.0
    rest = tl.fma(whole, -0.693359375, x)  # ln 2 in two parts, the first one exact times any n
    rest = tl.fma(whole, 2.12194440e-4, rest) + more
    power = ((n.to(tl.int32, bitcast=True) - 0x4B400000 + 127) << 23).to(tl.float32, bitcast=True)
    series = tl.fma(rest, 1.9841270e-4, 1.3888889e-3)
    series = tl.fma(rest, series, 8.3333333e-3)
    series = tl.fma(rest, series, 4.1666667e-2)
    series = tl.fma(rest, series, 1.6666667e-1)
    series = tl.fma(rest, series, 0.5)
    series = tl.fma(rest * rest, series, rest) + 1.0
    return tl.where(tl.abs(rest) < 0.36, series, tl.exp2(rest * 1.4426950408889634)) * power


@triton.jit
def divide(a, b, EXACT: tl.constexpr):
    """a / b for b >= 1: EXACT, correctly rounded, as a result that stays fp32 needs; else within 5 units.

    The latter is a third of the instructions of Triton's ``/``, which scales a and b for the sake of any b.
    """
    if EXACT:
        return tl.math.div_rn(a, b)
    root = tl.rsqrt(b)
    return a * root * root


@triton.jit
def silu(x, EXACT: tl.constexpr):
    return divide(x, 1.0 + exp(x * -1.0, EXACT), EXACT)


@triton.jit
def inverse_rms(squares, H: tl.constexpr, eps):
    """[ROWS, 1] of sums of squares [ROWS, BLOCK]: the GPU's approximation, and a Newton step to the nearest value."""
    mean = tl.math.div_rn(tl.sum(squares, axis=1, keep_dims=True), H * 1.0) + eps
    rough = tl.rsqrt(mean)
    product = mean * rough
    short = tl.fma(-product, rough, 1.0) - tl.fma(mean, rough, -product) * rough
    better = tl.fma(0.5 * rough, short, rough)
    return tl.where((rough > 0.0) & (mean < 1e38) & (mean > 1e-30), better, rough)


@triton.jit
def gate_up(x, z, KIND: tl.constexpr, EXACT: tl.constexpr):
    """What is normalised, fp32: x, x + z, or x * silu(z)."""
    if KIND == "add":
        return x.to(tl.float32) + z.to(tl.float32)
    if KIND == "gated":
        return x.to(tl.float32) * silu(z.to(tl.float32), EXACT)
    return x.to(tl.float32)


@triton.jit
def weigh(normalised, weight, dtype: tl.constexpr, CAST: tl.constexpr, BIAS: tl.constexpr):
    """fp32 product with weight + BIAS. CAST: the normalised value is rounded to ``dtype`` first."""
    factor = weight.to(tl.float32)
    if BIAS:
        factor += 1.0
    if CAST:
        normalised = normalised.to(dtype).to(tl.float32)
    return normalised * factor


@triton.jit(do_not_specialize=["rows", "x_units", "z_units", "out_units", "sum_units"])
def norm_rows(
    x,
    z,  # add: the residual; gated: the gate; else any
    weight,  # [GROUPS * H]
    out,
    sum_out,  # add: the new residual; else any
    rows,
    x_units,
    z_units,
    out_units,
    sum_units,
    eps,
    H: tl.constexpr,
    GROUPS: tl.constexpr,
    UNIT: tl.constexpr,
    KIND: tl.constexpr,  # plain, add, gated
    CAST: tl.constexpr,
    ROUND_SUM: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
    STAGES: tl.constexpr,
    PERSISTENT: tl.constexpr,
    PDL: tl.constexpr,
):
    """One tile a program, or with PERSISTENT every num_programs-th tile; the weight is then read once."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    dtype: tl.constexpr = x.dtype.element_ty
    EXACT: tl.constexpr = dtype == tl.float32
    columns = tl.arange(0, BLOCK)[None, :]
    weights = ()
    if GROUPS == 1:
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
        token = (row // GROUPS).to(tl.int64)
        group = row % GROUPS
        inside = row < rows
        x_row = x + token * x_units * UNIT + group * H
        out_row = out + token * out_units * UNIT + group * H
        values = ()
        squares = tl.zeros((ROWS, BLOCK), tl.float32)
        if GROUPS > 1:
            factors = ()
        else:
            factors = weights
        for c in tl.static_range(CHUNKS):
            at = c * BLOCK + columns
            mask = inside & (at < H)
            value = tl.load(x_row + at, mask=mask, other=0.0)
            if GROUPS > 1:
                factors = factors + (tl.load(weight + group * H + at, mask=mask, other=0.0),)
            if KIND != "plain":
                other = tl.load(z + token * z_units * UNIT + group * H + at, mask=mask, other=0.0)
                value = gate_up(value, other, KIND, EXACT)
                if KIND == "add":
                    kept = value.to(dtype)
                    tl.store(sum_out + token * sum_units * UNIT + at, kept, mask=mask)
                    if ROUND_SUM:
                        value = kept
            values = values + (value,)
            wide = value.to(tl.float32)
            squares = tl.fma(wide, wide, squares)
        scale = inverse_rms(squares, H, eps)
        for c in tl.static_range(CHUNKS):
            at = c * BLOCK + columns
            result = weigh(values[c].to(tl.float32) * scale, factors[c], dtype, CAST, BIAS)
            tl.store(out_row + at, result.to(dtype), mask=inside & (at < H))


@triton.jit(do_not_specialize=["rows", "x_units", "z_units", "out_units", "sum_units"])
def norm_long_rows(
    x,
    z,
    weight,
    out,
    sum_out,
    rows,
    x_units,
    z_units,
    out_units,
    sum_units,
    eps,
    H: tl.constexpr,
    GROUPS: tl.constexpr,
    UNIT: tl.constexpr,
    KIND: tl.constexpr,
    CAST: tl.constexpr,
    ROUND_SUM: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One row a program, read twice: for the sum of squares, then for the result. Nothing is written before that."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    dtype: tl.constexpr = x.dtype.element_ty
    EXACT: tl.constexpr = dtype == tl.float32
    row = tl.program_id(0)
    token = (row // GROUPS).to(tl.int64)
    group = row % GROUPS
    x_row = x + token * x_units * UNIT + group * H
    z_row = z + token * z_units * UNIT + group * H
    out_row = out + token * out_units * UNIT + group * H
    columns = tl.arange(0, BLOCK)[None, :]
    squares = tl.zeros((1, BLOCK), tl.float32)
    for begin in range(0, H, BLOCK):
        at = begin + columns
        value = tl.load(x_row + at, mask=at < H, other=0.0)
        if KIND != "plain":
            value = gate_up(value, tl.load(z_row + at, mask=at < H, other=0.0), KIND, EXACT)
            if ROUND_SUM:
                value = value.to(dtype)
        wide = value.to(tl.float32)
        squares = tl.fma(wide, wide, squares)
    scale = inverse_rms(squares, H, eps)
    for begin in range(0, H, BLOCK):
        at = begin + columns
        value = tl.load(x_row + at, mask=at < H, other=0.0)
        if KIND != "plain":
            value = gate_up(value, tl.load(z_row + at, mask=at < H, other=0.0), KIND, EXACT)
            if KIND == "add":
                kept = value.to(dtype)
                tl.store(sum_out + token * sum_units * UNIT + at, kept, mask=at < H)
                if ROUND_SUM:
                    value = kept
        factor = tl.load(weight + group * H + at, mask=at < H, other=0.0)
        result = weigh(value.to(tl.float32) * scale, factor, dtype, CAST, BIAS)
        tl.store(out_row + at, result.to(dtype), mask=at < H)
