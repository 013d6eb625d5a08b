"""Triton kernels of the fused MoE: sort, grouped GEMM, reduction over topk.

A *pair* is one (token, slot): pair ``p`` is token ``p // topk``. The sort puts the pairs of one expert side by
side and pads each expert to whole blocks of BLOCK_M rows, so that a GEMM block reads one expert's weight only.
The first GEMM writes its activated output in that sorted order, so that the second reads rows that lie together.
"""

import triton
import triton.language as tl

MOST_ROWS: tl.constexpr = tl.constexpr(65536)
"""``block_info`` packs one GEMM block as ``expert * MOST_ROWS + rows``, rows <= BLOCK_M < MOST_ROWS."""


@triton.jit
def _local_expert(topk_ids, expert_map, pair, mask, E, HAS_MAP: tl.constexpr):
    """Expert of each pair on this rank, or -1: not routed here, or an id outside [0, E)."""
    expert = tl.load(topk_ids + pair, mask=mask, other=-1).to(tl.int32)
    if HAS_MAP:
        expert = tl.load(expert_map + expert, mask=mask & (expert >= 0), other=-1).to(tl.int32)
    return tl.where((expert >= 0) & (expert < E), expert, -1)


@triton.jit(do_not_specialize=["num_pairs", "pairs_per_program"])
def moe_count(
    topk_ids,
    expert_map,
    counts,
    num_pairs,
    pairs_per_program,
    E,
    E_POW2: tl.constexpr,
    CHUNK: tl.constexpr,
    HAS_MAP: tl.constexpr,
):
    """counts[program, expert]: how many of this program's pairs go to each expert."""
    program = tl.program_id(0)
    begin = program * pairs_per_program
    end = min(begin + pairs_per_program, num_pairs)
    total = tl.zeros((E_POW2,), tl.int32)
    for at in range(begin, end, CHUNK):
        pair = at + tl.arange(0, CHUNK)
        expert = _local_expert(topk_ids, expert_map, pair, pair < end, E, HAS_MAP)
        total += tl.histogram(tl.maximum(expert, 0), E_POW2, mask=expert >= 0)
    tl.store(counts + program * E_POW2 + tl.arange(0, E_POW2), total)


@triton.jit(do_not_specialize=["num_pairs", "pairs_per_program", "programs"])
def moe_place(
    topk_ids,
    expert_map,
    counts,
    cursors,
    sorted_pairs,
    block_info,
    num_blocks,
    num_pairs,
    pairs_per_program,
    programs,
    E,
    E_POW2: tl.constexpr,
    PROGRAMS_POW2: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    HAS_MAP: tl.constexpr,
    ONE_PROGRAM: tl.constexpr,
):
    """Write sorted_pairs, block_info and num_blocks from the counts; counts in place when there is one program.

    Programs keep their order within an expert; inside one program the order is the one in which its atomic
    additions land. No output depends on it: a row's sum does not depend on which row of a block it is.
    """
    program = tl.program_id(0)
    begin = program * pairs_per_program
    end = min(begin + pairs_per_program, num_pairs)
    expert_index = tl.arange(0, E_POW2)
    if ONE_PROGRAM:
        total = tl.zeros((E_POW2,), tl.int32)
        for at in range(begin, end, CHUNK):
            pair = at + tl.arange(0, CHUNK)
            expert = _local_expert(topk_ids, expert_map, pair, pair < end, E, HAS_MAP)
            total += tl.histogram(tl.maximum(expert, 0), E_POW2, mask=expert >= 0)
        before = tl.zeros((E_POW2,), tl.int32)
    else:
        row = tl.arange(0, PROGRAMS_POW2)
        table = tl.load(counts + row[:, None] * E_POW2 + expert_index[None, :], mask=row[:, None] < programs, other=0)
        total = tl.sum(table, axis=0)
        before = tl.sum(tl.where(row[:, None] < program, table, 0), axis=0)
    blocks = (total + BLOCK_M - 1) // BLOCK_M
    last_block = tl.cumsum(blocks, axis=0)
    first_block = last_block - blocks
    if program == 0:
        tl.store(num_blocks, tl.sum(blocks, axis=0))
        for nth in range(0, tl.max(blocks, axis=0)):
            rows = tl.minimum(total - nth * BLOCK_M, BLOCK_M)
            tl.store(block_info + first_block + nth, expert_index * MOST_ROWS + rows, mask=nth < blocks)
    cursor = cursors + program * E_POW2
    tl.store(cursor + expert_index, first_block * BLOCK_M + before)
    tl.debug_barrier()
    for at in range(begin, end, CHUNK):
        pair = at + tl.arange(0, CHUNK)
        expert = _local_expert(topk_ids, expert_map, pair, pair < end, E, HAS_MAP)
        place = tl.atomic_add(cursor + expert, 1, mask=expert >= 0, sem="relaxed")
        tl.store(sorted_pairs + place, pair, mask=expert >= 0)


@triton.jit
def _activate(gate, ACTIVATION: tl.constexpr):
    """The activation on fp32. gelu is the exact form, gelu_tanh the tanh approximation."""
    if ACTIVATION == "silu":
        out = gate / (1.0 + tl.exp(-gate))
    elif ACTIVATION == "gelu":
        out = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        # tanh(z) = 1 - 2 / (exp(2z) + 1), exact at both ends: exp overflows to inf and underflows to 0.
        out = 0.5 * gate * (2.0 - 2.0 / (tl.exp(2.0 * inner) + 1.0))
    else:
        tl.static_assert(ACTIVATION == "relu2")
        positive = tl.maximum(gate, 0.0)
        out = positive * positive
    return out


@triton.jit(do_not_specialize=["m_blocks"])
def moe_gemm(
    a,
    b,
    c,
    pair_weights,
    topk_ids,
    expert_map,
    sorted_pairs,
    block_info,
    num_blocks,
    m_blocks,
    E,
    COLUMNS,
    DEPTH,
    stride_a,
    stride_be,
    stride_bn,
    stride_c,
    TOPK: tl.constexpr,
    SIDE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    DIRECT: tl.constexpr,
    HAS_MAP: tl.constexpr,
    EVEN_DEPTH: tl.constexpr,
    USE_TMA: tl.constexpr,
    BLOCK_SIZE_M: tl.constexpr,
    BLOCK_SIZE_N: tl.constexpr,
    BLOCK_SIZE_K: tl.constexpr,
    GROUP_SIZE_M: tl.constexpr,
):
    """One block of one expert's GEMM.

    SIDE "up":   a [M, DEPTH] rows by token, b [E, COLUMNS, DEPTH], c [rows, N]: activated, in sorted order.
    SIDE "down": a [rows, DEPTH] in sorted order, b [E, COLUMNS, DEPTH], c [num_pairs, COLUMNS] by pair.
    GATED: b holds gate rows, then up rows; BLOCK_SIZE_N counts both. Reading by pointer the tile takes them
    alternately (gate_0, up_0, gate_1, ...), so that each thread of an MMA holds a gate next to its up; reading by
    TMA it takes half a tile of each. Either way one MMA serves both and the epilogue writes BLOCK_SIZE_N / 2 columns.
    DIRECT: no sort; block i is pair i alone in row 0.
    USE_TMA: b (and for "down" a) are tensor descriptors: b [E * (2 if gated), rows, DEPTH], a [rows, DEPTH].
    """
    program = tl.program_id(0)
    n_blocks = tl.cdiv(COLUMNS, BLOCK_SIZE_N)
    live_blocks = m_blocks
    if not DIRECT:
        live_blocks = tl.load(num_blocks)
    in_group = GROUP_SIZE_M * n_blocks
    first_m = (program // in_group) * GROUP_SIZE_M
    if first_m >= live_blocks:
        return
    group_m = min(live_blocks - first_m, GROUP_SIZE_M)
    within = program % in_group
    if within >= group_m * n_blocks:
        return
    pid_m = first_m + within % group_m
    pid_n = within // group_m

    row_in_block = tl.arange(0, BLOCK_SIZE_M)
    if DIRECT:
        expert = _local_expert(topk_ids, expert_map, pid_m, True, E, HAS_MAP)
        if expert < 0:
            return
        row_live = row_in_block == 0
        pair = pid_m + tl.zeros((BLOCK_SIZE_M,), tl.int32)
        row = pair
    else:
        info = tl.load(block_info + pid_m)
        expert = info // MOST_ROWS
        row_live = row_in_block < info % MOST_ROWS
        row = pid_m * BLOCK_SIZE_M + row_in_block
        pair = tl.load(sorted_pairs + row, mask=row_live, other=0)

    offs_k = tl.arange(0, BLOCK_SIZE_K)
    if SIDE == "up":
        a_row = pair // TOPK
    else:
        a_row = row
    HALVES: tl.constexpr = 2 if GATED else 1
    N = COLUMNS // HALVES
    column = tl.arange(0, BLOCK_SIZE_N)
    acc = tl.zeros((BLOCK_SIZE_M, BLOCK_SIZE_N), tl.float32)
    if USE_TMA:
        if SIDE == "up":
            a_ptrs = a + a_row.to(tl.int64)[:, None] * stride_a + offs_k[None, :]
        for k in range(0, tl.cdiv(DEPTH, BLOCK_SIZE_K)):
            if SIDE == "up":
                if EVEN_DEPTH:
                    a_tile = tl.load(a_ptrs, mask=row_live[:, None], other=0.0)
                else:
                    a_tile = tl.load(
                        a_ptrs, mask=row_live[:, None] & (offs_k[None, :] < DEPTH - k * BLOCK_SIZE_K), other=0.0
                    )
                a_ptrs += BLOCK_SIZE_K
            else:
                a_tile = a.load([pid_m * BLOCK_SIZE_M, k * BLOCK_SIZE_K])
            b_tile = b.load([expert * HALVES, pid_n * (BLOCK_SIZE_N // HALVES), k * BLOCK_SIZE_K])
            acc = tl.dot(a_tile, b_tile.reshape(BLOCK_SIZE_N, BLOCK_SIZE_K).T, acc)
    else:
        b_row = (pid_n * (BLOCK_SIZE_N // HALVES) + column // HALVES) % N + (column % HALVES) * N
        a_ptrs = a + a_row.to(tl.int64)[:, None] * stride_a + offs_k[None, :]
        b_ptrs = b + expert.to(tl.int64) * stride_be + b_row.to(tl.int64)[None, :] * stride_bn + offs_k[:, None]
        for k in range(0, tl.cdiv(DEPTH, BLOCK_SIZE_K)):
            if EVEN_DEPTH:
                a_tile = tl.load(a_ptrs, mask=row_live[:, None], other=0.0)
                b_tile = tl.load(b_ptrs)
            else:
                left = DEPTH - k * BLOCK_SIZE_K
                a_tile = tl.load(a_ptrs, mask=row_live[:, None] & (offs_k[None, :] < left), other=0.0)
                b_tile = tl.load(b_ptrs, mask=offs_k[:, None] < left, other=0.0)
            acc = tl.dot(a_tile, b_tile, acc)
            a_ptrs += BLOCK_SIZE_K
            b_ptrs += BLOCK_SIZE_K

    if WEIGHTED:
        acc *= tl.load(pair_weights + pair, mask=row_live, other=0.0)[:, None]
    if SIDE == "up":
        c_row = row
        if GATED:
            if USE_TMA:
                both = acc.reshape(BLOCK_SIZE_M, 2, BLOCK_SIZE_N // 2).permute(0, 2, 1)
            else:
                both = acc.reshape(BLOCK_SIZE_M, BLOCK_SIZE_N // 2, 2)
            gate, up = tl.split(both)
            out = _activate(gate, ACTIVATION) * up
        else:
            out = _activate(acc, ACTIVATION)
    else:
        c_row = pair
        out = acc
    c_column = pid_n * (BLOCK_SIZE_N // HALVES) + tl.arange(0, BLOCK_SIZE_N // HALVES)
    c_ptrs = c + c_row.to(tl.int64)[:, None] * stride_c + c_column[None, :]
    tl.store(c_ptrs, out.to(c.dtype.element_ty), mask=row_live[:, None] & (c_column[None, :] < N))


@triton.jit(do_not_specialize=["scale"])
def moe_reduce(
    pair_out,
    out,
    topk_ids,
    expert_map,
    scale,
    E,
    K,
    stride_pair,
    stride_out,
    TOPK: tl.constexpr,
    HAS_MAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[token] = scale * sum over slots of pair_out[token * TOPK + slot], in fp32, slots in order.

    A pair whose expert is not on this rank was never written and is left out.
    """
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < K
    total = tl.zeros((BLOCK,), tl.float32)
    for slot in tl.static_range(TOPK):
        pair = token * TOPK + slot
        expert = _local_expert(topk_ids, expert_map, pair, True, E, HAS_MAP)
        # Not `inside & (expert >= 0)`: Triton 3.9's interpreter refuses a mask made of a block and a scalar.
        here = column < tl.where(expert >= 0, K, 0)
        total += tl.load(pair_out + pair * stride_pair + column, mask=here, other=0.0).to(tl.float32)
    tl.store(out + token * stride_out + column, (total * scale).to(out.dtype.element_ty), mask=inside)
