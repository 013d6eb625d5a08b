// csrc/norms.cu as C++ of the host: the threads of a block are fibres that change places at every barrier and shuffle,
// so that its indices, its tree of sums and its barriers can be checked without a GPU. A load or store that is not
// aligned to its width, or that lies outside what was given, ends the program.
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#define DEVICE inline
#define __global__
#define __shared__ static
#define __launch_bounds__(...)

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

struct Index {
  u32 x;
};

// ---- a block of fibres ----------------------------------------------------------------------------------------------

struct Fibre {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Index index;
  bool done = false;
};
static std::vector<Fibre> fibres;
static ucontext_t scheduler;
static Fibre* current = nullptr;
static u32 block_size = 0;
static Index blockIdx, gridDim;
#define threadIdx (current->index)

static void yield() { swapcontext(&current->context, &scheduler); }

struct Barrier {
  u32 arrived = 0, turn = 0;
  void wait(u32 size) {
    const u32 mine = turn;
    if (++arrived == size) {
      arrived = 0;
      ++turn;
    } else {
      while (turn == mine) yield();
    }
  }
};
static Barrier block_barrier, warp_barrier[32];
static float exchanged[32][2][32];

static void __syncthreads() { block_barrier.wait(block_size); }
static void __syncwarp() { warp_barrier[threadIdx.x / 32].wait(32); }
static float __shfl_xor_sync(u32 mask, float x, int offset) {
  if (mask != 0xffffffffu) abort();
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, turn = warp_barrier[warp].turn & 1;
  exchanged[warp][turn][lane] = x;
  __syncwarp();
  return exchanged[warp][turn][lane ^ offset];
}

// ---- what common.cuh offers -----------------------------------------------------------------------------------------

static float __uint_as_float(u32 x) {
  float y;
  std::memcpy(&y, &x, 4);
  return y;
}
static u32 __float_as_uint(float x) {
  u32 y;
  std::memcpy(&y, &x, 4);
  return y;
}
static float __fmul_rn(float a, float b) { return a * b; }
static float __fadd_rn(float a, float b) { return a + b; }
static float rsqrtf(float x) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(x))); }
static float approximate_reciprocal(float x) { return std::fabs(x) > 0x1p126f ? 0.0f : 1.0f / x; }
static void pdl_wait() {}
static void pdl_launch() {}

struct bf16 {
  u16 bits;
};
struct fp16 {
  u16 bits;
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
  return bf16{static_cast<u16>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
template <>
fp16 from_float<fp16>(float x) {
  const _Float16 y = static_cast<_Float16>(x);
  fp16 z;
  std::memcpy(&z, &y, 2);
  return z;
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
constexpr int power_of_two_from(int n) {
  int p = 1;
  while (p < n) p *= 2;
  return p;
}
template <int WIDTH = 32>
float warp_sum(float x) {
  for (int offset = WIDTH / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}
template <int THREADS>
float block_sum(float x, int turn) {
  static float parts[2][32];
  x = warp_sum<>(x);
  if (threadIdx.x % 32 == 0) parts[turn & 1][threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0.0f;
  for (int i = 0; i < THREADS / 32; ++i) sum += parts[turn & 1][i];
  return sum;
}

static std::vector<std::pair<u64, u64>> readable, writable;
static void check(const std::vector<std::pair<u64, u64>>& known, const void* at, int bytes, const char* what) {
  const u64 address = reinterpret_cast<u64>(at);
  if (address % bytes) {
    std::fprintf(stderr, "%s of %d bytes at %llu\n", what, bytes, address);
    abort();
  }
  for (const auto& [begin, end] : known)
    if (address >= begin && address + bytes <= end) return;
  std::fprintf(stderr, "%s of %d bytes outside of every tensor\n", what, bytes);
  abort();
}
enum Cache { KEEP, STREAM, CONST };
template <int BYTES, Cache CACHE>
struct Access {
  static void load(void* to, const void* from) {
    check(readable, from, BYTES, "load");
    std::memcpy(to, from, BYTES);
  }
  static void store(void* to, const void* from) {
    check(writable, to, BYTES, "store");
    std::memcpy(to, from, BYTES);
  }
};
template <int BYTES>
void ordered_load(void* to, const void* from) {
  Access<BYTES, KEEP>::load(to, from);
}

#include NORMS

// ---- launching it ---------------------------------------------------------------------------------------------------

template <typename... A, size_t... I>
static void invoke(void (*kernel)(A...), void** values, std::index_sequence<I...>) {
  kernel(*static_cast<A*>(values[I])...);
}
template <typename... A>
static void invoke(void (*kernel)(A...), void** values) {
  invoke(kernel, values, std::index_sequence_for<A...>{});
}
static void** given = nullptr;
static void body() {
  invoke(&norm_rows, given);
  current->done = true;
  yield();
}

// ranges: begin and end of what may be read (and, from `first_out` on, written).
extern "C" void launch(u32 grid, u32 threads, void** values, const u64* ranges, int count, int first_out) {
  given = values;
  block_size = threads;
  gridDim.x = grid;
  readable.clear();
  writable.clear();
  for (int i = 0; i < count; ++i) {
    readable.emplace_back(ranges[2 * i], ranges[2 * i + 1]);
    if (i >= first_out) writable.emplace_back(ranges[2 * i], ranges[2 * i + 1]);
  }
  constexpr size_t STACK = 128 * 1024;
  if (fibres.size() < threads) fibres.resize(threads);
  for (u32 block = 0; block < grid; ++block) {
    blockIdx.x = block;
    for (u32 i = 0; i < threads; ++i) {
      Fibre& fibre = fibres[i];
      if (!fibre.stack) fibre.stack.reset(new char[STACK]);
      getcontext(&fibre.context);
      fibre.context.uc_stack.ss_sp = fibre.stack.get();
      fibre.context.uc_stack.ss_size = STACK;
      fibre.context.uc_link = &scheduler;
      fibre.index.x = i;
      fibre.done = false;
      makecontext(&fibre.context, body, 0);
    }
    int rounds = 0;
    for (bool busy = true; busy;) {
      busy = false;
      if (++rounds > 1000000) {
        std::fprintf(stderr, "the threads of a block wait for each other\n");
        abort();
      }
      for (u32 i = 0; i < threads; ++i) {
        current = &fibres[block % 2 ? threads - 1 - i : i];
        if (current->done) continue;
        busy = true;
        swapcontext(&scheduler, &current->context);
      }
    }
  }
}
