// act(gate) * up for x [rows, 2H] = [gate, up], or act(x) for x [rows, H]; out [rows, H]. Any row stride.
//
// A thread's turn is UNROLL accesses of ACCESS_BYTES each (of gate, and of up). The accesses of all rows are numbered
// through, so that no thread idles at the end of a row whatever H is; a multiplication finds the row. A grid smaller
// than the work goes round. A thread reads all it needs for a result before it writes it, so out may be x.
//
//   DTYPE   bf16, fp16, fp32      ACT     a name of formulas.cuh     GATED   1: [gate, up], 0: unary
//   ROUNDS  1: the product is rounded; 2: the activated gate is, then the product
//   ACCESS_BYTES   x, out, up and every row are aligned to it        UNROLL
//   LOADS, STORES   KEEP, STREAM, ... of common.cuh      LAUNCH   EARLY, LATE or ENDED of common.cuh
#include "common.cuh"
#include "formulas.cuh"
#include "together.cuh"

constexpr int N = ACCESS_BYTES / sizeof(DTYPE);
typedef Vec<DTYPE, N> Part;

struct Place {  // of one access
  const DTYPE* from;
  DTYPE* to;
};

// accesses = rows * per_row < 2^31, and (n * magic) >> shift is n / per_row. nothing is 0, see together.cuh.
extern "C" __global__ void __launch_bounds__(UNROLL > 2 ? 512 : 1024)
activation(const DTYPE* x, DTYPE* out, u32 accesses, u32 per_row, u32 magic, u32 shift, u32 nothing, i64 x_stride,
           i64 out_stride) {
  const u32 turn = blockDim.x * UNROLL;
  auto place = [&](u32 n) {
    const u32 row = static_cast<u32>((static_cast<u64>(n) * magic) >> shift);
    const u32 column = (n - row * per_row) * N;
    return Place{x + (row * x_stride + column), out + (row * out_stride + column)};
  };
  const i64 to_up = static_cast<i64>(per_row) * N;
  if constexpr (LAUNCH == EARLY) pdl_launch();
  pdl_wait();
  for (u32 first = blockIdx.x * turn; first < accesses; first += gridDim.x * turn) {
    const u32 mine = first + threadIdx.x;
    auto finish = [&](auto& gate, auto& up, const auto& at, auto count) {
      constexpr int COUNT = decltype(count)::value;
      if constexpr (GATED) together<COUNT>(gate, up, nothing);
      else if constexpr (COUNT > 1) together<COUNT>(gate, nothing);
#pragma unroll
      for (int u = 0; u < COUNT; ++u) {
        float value[N], factor[N];
        widen(gate[u], value);
        if constexpr (GATED) widen(up[u], factor);
#pragma unroll
        for (int i = 0; i < N; ++i) {
          value[i] = ACT::of<DTYPE>(value[i]);
          if constexpr (GATED) {
            if constexpr (ROUNDS == 2) value[i] = round_to<DTYPE>(value[i]);
            value[i] *= factor[i];
          }
        }
        store<STORES>(at[u].to, from_floats<DTYPE, N>(value));
      }
    };
    auto start = [&](Part& gate, Part& up, Place& at, u32 n) {
      at = place(n);
      gate = load<N, LOADS>(at.from);
      if constexpr (GATED) up = load<N, LOADS>(at.from + to_up);
    };
    if (UNROLL > 1 && first + turn <= accesses) {  // every access of every thread of the block is there
      Part gate[UNROLL], up[UNROLL];
      Place at[UNROLL];
#pragma unroll
      for (int u = 0; u < UNROLL; ++u) start(gate[u], up[u], at[u], mine + u * blockDim.x);
      finish(gate, up, at, Count<UNROLL>());
    } else {
#pragma unroll 1
      for (int u = 0; u < UNROLL; ++u) {
        const u32 n = mine + u * blockDim.x;
        if (n >= accesses) break;
        Part gate[1], up[1];
        Place at[1];
        start(gate[0], up[0], at[0], n);
        finish(gate, up, at, Count<1>());
      }
    }
  }
  if constexpr (LAUNCH == LATE) pdl_launch();
}
