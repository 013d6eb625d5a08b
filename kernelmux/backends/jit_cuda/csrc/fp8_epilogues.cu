// silu_and_mul and rms_norm that end in e4m3: the fp32 product is divided by a scale and rounded once, saturating.
//
// EPILOGUE   BLOCK_SCALES: act(gate) * up with a scale for every 128 values of a row, the accesses of all rows numbered
//            through as in activations.cu. ROW_SCALES: rms_norm, a scale a row (or one that is given).
// DTYPE      bf16, fp16, fp32       ELEMENTS   of a chunk, what a thread holds at a time
// ACCESS_BYTES, OUT_BYTES   a chunk of x (of weight too), and of out, is read and written in pieces of so many bytes
// LOADS, STORES             KEEP, STREAM, ... of common.cuh      LAUNCH   EARLY, LATE or ENDED of common.cuh
// QUICK 1: a second division, for scales that are far from overflow
// Of BLOCK_SCALES: ACT, UNROLL. Of ROW_SCALES: HIDDEN, LANES threads a row, ROWS rows a block (1 unless LANES is 32),
// WEIGHT_BIAS, STATIC (the scale is given), LONG (a row does not fit into registers: it is read again).
#include "common.cuh"
#include "formulas.cuh"
#include "together.cuh"

#define BLOCK_SCALES 1
#define ROW_SCALES 2

constexpr int N = ELEMENTS;
constexpr float LARGEST = 448.0f, LEAST = 1e-10f;
typedef Vec<DTYPE, N> Part;

DEVICE Part load_part(const DTYPE* from) {
  constexpr int PIECE = ACCESS_BYTES / sizeof(DTYPE);
  Part to;
#pragma unroll
  for (int i = 0; i < N; i += PIECE) Access<ACCESS_BYTES, LOADS>::load(&to.v[i], from + i);
  return to;
}
DEVICE Part load_weight(const DTYPE* from) {
  constexpr int PIECE = ACCESS_BYTES / sizeof(DTYPE);
  Part to;
#pragma unroll
  for (int i = 0; i < N; i += PIECE) Access<ACCESS_BYTES, KEEP>::load(&to.v[i], from + i);
  return to;
}
DEVICE void store_part(e4m3* to, const Vec<e4m3, N>& from) {
#pragma unroll
  for (int i = 0; i < N; i += OUT_BYTES) Access<OUT_BYTES, STORES>::store(to + i, &from.v[i]);
}

struct Largest {  // of magnitudes; a NaN stays one
  static constexpr float NEUTRAL = 0.0f;
  static DEVICE float of(float a, float b) { return larger(a, b); }
};
DEVICE float largest_of(const float (&value)[N], float so_far) {
#pragma unroll
  for (int i = 0; i < N; ++i) so_far = Largest::of(so_far, fabsf(value[i]));
  return so_far;
}

// a / b to the last bit, given 1 / b, without the branch of a division: the remainder corrects the product. Infinities
// have no remainder, their product is right already.
DEVICE float quotient(float a, float b, float reciprocal) {
  const float near = times(a, reciprocal);
  const float better = fma_near(fma_near(-near, b, a), reciprocal, near);
  return better == better ? better : near;
}
DEVICE float scale_for(float largest) { return quotient(Largest::of(largest, LEAST), LARGEST, 1.0f / LARGEST); }
DEVICE float reciprocal_of(float scale) {  // of a normal number, infinity or NaN
  const float near = reciprocal_near(scale);
  const float better = fma_near(fma_near(-scale, near, 1.0f), near, near);
  return better == better ? better : near;
}

// 1 / scale as a sum of two floats: an fma with it and a multiplication give a / scale to the last bit too, with one
// instruction less and no question asked, where scale is far from overflow and so is every value (of which it is the
// largest, over 448). There the arithmetic is what bounds these kernels.
constexpr float FAR_FROM_OVERFLOW = 1e30f;
struct Inverse {
  float near, rest;
};
DEVICE Inverse inverse_of(float scale) {
  const float near = reciprocal_of(scale);
  return Inverse{near, times(fma_near(-scale, near, 1.0f), near)};
}
template <bool SHORT>
DEVICE Vec<e4m3, N> divided(float (&value)[N], float scale, Inverse by) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if constexpr (SHORT) value[i] = fma_near(value[i], by.near, times(value[i], by.rest));
    else value[i] = quotient(value[i], scale, by.near);
  }
  return from_floats<e4m3, N>(value);
}

#if EPILOGUE == BLOCK_SCALES

constexpr int LANES_OF_BLOCK = 128 / N;
static_assert(LANES_OF_BLOCK <= 32, "a block of values lies within a warp");

struct Place {
  const DTYPE* from;
  e4m3* to;
  float* scale;
};

extern "C" __global__ void __launch_bounds__(UNROLL > 1 ? 512 : 1024)
block_scales(const DTYPE* x, e4m3* out, float* scale_out, u32 accesses, u32 per_row, u32 magic, u32 shift, u32 nothing,
             i64 x_stride, i64 out_stride, i64 scale_stride) {
  const u32 turn = blockDim.x * UNROLL;
  const i64 to_up = static_cast<i64>(per_row) * N;
  auto start = [&](Part& gate, Part& up, Place& at, u32 n) {
    const u32 row = static_cast<u32>((static_cast<u64>(n) * magic) >> shift);
    const u32 column = (n - row * per_row) * N;
    at = Place{x + (row * x_stride + column), out + (row * out_stride + column),
               scale_out + (row * scale_stride + column / 128)};
    gate = load_part(at.from);
    up = load_part(at.from + to_up);
  };
  // All lanes of a warp come here together: those without an access lend their (zero) values to nobody's scale, since
  // accesses end with a block of values.
  auto finish = [&](auto& gate, auto& up, const auto& at, bool exists, auto count) {
    constexpr int COUNT = decltype(count)::value;
    together<COUNT>(gate, up, nothing);
#pragma unroll
    for (int u = 0; u < COUNT; ++u) {
      float value[N], factor[N];
      widen(gate[u], value);
      widen(up[u], factor);
#pragma unroll
      for (int i = 0; i < N; ++i) value[i] = ACT::of<DTYPE>(value[i]) * factor[i];
      const float scale = scale_for(warp_reduce<Largest, LANES_OF_BLOCK>(largest_of(value, 0.0f)));
      const Inverse by = inverse_of(scale);
      const auto stored = QUICK && scale < FAR_FROM_OVERFLOW ? divided<QUICK != 0>(value, scale, by)
                                                             : divided<false>(value, scale, by);
      if (exists) {
        store_part(at[u].to, stored);
        if (threadIdx.x % LANES_OF_BLOCK == 0) *at[u].scale = scale;
      }
    }
  };
  if constexpr (LAUNCH == EARLY) pdl_launch();
  pdl_wait();
  for (u32 first = blockIdx.x * turn; first < accesses; first += gridDim.x * turn) {
    const u32 mine = first + threadIdx.x;
    if (UNROLL > 1 && first + turn <= accesses) {
      Part gate[UNROLL], up[UNROLL];
      Place at[UNROLL];
#pragma unroll
      for (int u = 0; u < UNROLL; ++u) start(gate[u], up[u], at[u], mine + u * blockDim.x);
      finish(gate, up, at, true, Count<UNROLL>());
    } else {
#pragma unroll 1
      for (int u = 0; u < UNROLL; ++u) {
        const u32 n = mine + u * blockDim.x;
        Part gate[1] = {}, up[1] = {};
        Place at[1] = {};
        if (n < accesses) start(gate[0], up[0], at[0], n);
        finish(gate, up, at, n < accesses, Count<1>());
      }
    }
  }
  if constexpr (LAUNCH == LATE) pdl_launch();
}

#else

constexpr int CHUNKS = HIDDEN / N;
constexpr int HELD = (CHUNKS + LANES - 1) / LANES;
static_assert(HIDDEN % N == 0 && LANES % 32 == 0 && (ROWS == 1 || LANES == 32), "a row is whole chunks and whole warps");

template <typename OP>
DEVICE float row_reduce(float x) {
  if constexpr (LANES == 32) return warp_reduce<OP, 32>(x);
  else return block_reduce<OP, LANES>(x, 0);
}

// As torch does it: the mean is the sum times the reciprocal of the count. rsqrtf is improved to the last place.
DEVICE float normaliser(float sum, float eps) {
  const float mean = plus(times(sum, 1.0f / HIDDEN), eps), near = rsqrtf(mean);
  const float better = fmaf(0.5f * near, fmaf(-mean * near, near, 1.0f), near);
  return better < 3.0e38f && near > 0.0f ? better : near;
}

DEVICE float squares(const Part& part) {
  float value[N], sum = 0.0f;
  widen(part, value);
#pragma unroll
  for (int i = 0; i < N; ++i) sum = fma_near(value[i], value[i], sum);
  return sum;
}
DEVICE void weigh(const Part& part, const Part& weight, float factor, float (&value)[N]) {
  float by[N];
  widen(part, value);
  widen(weight, by);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if constexpr (WEIGHT_BIAS) by[i] = plus(by[i], static_cast<float>(WEIGHT_BIAS));
    value[i] = times(times(value[i], factor), by[i]);
  }
}

extern "C" __global__ void __launch_bounds__(LANES * ROWS)
row_scales(const DTYPE* x, const DTYPE* weight, const float* scale_in, e4m3* out, float* scale_out, u32 rows, u32 nothing,
           float eps, i64 x_stride, i64 out_stride, i64 scale_stride) {
  const u32 row = blockIdx.x * ROWS + threadIdx.x / LANES;
  const int thread = threadIdx.x % LANES;
  if constexpr (LAUNCH == EARLY) pdl_launch();
  pdl_wait();
  if (row >= rows) return;  // a whole warp, and then nobody waits for it: neither does the next kernel
  x += row * x_stride;
  out += row * out_stride;
  float scale;
  if constexpr (STATIC) scale = *scale_in;
  auto settle = [&](float largest) {
    if constexpr (!STATIC) {
      scale = scale_for(row_reduce<Largest>(largest));
      if (thread == 0) scale_out[row * scale_stride] = scale;
    } else if (blockIdx.x == 0 && threadIdx.x == 0 && scale_out != scale_in) {
      *scale_out = scale;
    }
    return STATIC ? Inverse{over(1.0f, scale), 0.0f} : inverse_of(scale);
  };
  if constexpr (!LONG) {
    Part held[HELD], by[HELD];
#pragma unroll
    for (int k = 0; k < HELD; ++k) {
      const int chunk = k * LANES + thread;
      held[k] = by[k] = Part{};
      if ((k + 1) * LANES <= CHUNKS || chunk < CHUNKS) {
        held[k] = load_part(x + chunk * N);
        by[k] = load_weight(weight + chunk * N);
      }
    }
    together<HELD>(held, by, nothing);
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < HELD; ++k) sum += squares(held[k]);
    const float factor = normaliser(row_reduce<Add>(sum), eps);
    float largest = 0.0f;
    if constexpr (!STATIC) {
#pragma unroll
      for (int k = 0; k < HELD; ++k) {
        float value[N];
        weigh(held[k], by[k], factor, value);
        largest = largest_of(value, largest);
      }
    }
    const Inverse inverse = settle(largest);
    auto finish = [&](auto quick) {
#pragma unroll
      for (int k = 0; k < HELD; ++k) {
        const int chunk = k * LANES + thread;
        float value[N];
        weigh(held[k], by[k], factor, value);
        const auto stored = divided<decltype(quick)::value != 0>(value, scale, inverse);
        if ((k + 1) * LANES <= CHUNKS || chunk < CHUNKS) store_part(out + chunk * N, stored);
      }
    };
    if (QUICK && !STATIC && scale < FAR_FROM_OVERFLOW) finish(Count<QUICK>());
    else finish(Count<0>());
  } else {
    float sum = 0.0f;
    for (int chunk = thread; chunk < CHUNKS; chunk += LANES) sum += squares(load_part(x + static_cast<i64>(chunk) * N));
    const float factor = normaliser(row_reduce<Add>(sum), eps);
    float value[N], largest = 0.0f;
    if constexpr (!STATIC) {
      for (int chunk = thread; chunk < CHUNKS; chunk += LANES) {
        const i64 at = static_cast<i64>(chunk) * N;
        weigh(load_part(x + at), load_weight(weight + at), factor, value);
        largest = largest_of(value, largest);
      }
    }
    const Inverse inverse = settle(largest);
    for (int chunk = thread; chunk < CHUNKS; chunk += LANES) {
      const i64 at = static_cast<i64>(chunk) * N;
      weigh(load_part(x + at), load_weight(weight + at), factor, value);
      store_part(out + at, divided<false>(value, scale, inverse));
    }
  }
  if constexpr (LAUNCH == LATE) pdl_launch();
}

#endif
