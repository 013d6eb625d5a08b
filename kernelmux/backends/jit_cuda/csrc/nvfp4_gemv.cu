// NVFP4 weights times a few tokens: out [M, N] = factor * x [M, K] @ decoded [N, K].T, M <= 8 * TOKEN_TILES.
//
// The weight streams from device memory into registers, 16 bytes a lane, one chunk of K ahead of its use; it is decoded
// there and goes into mma.sync as the left operand. Every instruction of the decoding serves two values, a register of
// eight values costs nine and four multiplications (the layout and why: backends/triton/nvfp4_planes.py).
// x of the block's part of K lies in shared memory. The blocks of a cluster share rows and split K; they add their sums
// through each other's shared memory in a fixed order, so that a result never depends on which of them came first.
//
// A lane's k are not those of the MMA's definition, but the same for both operands, and a sum has no order to mind:
// lane t of a group of four takes the 16-byte pieces 4 * (t / 2) + t % 2 and that + 2 of each row's 128 bytes.
//
// DTYPE: bf16 | fp16 of x; OUT: bf16 | fp16 | fp32; TOKEN_TILES (of 8); ROW_TILES (of 16, a warp); WARPS; CLUSTER;
// BLOCKS: how many a multiprocessor should hold at least.
#include "common.cuh"

constexpr int THREADS = WARPS * 32;
constexpr int BLOCK_ROWS = WARPS * ROW_TILES * 16;
constexpr int PITCH = BLOCK_ROWS + 4;  // of the sums: four lanes of a group write to four banks

template <typename T>
struct Half2;
template <>
struct Half2<bf16> {
  static DEVICE u32 scales(u32 bits) { return (bits & 0x0FF00FF0u) | 0x70007000u; }
  static DEVICE u32 place(u32 r) { return r; }
  // r * the low half of s, r * the high half of s
  static DEVICE u32 times_low(u32 r, u32 s) {
    u32 y;
    asm("{.reg .b16 l, h; .reg .b32 d; mov.b32 {l, h}, %2; mov.b32 d, {l, l}; fma.rn.bf16x2 %0, %1, d, %3;}"
        : "=r"(y) : "r"(r), "r"(s), "r"(0x80008000u));
    return y;
  }
  static DEVICE u32 times_high(u32 r, u32 s) {
    u32 y;
    asm("{.reg .b16 l, h; .reg .b32 d; mov.b32 {l, h}, %2; mov.b32 d, {h, h}; fma.rn.bf16x2 %0, %1, d, %3;}"
        : "=r"(y) : "r"(r), "r"(s), "r"(0x80008000u));
    return y;
  }
  static DEVICE void mma(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
};
template <>
struct Half2<fp16> {
  static DEVICE u32 scales(u32 bits) { return (bits & 0x0FF00FF0u) << 3; }
  static DEVICE u32 place(u32 r) { return (r & 0x80008000u) | ((r << 3) & 0x0E000E00u); }
  static DEVICE u32 times_low(u32 r, u32 s) {
    u32 y;
    asm("{.reg .b16 l, h; .reg .b32 d; mov.b32 {l, h}, %2; mov.b32 d, {l, l}; mul.rn.f16x2 %0, %1, d;}"
        : "=r"(y) : "r"(r), "r"(s));
    return y;
  }
  static DEVICE u32 times_high(u32 r, u32 s) {
    u32 y;
    asm("{.reg .b16 l, h; .reg .b32 d; mov.b32 {l, h}, %2; mov.b32 d, {h, h}; mul.rn.f16x2 %0, %1, d;}"
        : "=r"(y) : "r"(r), "r"(s));
    return y;
  }
  static DEVICE void mma(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
};

// The pair of plane PLANE in a register of packed words, before its scale.
template <int PLANE>
DEVICE u32 pair(u32 w) {
  if constexpr (PLANE == 0) return w & 0x81C081C0u;
  if constexpr (PLANE == 1) return (w << 4) & 0x81C081C0u;
  if constexpr (PLANE == 2) return __funnelshift_l(w, w, 10) & 0x81C081C0u;
  return ((w << 6) & 0x80C080C0u) | ((w >> 2) & 0x01000100u);
}
template <int PLANE, typename T>
DEVICE u32 decode(u32 w, u32 s) {
  const u32 r = Half2<T>::place(pair<PLANE>(w));
  return PLANE % 2 ? Half2<T>::times_high(r, s) : Half2<T>::times_low(r, s);
}

// One chunk of a lane's rows: two pieces of a row at g and of one at g + 8 a tile, with the scales of their blocks.
struct Chunk {
  Vec<u32, 4> words[ROW_TILES][2][2];  // tile, row, piece
  Vec<u32, 2> scales[ROW_TILES][2];    // tile, row; one register a piece
};

template <int PLANE>
DEVICE void plane(const Chunk& chunk, int piece, const u32 (&s)[ROW_TILES][2], const DTYPE* at, int pitch,
                  float (&sums)[ROW_TILES][TOKEN_TILES][4]) {
  Vec<u32, 4> y[TOKEN_TILES];
#pragma unroll
  for (int token = 0; token < TOKEN_TILES; ++token)
    y[token] = *reinterpret_cast<const Vec<u32, 4>*>(at + token * 8 * pitch + PLANE * 64);
#pragma unroll
  for (int tile = 0; tile < ROW_TILES; ++tile) {
    const u32* upper = chunk.words[tile][0][piece].v;
    const u32* lower = chunk.words[tile][1][piece].v;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const u32 a0 = decode<PLANE, DTYPE>(upper[2 * half], s[tile][0]);
      const u32 a1 = decode<PLANE, DTYPE>(lower[2 * half], s[tile][1]);
      const u32 a2 = decode<PLANE, DTYPE>(upper[2 * half + 1], s[tile][0]);
      const u32 a3 = decode<PLANE, DTYPE>(lower[2 * half + 1], s[tile][1]);
#pragma unroll
      for (int token = 0; token < TOKEN_TILES; ++token)
        Half2<DTYPE>::mma(sums[tile][token], a0, a1, a2, a3, y[token].v[2 * half], y[token].v[2 * half + 1]);
    }
  }
}

DEVICE u32 shared_address(const void* at) { return static_cast<u32>(__cvta_generic_to_shared(at)); }

// 16 bytes of x into shared memory; zeros where there are none.
DEVICE void copy_async(void* to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(inside ? 16 : 0)
               : "memory");
}

DEVICE float read_sum(const float* at, int rank) {
#if CLUSTER > 1
  u32 there;
  float value;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(at)), "r"(rank));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(there) : "memory");
  return value;
#else
  return *at;
#endif
}
DEVICE void cluster_arrive() {
#if CLUSTER > 1
  asm volatile("barrier.cluster.arrive.aligned;" ::: "memory");
#endif
}
DEVICE void cluster_wait() {
#if CLUSTER > 1
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
#if CLUSTER > 1
    __cluster_dims__(CLUSTER, 1, 1)
#endif
    nvfp4_gemv(const DTYPE* __restrict__ x, const u32* __restrict__ words, const u32* __restrict__ scales,
               const float* __restrict__ factor, OUT* __restrict__ out, int M, int N, int K, int ROWS, i64 stride_x,
               i64 stride_out) {
  extern __shared__ __align__(128) u8 space[];
  DTYPE* const slab = reinterpret_cast<DTYPE*>(space);  // [8 * TOKEN_TILES, pitch]
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const int rank = blockIdx.x % CLUSTER, first_row = blockIdx.x / CLUSTER * BLOCK_ROWS;
  const int chunks = (K + 255) >> 8;
  const int begin = chunks * rank / CLUSTER, end = chunks * (rank + 1) / CLUSTER, count = end - begin;
  const int pitch = (chunks + CLUSTER - 1) / CLUSTER * 256;

  const u32* word_at[ROW_TILES];
  const u32* scale_at[ROW_TILES];
#pragma unroll
  for (int tile = 0; tile < ROW_TILES; ++tile) {
    // Rows are padded to whole tiles; a tile beyond them reads the last one and writes nothing.
    const int row = min(first_row + (warp * ROW_TILES + tile) * 16, ROWS - 16) + g;
    const i64 at = static_cast<i64>(begin) * ROWS + row;
    word_at[tile] = words + at * 32 + (4 * (t >> 1) + (t & 1)) * 4;
    scale_at[tile] = scales + at * 4 + 2 * (t >> 1);
  }
  const i64 word_step = static_cast<i64>(ROWS) * 32, scale_step = static_cast<i64>(ROWS) * 4;

  auto fetch = [&](Chunk& into) {
#pragma unroll
    for (int tile = 0; tile < ROW_TILES; ++tile) {
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        into.words[tile][row][0] = load<4, STREAM>(word_at[tile] + row * 8 * 32);
        into.words[tile][row][1] = load<4, STREAM>(word_at[tile] + row * 8 * 32 + 8);
        into.scales[tile][row] = load<2, STREAM>(scale_at[tile] + row * 8 * 4);
      }
      word_at[tile] += word_step;
      scale_at[tile] += scale_step;
    }
  };

  pdl_wait();
  Chunk now, next;
  if (count > 0) fetch(now);
  // x of this part of K. Tokens beyond M are left as they are: each token has its own columns of sums.
  for (int at = threadIdx.x; at < M * count * 32; at += THREADS) {
    const int token = at / (count * 32), piece = at - token * (count * 32);
    const int k = begin * 256 + piece * 8;
    const bool inside = k < K;
    copy_async(slab + token * pitch + (piece ^ ((token & 1) << 1)) * 8, x + token * stride_x + (inside ? k : 0), inside);
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();
  pdl_launch();

  float sums[ROW_TILES][TOKEN_TILES][4] = {};
  const DTYPE* at = slab + g * pitch;
  for (int step = 0; step < count; ++step, at += 256) {
    if (step + 1 < count) fetch(next);
#pragma unroll
    for (int piece = 0; piece < 2; ++piece) {
      u32 even[ROW_TILES][2], odd[ROW_TILES][2];
#pragma unroll
      for (int tile = 0; tile < ROW_TILES; ++tile) {
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          const u32 s = now.scales[tile][row].v[piece];
          even[tile][row] = Half2<DTYPE>::scales(s);
          odd[tile][row] = Half2<DTYPE>::scales(__byte_perm(s, s, 0x2301));
        }
      }
      const DTYPE* mine = at + ((4 * (t >> 1) + (t & 1) + 2 * piece) ^ ((g & 1) << 1)) * 8;
      plane<0>(now, piece, even, mine, pitch, sums);
      plane<1>(now, piece, even, mine, pitch, sums);
      plane<2>(now, piece, odd, mine, pitch, sums);
      plane<3>(now, piece, odd, mine, pitch, sums);
    }
    now = next;
  }

  // Sums of this part of K, token by token, where x was; then every block of the cluster adds up some of the rows.
  __syncthreads();
  float* const parts = reinterpret_cast<float*>(space);
#pragma unroll
  for (int tile = 0; tile < ROW_TILES; ++tile) {
#pragma unroll
    for (int token = 0; token < TOKEN_TILES; ++token) {
      float* to = parts + (token * 8 + 2 * t) * PITCH + (warp * ROW_TILES + tile) * 16 + g;
      to[0] = sums[tile][token][0];
      to[PITCH] = sums[tile][token][1];
      to[8] = sums[tile][token][2];
      to[PITCH + 8] = sums[tile][token][3];
    }
  }
  __syncthreads();
  cluster_arrive();
  cluster_wait();
  constexpr int MINE = BLOCK_ROWS / CLUSTER;
  const float by = *factor;
  for (int i = threadIdx.x; i < M * MINE; i += THREADS) {
    const int token = i / MINE, row = rank * MINE + i % MINE;
    float total = 0.0f;
#pragma unroll
    for (int part = 0; part < CLUSTER; ++part) total += read_sum(parts + token * PITCH + row, part);
    if (first_row + row < N) out[token * stride_out + first_row + row] = from_float<OUT>(total * by);
  }
  cluster_arrive();  // nobody leaves while another may still read from its shared memory
  cluster_wait();
}
