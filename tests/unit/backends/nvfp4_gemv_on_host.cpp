// csrc/nvfp4_gemv.cu as C++ of the host: the threads of a cluster of blocks are fibres that change places at every
// barrier and matrix product, so that indices, layouts and barriers are checked without a GPU. A load that is not aligned
// or lies outside what was given ends the program; shared memory begins as NaN.
#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#define DEVICE inline
#define __global__
#define __restrict__
#define __launch_bounds__(...)
#define OF_A_CLUSTER
#define SHARED_SPACE(name) u8* const name = shared[current->block].data()

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
  Index thread, block_index;
  u32 block;  // of its cluster
  bool done = false;
};
static std::vector<Fibre> fibres;
static std::vector<std::vector<u8>> shared;
static ucontext_t scheduler;
static Fibre* current = nullptr;
#define threadIdx (current->thread)
#define blockIdx (current->block_index)

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
struct Fragments {
  u32 a[4], b[2];
};
static Barrier cluster, of_block[8], of_warp[8][32];
static Fragments held[8][32][2][32];

static void __syncthreads() { of_block[current->block].wait(WARPS * 32); }
static void cluster_barrier() { cluster.wait(WARPS * 32 * CLUSTER); }
static void pdl_wait() {}
static void pdl_launch() {}
static void copies_done() {}
static int min(int a, int b) { return a < b ? a : b; }
static u32 __funnelshift_l(u32 low, u32 high, int by) { return high << by | low >> (32 - by); }
static u32 __byte_perm(u32 a, u32, u32 select) {
  u32 y = 0;
  for (int i = 0; i < 4; ++i) y |= (a >> (8 * (select >> (4 * i) & 7)) & 0xff) << (8 * i);
  return y;
}

static float as_float(u32 x) {
  float y;
  std::memcpy(&y, &x, 4);
  return y;
}
struct bf16 {
  u16 bits;
};
struct fp16 {
  u16 bits;
};
typedef float fp32;
static float to_float(bf16 x) { return as_float(static_cast<u32>(x.bits) << 16); }
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
  u32 bits;
  std::memcpy(&bits, &x, 4);
  return bf16{static_cast<u16>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
template <>
fp16 from_float<fp16>(float x) {
  const _Float16 y = static_cast<_Float16>(x);
  fp16 z;
  std::memcpy(&z, &y, 2);
  return z;
}
template <typename T>
static float half_of(u32 pair, int which) {
  return to_float(T{static_cast<u16>(pair >> (16 * which))});
}
template <typename T>
static u32 scaled(u32 r, float by) {
  u32 y = 0;
  for (int i = 0; i < 2; ++i) {
    const float exact = half_of<T>(r, i) * by;
    const T rounded = from_float<T>(exact);
    if (exact == exact && to_float(rounded) != exact) {
      std::fprintf(stderr, "a decoded value is rounded: %g\n", exact);
      abort();
    }
    y |= static_cast<u32>(rounded.bits) << (16 * i);
  }
  return y;
}

template <typename T>
struct Half2 {
  static constexpr bool WIDE = sizeof(T) == 2 && std::is_same<T, bf16>::value;
  static u32 scales(u32 bits) { return WIDE ? (bits & 0x0FF00FF0u) | 0x70007000u : (bits & 0x0FF00FF0u) << 3; }
  static u32 place(u32 r) { return WIDE ? r : (r & 0x80008000u) | ((r << 3) & 0x0E000E00u); }
  static u32 times_low(u32 r, u32 s) { return scaled<T>(r, half_of<T>(s, 0)); }
  static u32 times_high(u32 r, u32 s) { return scaled<T>(r, half_of<T>(s, 1)); }
  static void mma(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Barrier& all = of_warp[current->block][warp];
    Fragments* lanes = held[current->block][warp][all.turn & 1];
    lanes[lane] = Fragments{{a0, a1, a2, a3}, {b0, b1}};
    all.wait(32);
    for (int i = 0; i < 4; ++i) {  // c0, c1: row g, columns 2t, 2t + 1; c2, c3: row g + 8
      const int row = lane / 4, column = lane % 4 * 2 + i % 2;
      for (int k = 0; k < 16; ++k) {
        const int t = k % 8 / 2, upper = k / 8;
        const float a = half_of<T>(lanes[row * 4 + t].a[2 * upper + i / 2], k % 2);
        const float b = half_of<T>(lanes[column * 4 + t].b[upper], k % 2);
        c[i] += a * b;
      }
    }
  }
};

static std::vector<std::pair<u64, u64>> readable;
static void check(const void* at, int bytes) {
  const u64 address = reinterpret_cast<u64>(at);
  if (address % bytes == 0)
    for (const auto& [begin, end] : readable)
      if (address >= begin && address + bytes <= end) return;
  std::fprintf(stderr, "a load of %d bytes not aligned, or outside of every tensor\n", bytes);
  abort();
}
static void copy_async(void* to, const void* from, bool inside) {
  check(from, 16);
  if (reinterpret_cast<u64>(to) % 16) abort();
  inside ? std::memcpy(to, from, 16) : std::memset(to, 0, 16);
}
static float read_sum(const float* at, int rank) {
  const u8* mine = shared[current->block].data();
  return *reinterpret_cast<const float*>(shared[rank].data() + (reinterpret_cast<const u8*>(at) - mine));
}
enum Cache { KEEP, STREAM, CONST };
template <typename T, int N>
struct alignas(sizeof(T) * N) Vec {
  T v[N];
};
template <int N, Cache CACHE = KEEP, typename T>
Vec<T, N> load(const T* from) {
  check(from, sizeof(T) * N);
  Vec<T, N> to;
  std::memcpy(&to, from, sizeof(to));
  return to;
}

#include GEMV

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
  invoke(&nvfp4_gemv, given);
  current->done = true;
  yield();
}

// `ranges`: begin and end of each of `count` tensors that may be read.
extern "C" void run(int grid, int shared_bytes, void** values, const u64* ranges, int count) {
  readable.clear();
  for (int i = 0; i < count; ++i) readable.push_back({ranges[2 * i], ranges[2 * i + 1]});
  given = values;
  for (int first = 0; first < grid; first += CLUSTER) {
    shared.assign(CLUSTER, std::vector<u8>(shared_bytes, 0xff));
    fibres.clear();
    fibres.resize(CLUSTER * WARPS * 32);
    for (u32 i = 0; i < fibres.size(); ++i) {
      Fibre& one = fibres[i];
      one.block = i / (WARPS * 32);
      one.thread.x = i % (WARPS * 32);
      one.block_index.x = first + one.block;
      one.stack.reset(new char[1 << 16]);
      getcontext(&one.context);
      one.context.uc_stack.ss_sp = one.stack.get();
      one.context.uc_stack.ss_size = 1 << 16;
      one.context.uc_link = &scheduler;
      makecontext(&one.context, body, 0);
    }
    for (bool left = true; left;) {
      left = false;
      for (Fibre& one : fibres)
        if (!one.done) {
          current = &one;
          swapcontext(&scheduler, &one.context);
          left = true;
        }
    }
  }
}
