// rms_norm, fused_add_rms_norm and gated_rms_norm: LANES threads a row, ROWS rows side by side in a block, UNROLL of them
// after each other in a thread before it waits for any. One launch; x is read once, except in rows too long for registers.
//
// The result does not depend on the geometry: a row is cut into chunks of VEC_BYTES, each summed by one thread; 32
// neighbouring chunks (a line) are summed by the tree 16, 8, 4, 2, 1, and lines by a tree of their own, whoever holds
// them. (LONG rows have one geometry only.) What is aligned to less than a chunk is read in pieces of ACCESS_BYTES.
//
// NORM              RMS, ADD (second: the residual) or GATED (second: z)
// DTYPE, HIDDEN     of x; what is normalised together: H / N_GROUPS elements. `rows` counts these parts
// CAST_FIRST        round the normalised row, then multiply by the weight (cast_before_mul); 0: fp32_mul
// RESIDUAL_FP32     ADD: normalise the sum before it is rounded
// WEIGHT_BIAS       added to the weight in fp32
// LOADS, STORES     KEEP or STREAM, for rows; the weight is kept. LOADS=ORDERED: loads that ptxas does not move behind
//                   each other, so that the weight is on its way before anything waits for x (they pass by L1)
// PERSISTENT        blocks go on to further rows; PREFETCH: having asked for them before they finish these
// NESTED            row r of x (and of second) lies at (r / inner) * outer + (r % inner) * stride
// WEIGHT_EARLY      1: no kernel before this one writes the weight, which is therefore read before pdl_wait()
#include "common.cuh"

#define RMS 0
#define ADD 1
#define GATED 2

#ifndef N_GROUPS
#define N_GROUPS 1
#endif
#ifndef RESIDUAL_FP32
#define RESIDUAL_FP32 0
#endif
#ifndef WEIGHT_BIAS
#define WEIGHT_BIAS 0
#endif
#ifndef ACCESS_BYTES
#define ACCESS_BYTES VEC_BYTES
#endif
#ifndef UNROLL
#define UNROLL 1
#endif
#ifndef MIN_BLOCKS
#define MIN_BLOCKS 1
#endif
#ifndef PERSISTENT
#define PERSISTENT 0
#endif
#ifndef PREFETCH
#define PREFETCH 0
#endif
#ifndef LOADS
#define LOADS STREAM
#endif
#ifndef STORES
#define STORES KEEP
#endif
#ifndef LONG
#define LONG 0
#endif
#ifndef NESTED
#define NESTED 0
#endif
#ifndef WEIGHT_EARLY
#define WEIGHT_EARLY 0
#endif

constexpr Cache ORDERED = static_cast<Cache>(16);

#ifdef __CUDACC__
template <int BYTES>
DEVICE void ordered_load(void* to, const void* from) {
  u32* w = static_cast<u32*>(to);
  if constexpr (BYTES == 1) {
    Access<1, KEEP>::load(to, from);
  } else if constexpr (BYTES == 2) {
    asm volatile("ld.relaxed.gpu.global.u16 %0, [%1];" : "=h"(*static_cast<u16*>(to)) : "l"(from));
  } else if constexpr (BYTES == 4) {
    asm volatile("ld.relaxed.gpu.global.b32 %0, [%1];" : "=r"(w[0]) : "l"(from));
  } else if constexpr (BYTES == 8) {
    asm volatile("ld.relaxed.gpu.global.v2.b32 {%0,%1}, [%2];" : "=r"(w[0]), "=r"(w[1]) : "l"(from));
  } else if constexpr (BYTES == 16) {
    asm volatile("ld.relaxed.gpu.global.v4.b32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
                 : "l"(from));
  } else {
#if __CUDA_ARCH__ >= 1000
    asm volatile("ld.relaxed.gpu.global.v8.b32 {%0,%1,%2,%3,%4,%5,%6,%7}, [%8];"
                 : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3]), "=r"(w[4]), "=r"(w[5]), "=r"(w[6]), "=r"(w[7])
                 : "l"(from));
#else
    ordered_load<16>(w, from);
    ordered_load<16>(w + 4, static_cast<const u8*>(from) + 16);
#endif
  }
}
DEVICE float approximate_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#endif

template <typename A>
struct IsBf16 {
  static constexpr bool YES = false;
};
template <>
struct IsBf16<bf16> {
  static constexpr bool YES = true;
};

typedef DTYPE T;

constexpr bool IS_BF16 = IsBf16<T>::YES;

constexpr int E = VEC_BYTES / static_cast<int>(sizeof(T));  // elements of a chunk
constexpr int PIECE = ACCESS_BYTES / static_cast<int>(sizeof(T));
constexpr int CHUNKS = (HIDDEN + E - 1) / E;
constexpr int LINES = (CHUNKS + 31) / 32;
constexpr int PER_THREAD = (CHUNKS + LANES - 1) / LANES;
constexpr int WARPS = (LANES + 31) / 32;  // of a row
constexpr int BATCH = ROWS * UNROLL;      // rows of a block at a time
constexpr bool ONE_GROUP = N_GROUPS == 1;
constexpr bool ALL_ROWS = BATCH == 1;  // every row that a block takes exists
constexpr bool FLOATS = sizeof(T) == 2 && (NORM == GATED || (NORM == ADD && RESIDUAL_FP32));  // held in fp32

static_assert(ACCESS_BYTES <= VEC_BYTES && PIECE >= 1 && HIDDEN % PIECE == 0, "pieces end where the row ends");
static_assert(LANES >= 32 ? LANES % 32 == 0 : (LANES & (LANES - 1)) == 0 && LINES == 1, "whole warps, or part of one");
static_assert(LANES * ROWS <= 1024 && LANES * ROWS % 32 == 0, "threads of a block");
static_assert(LONG || UNROLL * PER_THREAD <= 32, "sums of a thread");
static_assert(!LONG || (ROWS == 1 && UNROLL == 1 && LANES >= 32), "a long row has a block to itself");

typedef Vec<T, E> Chunk;

// ---- where things are -----------------------------------------------------------------------------------------------

struct Rows {
  i64 stride;
#if NESTED
  i64 outer;
  u32 inner;
  DEVICE i64 at(u32 row) const { return (row / inner) * outer + (row % inner) * stride; }
#else
  DEVICE i64 at(u32 row) const { return row * stride; }
#endif
};

// Where part `part` starts, of rows `stride` elements apart.
DEVICE i64 start(u32 part, i64 stride) {
  if constexpr (ONE_GROUP) return part * stride;
  return (part / N_GROUPS) * stride + (part % N_GROUPS) * static_cast<i64>(HIDDEN);
}
DEVICE i64 start(u32 part, const Rows& rows) {
  if constexpr (ONE_GROUP) return rows.at(part);
  return rows.at(part / N_GROUPS) + (part % N_GROUPS) * static_cast<i64>(HIDDEN);
}

// The chunk at index c of a row; zero where the row has ended, or does not exist.
template <Cache CACHE>
DEVICE Chunk load_chunk(const T* row, int c, bool exists) {
  Chunk to = {};
  const T* from = row + c * E;
#pragma unroll
  for (int i = 0; i < E; i += PIECE)
    if (exists && (HIDDEN % E == 0 || c * E + i < HIDDEN)) {
      if constexpr (CACHE == ORDERED)
        ordered_load<ACCESS_BYTES>(&to.v[i], from + i);
      else
        Access<ACCESS_BYTES, CACHE>::load(&to.v[i], from + i);
    }
  return to;
}
template <Cache CACHE>
DEVICE void store_chunk(T* row, int c, bool exists, const Chunk& chunk) {
#pragma unroll
  for (int i = 0; i < E; i += PIECE)
    if (exists && (HIDDEN % E == 0 || c * E + i < HIDDEN)) Access<ACCESS_BYTES, CACHE>::store(row + c * E + i, &chunk.v[i]);
}
// Whether chunk k of this thread is part of the row; known when compiling for all but the last.
DEVICE bool has_chunk(int k, int thread) { return (k + 1) * LANES <= CHUNKS || k * LANES + thread < CHUNKS; }

// ---- arithmetic -----------------------------------------------------------------------------------------------------

// Elements of a chunk in fp32. Of two bf16 in a word the second is one instruction away, the first as well.
DEVICE void widen(const Chunk& from, float (&to)[E]) {
  if constexpr (IS_BF16) {
    const u32* words = reinterpret_cast<const u32*>(&from);
#pragma unroll
    for (int i = 0; i < E / 2; ++i) {
      to[2 * i] = __uint_as_float(words[i] << 16);
      to[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  } else {
    to_floats(from, to);
  }
}

// z * sigmoid(z). fp32 divides exactly; for 16-bit types the reciprocal is improved to the last place of fp32, which
// spares the branch of a full division. A denominator beyond 2^126 gives 0.
DEVICE float silu(float z) {
  const float denominator = 1.0f + expf(-z);
  if constexpr (sizeof(T) == 4) return z / denominator;
  const float finite = fminf(denominator, 3.4028234e38f);
  const float reciprocal = approximate_reciprocal(finite);
  return z * fmaf(reciprocal, fmaf(-finite, reciprocal, 1.0f), reciprocal);
}

// What is normalised, and held until its row's sum is known: bits of T where that loses nothing, else fp32.
struct Held {
  Chunk bits;
  float values[FLOATS ? E : 1];
  DEVICE void get(float (&v)[E]) const {
    if constexpr (FLOATS) {
#pragma unroll
      for (int i = 0; i < E; ++i) v[i] = values[i];
    } else {
      widen(bits, v);
    }
  }
};

// Of a chunk of x and of second: what is held. ADD: `bits` is the rounded sum in any case.
DEVICE Held combine(const Chunk& x, const Chunk& second) {
  Held held;
  if constexpr (NORM == RMS) {
    held.bits = x;
  } else {
    float a[E], b[E];
    widen(x, a);
    widen(second, b);
#pragma unroll
    for (int i = 0; i < E; ++i) a[i] = NORM == ADD ? a[i] + b[i] : a[i] * silu(b[i]);
    if constexpr (NORM == ADD || !FLOATS) held.bits = from_floats<T>(a);
    if constexpr (FLOATS) {
#pragma unroll
      for (int i = 0; i < E; ++i) held.values[i] = a[i];
    }
  }
  return held;
}

DEVICE float squares(const Held& held) {
  float v[E], even = 0.0f, odd = 0.0f;
  held.get(v);
#pragma unroll
  for (int i = 0; i < E; i += 2) {
    even = fmaf(v[i], v[i], even);
    if (i + 1 < E) odd = fmaf(v[i + 1], v[i + 1], odd);
  }
  return even + odd;
}

// As torch does it: the mean is the sum times the reciprocal of the count. rsqrtf is right to two units in the last
// place, which fp32 alone can tell: there it is improved.
DEVICE float scale_of(float sum, float eps) {
  const float mean = __fadd_rn(__fmul_rn(sum, 1.0f / HIDDEN), eps), scale = rsqrtf(mean);
  if constexpr (sizeof(T) == 2) return scale;
  const float better = fmaf(0.5f * scale, fmaf(-mean * scale, scale, 1.0f), scale);
  return better < 3.0e38f && scale > 0.0f ? better : scale;
}

DEVICE Chunk weigh(const Held& held, float scale, const Chunk& weight) {
  float v[E], w[E];
  held.get(v);
  widen(weight, w);
#pragma unroll
  for (int i = 0; i < E; ++i) v[i] = __fmul_rn(v[i], scale);
  if constexpr (CAST_FIRST && sizeof(T) == 2) widen(from_floats<T>(v), v);
#pragma unroll
  for (int i = 0; i < E; ++i) v[i] = __fmul_rn(v[i], WEIGHT_BIAS ? __fadd_rn(w[i], WEIGHT_BIAS) : w[i]);
  return from_floats<T>(v);
}

// ---- the sum of a row -----------------------------------------------------------------------------------------------

// Each of v[0..N) summed over 32 lanes by the tree 16, 8, 4, 2, 1, in fewer shuffles than a tree each: while a lane has
// several values it hands one half over and keeps the other. It ends with one of the sums; `which` says which (N or
// more: none). Lanes that differ only in the lowest bits may end with the same one.
template <int N, int OFFSET>
DEVICE float lane_sums(const float (&v)[N], int lane, int& which) {
  if constexpr (OFFSET == 0) {
    static_assert(N == 1, "at most 32 values");
    return v[0];
  } else if constexpr (N == 1) {
    const float sum[1] = {v[0] + __shfl_xor_sync(0xffffffffu, v[0], OFFSET)};
    return lane_sums<1, OFFSET / 2>(sum, lane, which);
  } else {
    constexpr int HALF = power_of_two_from(N) / 2;
    const bool upper = (lane & OFFSET) != 0;
    float sum[HALF];
#pragma unroll
    for (int i = 0; i < HALF; ++i) {
      const float low = v[i], high = i + HALF < N ? v[i + HALF < N ? i + HALF : 0] : 0.0f;
      sum[i] = (upper ? high : low) + __shfl_xor_sync(0xffffffffu, upper ? low : high, OFFSET);
    }
    if (upper) which += HALF;
    return lane_sums<HALF, OFFSET / 2>(sum, lane, which);
  }
}

struct alignas(16) Four {
  float v[4];
  DEVICE float sum() const { return (v[0] + v[1]) + (v[2] + v[3]); }
};
constexpr int FOURS = (LINES + 3) / 4;
constexpr int TURNS = PERSISTENT ? 2 : 1;
constexpr bool IN_LANES = LINES == 1;  // no thread needs to know of another's warp

struct Shared {
  Four lines[TURNS][BATCH][FOURS];
};

// sums[u * PER_THREAD + k], one a chunk -> the sums of UNROLL rows, the same in all threads of a row.
template <int N>
DEVICE void row_sums(const float (&sums)[N], float (&rows)[UNROLL], Shared& shared, int group, int thread, int turn) {
  if constexpr (IN_LANES) {
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      float v[PER_THREAD];
#pragma unroll
      for (int k = 0; k < PER_THREAD; ++k) v[k] = sums[u * PER_THREAD + k];
      constexpr int HALF = power_of_two_from(PER_THREAD) / 2;
#pragma unroll
      for (int half = HALF; half > 0; half /= 2)
#pragma unroll
        for (int k = 0; k < half; ++k)
          if (k + half < PER_THREAD) v[k] += v[k + half];
      rows[u] = warp_sum<(LANES < 32 ? LANES : 32)>(v[0]);
    }
  } else {
    const int lane = threadIdx.x & 31, warp = thread >> 5;
    int which = 0;
    const float sum = lane_sums<N, 16>(sums, lane, which);
    const int u = which / PER_THREAD, line = which % PER_THREAD * WARPS + warp;
    constexpr int COPIES = 32 / power_of_two_from(N);
    if (which < N && line < LINES && (lane & (COPIES - 1)) == 0)
      reinterpret_cast<float*>(shared.lines[turn][u * ROWS + group])[line] = sum;
    if constexpr (WARPS == 1)
      __syncwarp();
    else
      __syncthreads();
#pragma unroll
    for (int v = 0; v < UNROLL; ++v) {
      const Four* lines = shared.lines[turn][v * ROWS + group];
      if constexpr (FOURS <= 4) {
        float s[FOURS];
#pragma unroll
        for (int i = 0; i < FOURS; ++i) s[i] = lines[i].sum();
#pragma unroll
        for (int i = 1; i < FOURS; ++i) s[0] += s[i];
        rows[v] = s[0];
      } else {
        constexpr int LANES_USED = power_of_two_from(FOURS) < 32 ? power_of_two_from(FOURS) : 32;
        float s = 0.0f;
#pragma unroll
        for (int i = 0; i < FOURS; i += LANES_USED)
          if (i + (lane & (LANES_USED - 1)) < FOURS) s += lines[i + (lane & (LANES_USED - 1))].sum();
        rows[v] = warp_sum<LANES_USED>(s);
      }
    }
  }
}

// ---- the kernel -----------------------------------------------------------------------------------------------------

struct Loaded {
  Chunk x[UNROLL][PER_THREAD];
  Chunk second[NORM == RMS ? 1 : UNROLL][NORM == RMS ? 1 : PER_THREAD];
};

extern "C" __global__ void __launch_bounds__(LANES* ROWS, MIN_BLOCKS) norm_rows(
    const T* x, const T* weight, T* out,
#if NORM != RMS
    const T* second,
#endif
#if NORM == ADD
    T* total,
#endif
    float eps, u32 rows, i64 x_stride, i64 out_stride
#if NORM != RMS
    , i64 second_stride
#endif
#if NORM == ADD
    , i64 total_stride
#endif
#if NESTED
    , u32 inner, i64 x_outer
#if NORM != RMS
    , i64 second_outer
#endif
#endif
) {
#if NORM == RMS
  const T* second = nullptr;
  const i64 second_stride = 0;
#if NESTED
  const i64 second_outer = 0;
#endif
#endif
#if NORM != ADD
  T* total = nullptr;
  const i64 total_stride = 0;
#endif
#if NESTED
  const Rows x_rows = {x_stride, x_outer, inner}, second_rows = {second_stride, second_outer, inner};
#else
  const Rows x_rows = {x_stride}, second_rows = {second_stride};
#endif
  const int group = ROWS == 1 ? 0 : threadIdx.x / LANES;
  const int thread = ROWS == 1 ? threadIdx.x : threadIdx.x % LANES;

#if LONG
  pdl_wait();
  pdl_launch();
  int turn = 0;
  for (u32 row = blockIdx.x; row < rows; row += gridDim.x, turn ^= 1) {
    const T* x_row = x + start(row, x_rows);
    const T* second_row = second + start(row, second_rows);
    const T* weight_row = weight + row % N_GROUPS * HIDDEN;
    float sum = 0.0f;
#pragma unroll 4
    for (int c = thread; c < CHUNKS; c += LANES) {
      Chunk b = {};
      const Chunk a = load_chunk<KEEP>(x_row, c, true);
      if constexpr (NORM != RMS) b = load_chunk<KEEP>(second_row, c, true);
      sum += squares(combine(a, b));
    }
    const float scale = scale_of(block_sum<LANES>(sum, turn), eps);
#pragma unroll 2
    for (int c = thread; c < CHUNKS; c += LANES) {
      Chunk b = {};
      const Chunk a = load_chunk<KEEP>(x_row, c, true);
      if constexpr (NORM != RMS) b = load_chunk<KEEP>(second_row, c, true);
      const Chunk w = load_chunk<KEEP>(weight_row, c, true);
      const Held held = combine(a, b);
      if constexpr (NORM == ADD) store_chunk<STORES>(total + start(row, total_stride), c, true, held.bits);
      store_chunk<STORES>(out + start(row, out_stride), c, true, weigh(held, scale, w));
    }
  }
#else
  __shared__ Shared shared;
  if constexpr (!IN_LANES && LINES % 4 != 0) {  // the sums that no line gives
    if (thread < FOURS * 4 - LINES)
#pragma unroll
      for (int i = 0; i < TURNS * UNROLL; ++i)
        reinterpret_cast<float*>(shared.lines[i % TURNS][i / TURNS * ROWS + group])[LINES + thread] = 0.0f;
  }

  constexpr int WEIGHTS = ONE_GROUP ? 1 : UNROLL;
  constexpr bool ONCE = ONE_GROUP && (PERSISTENT || WEIGHT_EARLY);  // the weight is read before the first row
  Chunk w[WEIGHTS][PER_THREAD];
  auto fetch_weight = [&](u32 first) {
#pragma unroll
    for (int u = 0; u < WEIGHTS; ++u)
#pragma unroll
      for (int k = 0; k < PER_THREAD; ++k)
        w[u][k] = load_chunk<LOADS == ORDERED ? ORDERED : KEEP>(weight + (ONE_GROUP ? 0 : (first + u * ROWS) % N_GROUPS * HIDDEN), k * LANES + thread,
                                   has_chunk(k, thread));
  };
  auto fetch = [&](Loaded& into, u32 first) {
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      const u32 row = first + u * ROWS;
      const bool exists = ALL_ROWS || row < rows;
      const T* x_row = x + start(row, x_rows);
      const T* second_row = second + start(row, second_rows);
#pragma unroll
      for (int k = 0; k < PER_THREAD; ++k) {
        const bool here = exists && has_chunk(k, thread);
        into.x[u][k] = load_chunk<LOADS>(x_row, k * LANES + thread, here);
        if constexpr (NORM != RMS) into.second[u][k] = load_chunk<LOADS>(second_row, k * LANES + thread, here);
      }
    }
  };

  if constexpr (ONCE && WEIGHT_EARLY) fetch_weight(0);
  pdl_wait();
  pdl_launch();
  u32 block = blockIdx.x * BATCH;  // the first row of this block's batch
  Loaded loaded;
  // The weight first: what waits for x waits for all that was asked for before it, and ORDERED keeps the order.
  if constexpr (!(ONCE && WEIGHT_EARLY)) fetch_weight(block + group);
  fetch(loaded, block + group);
  int turn = 0;
  while (true) {
    const u32 next = block + gridDim.x * BATCH;
    Held held[UNROLL][PER_THREAD];
    float sums[UNROLL * PER_THREAD], row_sum[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      const u32 row = block + group + u * ROWS;
      const bool exists = ALL_ROWS || row < rows;
      T* total_row = total + start(row, total_stride);
#pragma unroll
      for (int k = 0; k < PER_THREAD; ++k) {
        held[u][k] = combine(loaded.x[u][k], loaded.second[NORM == RMS ? 0 : u][NORM == RMS ? 0 : k]);
        sums[u * PER_THREAD + k] = squares(held[u][k]);
        if constexpr (NORM == ADD)
          store_chunk<STORES>(total_row, k * LANES + thread, exists && has_chunk(k, thread), held[u][k].bits);
      }
    }
    if constexpr (PERSISTENT && PREFETCH) {
      if (next < rows) fetch(loaded, next + group);
    }
    row_sums(sums, row_sum, shared, group, thread, turn);
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      const u32 row = block + group + u * ROWS;
      const bool exists = ALL_ROWS || row < rows;
      const float scale = scale_of(row_sum[u], eps);
      T* out_row = out + start(row, out_stride);
#pragma unroll
      for (int k = 0; k < PER_THREAD; ++k)
        store_chunk<STORES>(out_row, k * LANES + thread, exists && has_chunk(k, thread),
                            weigh(held[u][k], scale, w[ONE_GROUP ? 0 : u][k]));
    }
    if constexpr (!PERSISTENT) break;
    if (next >= rows) break;
    block = next;
    turn ^= 1;
    if constexpr (!ONCE) fetch_weight(block + group);
    if constexpr (!PREFETCH) fetch(loaded, block + group);
  }
#endif
}
