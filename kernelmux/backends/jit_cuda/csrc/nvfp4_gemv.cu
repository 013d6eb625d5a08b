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
#include "nvfp4_machine.cuh"

constexpr int THREADS = WARPS * 32;
constexpr int BLOCK_ROWS = WARPS * ROW_TILES * 16;
constexpr int PITCH = BLOCK_ROWS + 4;  // of the sums: four lanes of a group write to four banks

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

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) OF_A_CLUSTER
    nvfp4_gemv(const DTYPE* __restrict__ x, const u32* __restrict__ words, const u32* __restrict__ scales,
               const float* __restrict__ factor, OUT* __restrict__ out, int M, int N, int K, int ROWS, i64 stride_x,
               i64 stride_out) {
  SHARED_SPACE(space);
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
  copies_done();
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
  cluster_barrier();
  constexpr int MINE = BLOCK_ROWS / CLUSTER;
  const float by = *factor;
  for (int i = threadIdx.x; i < M * MINE; i += THREADS) {
    const int token = i / MINE, row = rank * MINE + i % MINE;
    float total = 0.0f;
#pragma unroll
    for (int part = 0; part < CLUSTER; ++part) total += read_sum(parts + token * PITCH + row, part);
    if (first_row + row < N) out[token * stride_out + first_row + row] = from_float<OUT>(total * by);
  }
  cluster_barrier();  // nobody leaves while another may still read from its shared memory
}
