// In place of csrc/common.cuh: a kernel as C++ of the host, run by fibres that all go on to their next shuffle or barrier
// in turn. So a thread's indices, the lanes that share a scale and every access can be looked at without a GPU.
#pragma once

#include <ucontext.h>

#include <memory>
#include <utility>
#include <vector>

#include "machine_on_host.h"

#define __global__
#define __launch_bounds__(...)

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

struct Index {
  u32 x;
};
struct Fibre {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Index index;
  u32 exchanges = 0;
  bool done = false;
};
static std::vector<Fibre> fibres;
static ucontext_t scheduler;
static Fibre* current = nullptr;
static Index blockIdx, blockDim, gridDim;
#define threadIdx (current->index)
static long faults = 0;

static std::vector<float> lanes[2];
static float exchange(float x, u32 with) {
  std::vector<float>& slots = lanes[current->exchanges++ & 1];
  slots[current->index.x] = x;
  swapcontext(&current->context, &scheduler);
  return slots[with];
}

struct alignas(2) bf16 {
  u16 bits;
};
struct alignas(2) fp16 {
  u16 bits;
};
struct alignas(1) e4m3 {
  u8 bits;
};
typedef float fp32;
static float to_float(float x) { return x; }
static float to_float(bf16 x) { return __uint_as_float(static_cast<u32>(x.bits) << 16); }
static float to_float(fp16 x) {
  _Float16 y;
  std::memcpy(&y, &x, 2);
  return static_cast<float>(y);
}
template <typename T>
T from_float(float x);
template <>
float from_float<float>(float x) {
  return x;
}
template <>
bf16 from_float<bf16>(float x) {
  const u32 bits = __float_as_uint(x);
  if (x != x) return bf16{0x7fff};
  return bf16{static_cast<u16>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
template <>
fp16 from_float<fp16>(float x) {
  const _Float16 y = static_cast<_Float16>(x);
  fp16 z;
  std::memcpy(&z, &y, 2);
  return z;
}
template <>
e4m3 from_float<e4m3>(float x) {
  if (x != x) return e4m3{0x7f};
  const u8 sign = std::signbit(x) ? 0x80 : 0;
  const float size = std::fabs(x);
  if (size >= 448.0f) return e4m3{static_cast<u8>(sign | 0x7e)};
  int exponent = size > 0.0f ? std::ilogb(size) : -6;
  if (exponent < -6) exponent = -6;
  int steps = static_cast<int>(std::nearbyint(std::ldexp(static_cast<double>(size), 3 - exponent)));  // 8 to 16, or fewer
  return e4m3{static_cast<u8>(sign | (((exponent + 6) << 3) + steps))};
}
template <typename T>
float round_to(float x) {
  return to_float(from_float<T>(x));
}

template <typename T, int N>
struct alignas(sizeof(T) * N) Vec {
  T v[N];
};
template <typename T, int N>
void to_floats(const Vec<T, N>& from, float (&to)[N]) {
  for (int i = 0; i < N; ++i) to[i] = to_float(from.v[i]);
}
template <typename T, int N>
Vec<T, N> from_floats(const float (&from)[N]) {
  Vec<T, N> to;
  for (int i = 0; i < N; ++i) to.v[i] = from_float<T>(from[i]);
  return to;
}

static void look(const void* at, int bytes) {
  if (reinterpret_cast<u64>(at) % bytes) ++faults;
}
enum Cache { KEEP, STREAM, CONST, FIRST };
template <int BYTES, Cache CACHE>
struct Access {
  static void load(void* to, const void* from) {
    look(from, BYTES);
    std::memcpy(to, from, BYTES);
  }
  static void store(void* to, const void* from) {
    look(to, BYTES);
    std::memcpy(to, from, BYTES);
  }
};
template <int N, Cache CACHE = KEEP, typename T>
Vec<T, N> load(const T* from) {
  Vec<T, N> to;
  Access<sizeof(T) * N, CACHE>::load(&to, from);
  return to;
}
template <Cache CACHE = KEEP, typename T, int N>
void store(T* to, const Vec<T, N>& from) {
  Access<sizeof(T) * N, CACHE>::store(to, &from);
}

struct Add {
  static constexpr float NEUTRAL = 0.0f;
  static float of(float a, float b) { return a + b; }
};
template <typename OP, int WIDTH>
float warp_reduce(float x) {
  for (int offset = WIDTH / 2; offset > 0; offset /= 2) x = OP::of(x, exchange(x, threadIdx.x ^ offset));
  return x;
}
template <typename OP, int THREADS>
float block_reduce(float x, int) {
  if (blockDim.x != THREADS) ++faults;
  x = warp_reduce<OP, 32>(x);
  float all = OP::NEUTRAL;
  for (u32 first = 0; first < THREADS; first += 32) all = OP::of(all, exchange(x, first));
  return all;
}

static float rsqrtf(float x) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(x))); }
enum Entry { EARLY, LATE, ENDED };
static void pdl_wait() {}
static void pdl_launch() {}

// ---- launching: run(grid, block, pointers to the arguments) -> accesses that were not aligned -----------------------

template <typename... A, size_t... I>
static void invoke(void (*kernel)(A...), void** values, std::index_sequence<I...>) {
  kernel(*static_cast<A*>(values[I])...);
}
template <typename... A>
static void invoke(void (*kernel)(A...), void** values) {
  invoke(kernel, values, std::index_sequence_for<A...>{});
}
static void (*body)(void**);
static void** arguments;
static void start() {
  body(arguments);
  current->done = true;
  swapcontext(&current->context, &scheduler);
}
static long run_blocks(u32 grid, u32 block, void** values, void (*what)(void**)) {
  faults = 0, body = what, arguments = values, gridDim.x = grid, blockDim.x = block;
  for (auto& slots : lanes) slots.assign(block, 0.0f);
  fibres.resize(block);
  for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x) {
    for (u32 i = 0; i < block; ++i) {
      Fibre& fibre = fibres[i];
      if (!fibre.stack) fibre.stack.reset(new char[1 << 16]);
      getcontext(&fibre.context);
      fibre.context.uc_stack.ss_sp = fibre.stack.get();
      fibre.context.uc_stack.ss_size = 1 << 16;
      fibre.context.uc_link = nullptr;
      fibre.index.x = i, fibre.exchanges = 0, fibre.done = false;
      makecontext(&fibre.context, start, 0);
    }
    for (bool going = true; going;) {
      going = false;
      for (Fibre& fibre : fibres)
        if (!fibre.done) {
          current = &fibre;
          swapcontext(&scheduler, &fibre.context);
          going |= !fibre.done;
        }
    }
  }
  return faults;
}
#define HOST_ENTRY(KERNEL)                                                  \
  extern "C" long run(u32 grid, u32 block, void** values) {                 \
    return run_blocks(grid, block, values, [](void** v) { invoke(KERNEL, v); }); \
  }
