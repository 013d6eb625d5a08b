"""Triton kernels for NVFP4 weights and 16-bit activations: the weight is decoded in registers on its way to the MMA.

The weight is the left operand (its rows are the MMA's rows), so few tokens waste little, and on 9.0 it goes into wgmma
from registers. Loads are 16 bytes and coalesced: the layout (nvfp4_planes) keeps a block of rows of a chunk together.
"""

import triton
import triton.language as tl

from .nvfp4_asm import BF16, FP16

B0: tl.constexpr = tl.constexpr(BF16[0])
B1: tl.constexpr = tl.constexpr(BF16[1])
B2: tl.constexpr = tl.constexpr(BF16[2])
B3: tl.constexpr = tl.constexpr(BF16[3])
H0: tl.constexpr = tl.constexpr(FP16[0])
H1: tl.constexpr = tl.constexpr(FP16[1])
H2: tl.constexpr = tl.constexpr(FP16[2])
H3: tl.constexpr = tl.constexpr(FP16[3])


@triton.jit
def decode(words, scales, PLANE: tl.constexpr, DTYPE: tl.constexpr):
    """One plane of ``words`` (int16) under ``scales`` (int32, same shape), in DTYPE; carries 2^-7."""
    if tl.bfloat16 == DTYPE:
        code: tl.constexpr = B0 if PLANE == 0 else (B1 if PLANE == 1 else (B2 if PLANE == 2 else B3))
        return tl.inline_asm_elementwise(code, "=r,r,r,r", [words, scales], dtype=tl.bfloat16, is_pure=True, pack=2)
    else:
        half: tl.constexpr = H0 if PLANE == 0 else (H1 if PLANE == 1 else (H2 if PLANE == 2 else H3))
        return tl.inline_asm_elementwise(half, "=r,r,r,r", [words, scales], dtype=tl.float16, is_pure=True, pack=2)


@triton.jit(do_not_specialize=["M"])
def nvfp4_weight_only_gemm(
    x,
    words,
    scales,
    factor,
    out,
    M,
    N,
    K,
    ROWS,  # of words and scales: N padded
    CHUNKS,
    stride_x,
    stride_out,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_J: tl.constexpr,
    GROUP_M: tl.constexpr,
    PARTS: tl.constexpr,
    EVEN_K: tl.constexpr,
    FEW: tl.constexpr,
    PDL: tl.constexpr,
):
    """out [M, N] = factor * x [M, K] @ decoded [N, K].T; with PARTS unscaled fp32 parts out [parts of K, M, N].

    A step takes BLOCK_J words of each row, which is BLOCK_J values of each of the four planes. FEW: tokens beyond M are
    not read at all, where they may be many of a block; else the last one is read in their place.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    STEPS: tl.constexpr = 64 // BLOCK_J
    BLOCKS: tl.constexpr = BLOCK_J // 16
    pid = tl.program_id(0)
    tiles_n = tl.cdiv(N, BLOCK_N)
    tiles_m = tl.cdiv(M, BLOCK_M)
    if GROUP_M == 0:  # all rows of the weight first: x stays, the weight streams
        pid_n = pid % tiles_n
        pid_m = pid // tiles_n
    else:
        group = pid // (GROUP_M * tiles_n)
        first = group * GROUP_M
        members = min(tiles_m - first, GROUP_M)
        pid_m = first + (pid % (GROUP_M * tiles_n)) % members
        pid_n = (pid % (GROUP_M * tiles_n)) // members
    part = tl.program_id(1)
    parts = tl.num_programs(1)
    begin = CHUNKS * part // parts * STEPS
    end = CHUNKS * (part + 1) // parts * STEPS

    rows = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    tokens = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.arange(0, BLOCK_J)
    safe = tl.minimum(rows, ROWS - 1)
    word_at = words + safe[:, None] * 64 + j[None, :]
    scale_at = scales + safe[:, None] * 4 + tl.arange(0, BLOCKS)[None, :]
    x_at = x + tl.minimum(tokens, M - 1)[None, :].to(tl.int64) * stride_x + j[:, None]
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for step in range(begin, end):
        chunk = step // STEPS
        inner = step % STEPS
        row_block = chunk.to(tl.int64) * ROWS
        packed = tl.load(word_at + (row_block * 64 + inner * BLOCK_J))
        scale = tl.load(scale_at + (row_block * 4 + inner * BLOCKS))
        scale = scale[:, :, None].broadcast_to(BLOCK_N, BLOCKS, 16).reshape(BLOCK_N, BLOCK_J)
        for plane in tl.static_range(4):
            k = chunk * 256 + plane * 64 + inner * BLOCK_J
            if EVEN_K:
                if FEW:
                    values = tl.load(x_at + k, mask=(tokens < M)[None, :], other=0.0)
                else:
                    values = tl.load(x_at + k)
            else:
                values = tl.load(x_at + k, mask=((k + j) < K)[:, None] & (tokens < M)[None, :], other=0.0)
            acc = tl.dot(decode(packed, scale, plane, x.dtype.element_ty), values, acc)

    inside = (tokens[None, :] < M) & (rows[:, None] < N)
    at = tokens[None, :].to(tl.int64) * stride_out + rows[:, None]
    if PARTS:
        tl.store(out + part.to(tl.int64) * M * stride_out + at, acc, mask=inside)
    else:
        tl.store(out + at, (acc * tl.load(factor)).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["count"])
def nvfp4_sum_parts(
    parts, factor, out, count, N, stride_out, SPLIT: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """out [M, N] = factor * the sum of parts [SPLIT, M * N], in their order; ``count`` = M * N."""
    if PDL:
        tl.extra.cuda.gdc_wait()
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    total = tl.zeros((BLOCK,), tl.float32)
    for part in tl.static_range(SPLIT):
        total += tl.load(parts + tl.cast(count, tl.int64) * part + at, mask=inside, other=0.0)
    row = at // N
    tl.store(
        out + row.to(tl.int64) * stride_out + (at - row * N),
        (total * tl.load(factor)).to(out.dtype.element_ty),
        mask=inside,
    )


@triton.jit(do_not_specialize=["first"])
def nvfp4_decode(words, scales, factor, out, N, K, ROWS, first, stride_out, BLOCK_N: tl.constexpr):
    """out [rows, K] = the weight's rows from ``first`` on, rounded once to out's dtype."""
    chunk = tl.program_id(1)
    local = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = first + local
    j = tl.arange(0, 64)
    safe = chunk.to(tl.int64) * ROWS + tl.minimum(rows, ROWS - 1)
    packed = tl.load(words + safe[:, None] * 64 + j[None, :])
    scale = tl.load(scales + safe[:, None] * 4 + tl.arange(0, 4)[None, :])
    scale = scale[:, :, None].broadcast_to(BLOCK_N, 4, 16).reshape(BLOCK_N, 64)
    by = tl.load(factor)
    for plane in tl.static_range(4):
        k = chunk * 256 + plane * 64 + j
        values = decode(packed, scale, plane, out.dtype.element_ty).to(tl.float32) * by
        tl.store(
            out + local[:, None].to(tl.int64) * stride_out + k[None, :],
            values.to(out.dtype.element_ty),
            mask=(rows[:, None] < N) & (k[None, :] < K),
        )
