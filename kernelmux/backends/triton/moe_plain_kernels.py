"""Triton kernels of the plain MoE: one GEMM for both sides, the activation, quantization of rows.

The structure is the one of vLLM's and SGLang's Triton path, so that a tile means here what it means there: the first
GEMM writes all 2N columns, the activation is a kernel of its own, scales are fp32 and the router weight multiplies in
fp32 before the one rounding. Pairs, blocks and the sort are those of `moe_kernels`.
"""

import triton
import triton.language as tl

from .moe_kernels import MOST_ROWS, _activate, _local_expert


@triton.jit(do_not_specialize=["num_pairs"])
def plain_pad(sorted_pairs, block_info, num_blocks, num_pairs, BLOCK_M: tl.constexpr):
    """Mark the rows of a sorted block that hold no pair by ``num_pairs``: what `plain_gemm` tells them by.

    The engines' own sort does so. A row count beside each block would do as well, but a mask made of it costs registers
    that a mask made of the loaded pairs does not (Triton 3.6, 12.0: 255 a thread in place of 180).
    """
    block = tl.program_id(0)
    if block < tl.load(num_blocks):
        row = tl.arange(0, BLOCK_M)
        rows = tl.load(block_info + block) % MOST_ROWS
        tl.store(sorted_pairs + block * BLOCK_M + row, tl.zeros((BLOCK_M,), tl.int32) + num_pairs, mask=row >= rows)


@triton.jit(do_not_specialize=["m_blocks", "num_pairs"])
def plain_gemm(
    a,
    a_desc,
    b,
    b_desc,
    c,
    a_scale,
    b_scale,
    pair_weights,
    topk_ids,
    sorted_pairs,
    block_info,
    num_blocks,
    m_blocks,
    num_pairs,
    E,
    COLUMNS,
    DEPTH,
    stride_a,
    stride_be,
    stride_bn,
    stride_c,
    stride_as,
    stride_bse,
    stride_bsn,
    TOPK: tl.constexpr,
    A_ROWS: tl.constexpr,
    C_SORTED: tl.constexpr,
    SCALES: tl.constexpr,
    GROUP_N: tl.constexpr,
    GROUP_K: tl.constexpr,
    ONE_B_SCALE: tl.constexpr,
    WEIGHTED: tl.constexpr,
    DIRECT: tl.constexpr,
    SWAP: tl.constexpr,
    EVEN_DEPTH: tl.constexpr,
    BLOCK_SIZE_M: tl.constexpr,
    BLOCK_SIZE_N: tl.constexpr,
    BLOCK_SIZE_K: tl.constexpr,
    GROUP_SIZE_M: tl.constexpr,
):
    """One block of one expert's GEMM: c = (a x b^T) * scales [* router weight], rounded once.

    a [M, DEPTH] by "token", [pairs, DEPTH] by "pair" or [rows, DEPTH] in "sorted" order (A_ROWS);
    b [E, COLUMNS, DEPTH]; c [pairs, COLUMNS] by pair, or in sorted order (C_SORTED). ``a_desc`` [rows, DEPTH] and
    ``b_desc`` [E, COLUMNS, DEPTH] are tensor descriptors, or None: by pointer.

    SCALES: "none"; "weight": b_scale [E, COLUMNS], a is not quantized; "tensor": a_scale [1], b_scale [E]; "channel":
    a_scale [rows of a], b_scale [E, COLUMNS]; "block": a_scale [rows of a, DEPTH / GROUP_K],
    b_scale [E, COLUMNS / GROUP_N, DEPTH / GROUP_K], a step of the loop within one GROUP_K. ONE_B_SCALE: BLOCK_SIZE_N
    lies within one GROUP_N.
    SWAP: "no"; "load": both operands are loaded transposed; "trans": transposed once loaded. Either way b comes first.
    DIRECT: no sort; block i is pair i alone in row 0. Else rows that hold no pair hold ``num_pairs`` (`plain_pad`).
    """
    program = tl.program_id(0)
    n_blocks = tl.cdiv(COLUMNS, BLOCK_SIZE_N)
    in_group = GROUP_SIZE_M * n_blocks
    first_m = (program // in_group) * GROUP_SIZE_M
    group_m = min(m_blocks - first_m, GROUP_SIZE_M)
    pid_m = first_m + (program % in_group) % group_m
    pid_n = (program % in_group) // group_m

    row_in_block = tl.arange(0, BLOCK_SIZE_M)
    if DIRECT:
        expert = _local_expert(topk_ids, topk_ids, pid_m, True, E, False)
        if expert < 0:
            return
        pair = tl.where(row_in_block == 0, pid_m, num_pairs).to(tl.int64)
        row = pair
    else:
        if pid_m >= tl.load(num_blocks):
            return
        expert = tl.load(block_info + pid_m) // MOST_ROWS
        row = pid_m * BLOCK_SIZE_M + row_in_block.to(tl.int64)
        pair = tl.load(sorted_pairs + row).to(tl.int64)
    row_live = pair < num_pairs

    if A_ROWS == "token":
        a_row = pair // TOPK
    elif A_ROWS == "pair":
        a_row = pair
    else:
        a_row = row
    at_expert = expert.to(tl.int64)
    b_row = (pid_n * BLOCK_SIZE_N + tl.arange(0, BLOCK_SIZE_N).to(tl.int64)) % COLUMNS
    offs_k = tl.arange(0, BLOCK_SIZE_K)
    if SWAP == "load":
        a_ptrs = a + a_row[None, :] * stride_a + offs_k[:, None]
        b_ptrs = b + at_expert * stride_be + b_row[:, None] * stride_bn + offs_k[None, :]
    else:
        a_ptrs = a + a_row[:, None] * stride_a + offs_k[None, :]
        b_ptrs = b + at_expert * stride_be + b_row[None, :] * stride_bn + offs_k[:, None]

    if SCALES == "weight":
        b_s = tl.load(b_scale + at_expert * stride_bse + b_row)
    elif SCALES == "channel":
        b_s = tl.load(b_scale + at_expert * stride_bse + b_row)
        a_s = tl.load(a_scale + a_row, mask=row_live, other=0.0)
    elif SCALES == "tensor":
        a_s = tl.load(a_scale)
        b_s = tl.load(b_scale + at_expert)
    elif SCALES == "block":
        a_s_ptrs = a_scale + a_row * stride_as
        if ONE_B_SCALE:
            b_s_ptrs = b_scale + at_expert * stride_bse + (pid_n * BLOCK_SIZE_N // GROUP_N) * stride_bsn
        else:
            b_s_ptrs = b_scale + at_expert * stride_bse + (b_row // GROUP_N) * stride_bsn

    if SWAP == "no":
        acc = tl.zeros((BLOCK_SIZE_M, BLOCK_SIZE_N), tl.float32)
    else:
        acc = tl.zeros((BLOCK_SIZE_N, BLOCK_SIZE_M), tl.float32)
    for k in range(0, tl.cdiv(DEPTH, BLOCK_SIZE_K)):
        left = DEPTH - k * BLOCK_SIZE_K
        if a_desc is not None:
            x = a_desc.load([pid_m * BLOCK_SIZE_M, k * BLOCK_SIZE_K])
        elif SWAP == "load":
            x = tl.load(a_ptrs, mask=(offs_k[:, None] < left) & row_live[None, :], other=0.0)
        elif EVEN_DEPTH:
            x = tl.load(a_ptrs, mask=row_live[:, None], other=0.0)
        else:
            x = tl.load(a_ptrs, mask=row_live[:, None] & (offs_k[None, :] < left), other=0.0)
        if b_desc is not None:
            w = b_desc.load([expert, pid_n * BLOCK_SIZE_N, k * BLOCK_SIZE_K]).reshape(BLOCK_SIZE_N, BLOCK_SIZE_K).T
        elif SWAP == "load":
            w = tl.load(b_ptrs, mask=offs_k[None, :] < left, other=0.0)
        elif EVEN_DEPTH:
            w = tl.load(b_ptrs)
        else:
            w = tl.load(b_ptrs, mask=offs_k[:, None] < left, other=0.0)
        if SWAP == "trans":
            x, w = tl.trans(x, (1, 0)), tl.trans(w, (1, 0))

        if SCALES == "block":
            at_k = k * BLOCK_SIZE_K // GROUP_K
            a_s = tl.load(a_s_ptrs + at_k, mask=row_live, other=0.0)
            b_s = tl.load(b_s_ptrs + at_k)
            if SWAP != "no":
                if ONE_B_SCALE:
                    acc += tl.dot(w, x) * (b_s * a_s[None, :])
                else:
                    acc += tl.dot(w, x) * b_s[:, None] * a_s[None, :]
            elif ONE_B_SCALE:
                acc += tl.dot(x, w) * (a_s[:, None] * b_s)
            else:
                acc += tl.dot(x, w) * a_s[:, None] * b_s[None, :]
        elif SCALES == "weight":
            acc = tl.dot(x, w.to(x.dtype), acc)
        elif x.dtype == tl.int8:
            acc += tl.dot(x, w)
        elif SWAP != "no":
            acc = tl.dot(w, x, acc)
        else:
            acc = tl.dot(x, w, acc)
        if a_desc is None:
            a_ptrs += BLOCK_SIZE_K
        if b_desc is None:
            b_ptrs += BLOCK_SIZE_K

    if SWAP != "no":
        acc = tl.trans(acc, (1, 0))
    if SCALES == "weight":
        acc = acc * b_s[None, :]
    elif SCALES == "channel":
        acc = acc * a_s[:, None] * b_s[None, :]
    elif SCALES == "tensor":
        acc = acc * a_s * b_s
    if WEIGHTED:
        acc *= tl.load(pair_weights + pair, mask=row_live, other=0.0)[:, None]
    c_column = pid_n * BLOCK_SIZE_N + tl.arange(0, BLOCK_SIZE_N)
    if C_SORTED:
        c_ptrs = c + row[:, None] * stride_c + c_column[None, :]
    else:
        c_ptrs = c + pair[:, None] * stride_c + c_column[None, :]
    tl.store(c_ptrs, acc.to(c.dtype.element_ty), mask=row_live[:, None] & (c_column[None, :] < COLUMNS))


@triton.jit
def plain_activate(
    hidden,
    out,
    topk_ids,
    expert_map,
    block_info,
    num_blocks,
    E,
    N,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    HAS_MAP: tl.constexpr,
    SORTED_BLOCK_M: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out [rows, N] = act(hidden [rows, 2N: gate, up halves, or N]), in fp32, one rounding.

    SORTED_BLOCK_M: rows are in sorted order, in blocks of so many; 0: one row a pair. A row that holds no pair, or
    one whose expert is elsewhere, was never written and becomes 0, so that no scale is made from what it holds.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if SORTED_BLOCK_M > 0:
        block = row // SORTED_BLOCK_M
        in_use = block < tl.load(num_blocks)
        rows = tl.load(block_info + block, mask=in_use, other=0) % MOST_ROWS
        live = tl.where(row % SORTED_BLOCK_M < rows, N, 0)
    else:
        expert = _local_expert(topk_ids, expert_map, row, True, E, HAS_MAP)
        live = tl.where(expert >= 0, N, 0)
    if GATED:
        gate = tl.load(hidden + row * 2 * N + column, mask=column < live, other=0.0).to(tl.float32)
        up = tl.load(hidden + row * 2 * N + N + column, mask=column < live, other=0.0).to(tl.float32)
        value = _activate(gate, ACTIVATION) * up
    else:
        value = _activate(tl.load(hidden + row * N + column, mask=column < live, other=0.0).to(tl.float32), ACTIVATION)
    tl.store(out + row * N + column, value.to(out.dtype.element_ty), mask=column < N)


@triton.jit
def quantize_groups(
    x,
    q,
    scale,
    DEPTH,
    stride_x,
    LEAST: tl.constexpr,
    MOST: tl.constexpr,
    GIVEN: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """q [rows, DEPTH] = x / scale in q's type, scale [rows, DEPTH / GROUP] = max(|x| of the group, LEAST) / MOST.

    Integers round half away from zero; e4m3 saturates at MOST. GROUP 0: the whole row is one group.
    GIVEN: one scale [1] for all, read instead of written.
    """
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    within = tl.arange(0, BLOCK)
    if GROUP > 0:
        column = group * GROUP + within
        inside = (within < GROUP) & (column < DEPTH)
    else:
        column = within
        inside = within < DEPTH
    value = tl.load(x + row * stride_x + column, mask=inside, other=0.0).to(tl.float32)
    if GIVEN:
        s = tl.load(scale)
    else:
        s = tl.maximum(tl.max(tl.abs(value), axis=0), LEAST) / MOST
        tl.store(scale + row * tl.num_programs(1) + group, s)
    value = tl.clamp(value / s, -MOST, MOST)
    if q.dtype.element_ty == tl.int8:
        value = tl.where(value < 0, tl.ceil(value - 0.5), tl.floor(value + 0.5))
    tl.store(q + row * DEPTH + column, value.to(q.dtype.element_ty), mask=inside)
