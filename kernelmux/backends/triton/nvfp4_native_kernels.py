"""Triton kernel of the W4A4 NVFP4 GEMM for GPUs whose tensor cores multiply e2m1 with block scales (10.x, 12.x)."""

import triton
import triton.language as tl


@triton.jit
def scale_tile(scales, ROWS: tl.constexpr, BLOCK_K: tl.constexpr):
    """Swizzled scales [ROWS / 128, BLOCK_K / 64, 512] as [ROWS, BLOCK_K / 16]: a change of view, no data moves."""
    blocks = scales.reshape(ROWS // 128, BLOCK_K // 64, 32, 4, 4)
    return blocks.trans(0, 3, 2, 1, 4).reshape(ROWS, BLOCK_K // 16)


@triton.jit(do_not_specialize=["M"])
def nvfp4_native_gemm(
    a,  # u8 [M, K/2], or its descriptor
    a_scales,  # e4m3 [M up to 128, K/16 up to 4], swizzled, or its descriptor [1, rows/128, K/64, 2, 256]
    b,  # u8 [N, K/2], or its descriptor
    b_scales,
    alpha,  # fp32 [1]
    out,
    M,
    N,
    K,
    stride_out,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    PARTS: tl.constexpr,
    EVEN_K: tl.constexpr,
    USE_TMA: tl.constexpr,
    STAGES: tl.constexpr,
):
    """out [M, N] = alpha * a @ b.T of the dequantized blocks; with PARTS unscaled fp32 parts out [parts of K, M, N]."""
    A_BLOCKS: tl.constexpr = BLOCK_M // 128
    B_BLOCKS: tl.constexpr = BLOCK_N // 128
    K_BLOCKS: tl.constexpr = BLOCK_K // 64
    pid = tl.program_id(0)
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    group = pid // (GROUP_M * tiles_n)
    first = group * GROUP_M
    members = min(tiles_m - first, GROUP_M)
    pid_m = first + (pid % (GROUP_M * tiles_n)) % members
    pid_n = (pid % (GROUP_M * tiles_n)) // members
    part = tl.program_id(1)
    steps = tl.cdiv(K, BLOCK_K)
    begin = steps * part // tl.num_programs(1)
    end = steps * (part + 1) // tl.num_programs(1)

    rows = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    byte = tl.arange(0, BLOCK_K // 2)
    place = tl.arange(0, 512)[None, None, :]
    k_block = tl.arange(0, K_BLOCKS)[None, :, None]
    k_blocks = (K + 63) // 64
    a_block = tl.minimum(pid_m * A_BLOCKS + tl.arange(0, A_BLOCKS), (M + 127) // 128 - 1).to(tl.int64)[:, None, None]
    b_block = tl.minimum(pid_n * B_BLOCKS + tl.arange(0, B_BLOCKS), (N + 127) // 128 - 1).to(tl.int64)[:, None, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in tl.range(begin, end, num_stages=STAGES):
        if USE_TMA:
            left = a.load([pid_m * BLOCK_M, step * (BLOCK_K // 2)])
            right = b.load([pid_n * BLOCK_N, step * (BLOCK_K // 2)])
            left_scales = a_scales.load([0, pid_m * A_BLOCKS, step * K_BLOCKS, 0, 0])
            right_scales = b_scales.load([0, pid_n * B_BLOCKS, step * K_BLOCKS, 0, 0])
        else:
            k_byte = (step * (BLOCK_K // 2) + byte)[None, :]
            left_at = a + tl.minimum(rows, M - 1)[:, None].to(tl.int64) * (K // 2) + k_byte
            right_at = b + tl.minimum(columns, N - 1)[:, None].to(tl.int64) * (K // 2) + k_byte
            left_scales_at = a_scales + (a_block * k_blocks + step * K_BLOCKS + k_block) * 512 + place
            right_scales_at = b_scales + (b_block * k_blocks + step * K_BLOCKS + k_block) * 512 + place
            if EVEN_K:
                left = tl.load(left_at)
                right = tl.load(right_at)
                left_scales = tl.load(left_scales_at)
                right_scales = tl.load(right_scales_at)
            else:
                here = k_byte < K // 2
                blocks_here = step * K_BLOCKS + k_block < k_blocks
                left = tl.load(left_at, mask=here, other=0)
                right = tl.load(right_at, mask=here, other=0)
                left_scales = tl.load(left_scales_at, mask=blocks_here, other=0.0)
                right_scales = tl.load(right_scales_at, mask=blocks_here, other=0.0)
        acc = tl.dot_scaled(
            left, scale_tile(left_scales, BLOCK_M, BLOCK_K), "e2m1",
            right.T, scale_tile(right_scales, BLOCK_N, BLOCK_K), "e2m1", acc,
        )  # fmt: skip

    inside = (rows < M)[:, None] & (columns < N)[None, :]
    at = rows[:, None].to(tl.int64) * stride_out + columns[None, :]
    if PARTS:
        tl.store(out + part.to(tl.int64) * M * stride_out + at, acc, mask=inside)
    else:
        tl.store(out + at, (acc * tl.load(alpha)).to(out.dtype.element_ty), mask=inside)
