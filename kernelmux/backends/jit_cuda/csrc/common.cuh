// What every kernel here is made of: 16-bit types, vector access, reductions, programmatic dependent launch, e4m3.
// No header of the CUDA toolkit is needed: the compiler that runs on the user's machine may come without any.
#pragma once

#ifndef VEC_BYTES  // the widest access of the GPU: 16 bytes up to 9.0, 32 from 10.0 on
#define VEC_BYTES 16
#endif

#define DEVICE __device__ __forceinline__

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

// ---- types: bits that only the conversions below look into ----------------------------------------------------------

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

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(bf16 x) { return __uint_as_float(static_cast<u32>(x.bits) << 16); }
DEVICE float to_float(fp16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}

// Rounds to nearest, ties to even. from_float<bf16>(x)
template <typename T>
DEVICE T from_float(float x);
template <>
DEVICE float from_float<float>(float x) {
  return x;
}
template <>
DEVICE bf16 from_float<bf16>(float x) {
  bf16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
template <>
DEVICE fp16 from_float<fp16>(float x) {
  fp16 y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}

// x rounded to T and back: what `x.to(dtype).float()` is.
template <typename T>
DEVICE float round_to(float x) {
  return to_float(from_float<T>(x));
}

// Two at once, the first in the low half: one instruction where the GPU has it.
template <typename T>
DEVICE u32 pack2(float low, float high);
template <>
DEVICE u32 pack2<bf16>(float low, float high) {
  u32 y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
template <>
DEVICE u32 pack2<fp16>(float low, float high) {
  u32 y;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}

// ---- e4m3: saturating, to nearest even; a NaN stays one -------------------------------------------------------------

DEVICE u8 e4m3_by_hand(float x) {
  u32 bits = __float_as_uint(x);
  const u32 sign = (bits >> 24) & 0x80u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return static_cast<u8>(0x7fu);        // NaN
  if (bits >= 0x43e00000u) return static_cast<u8>(sign | 0x7eu);  // 448 and beyond
  if (bits < 0x3c800000u) {  // below 2^-6 the step is 2^-9, which is the step of floats at 2^14
    const u32 steps = __float_as_uint(__uint_as_float(bits) + 16384.0f) - 0x46800000u;
    return static_cast<u8>(sign | steps);
  }
  bits += 0x0007ffffu + ((bits >> 20) & 1u) - (120u << 23);
  return static_cast<u8>(sign | (bits >> 20));
}

// Two at once, the first in the low byte.
DEVICE u16 to_e4m3x2(float low, float high) {
#if __CUDA_ARCH__ >= 890
  u16 y;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(y) : "f"(high), "f"(low));
  return y;
#else
  return static_cast<u16>(e4m3_by_hand(low) | (static_cast<u32>(e4m3_by_hand(high)) << 8));
#endif
}
DEVICE u8 to_e4m3(float x) { return static_cast<u8>(to_e4m3x2(x, 0.0f) & 0xffu); }

template <>
DEVICE e4m3 from_float<e4m3>(float x) {
  e4m3 y;
  y.bits = to_e4m3(x);
  return y;
}

// ---- vectors --------------------------------------------------------------------------------------------------------

template <typename T, int N>
struct alignas(sizeof(T) * N) Vec {
  static_assert(sizeof(T) * N <= 32 && (sizeof(T) * N & (sizeof(T) * N - 1)) == 0, "1, 2, 4, 8, 16 or 32 bytes");
  T v[N];
};

// How many elements one full access carries.
template <typename T>
struct Full {
  static constexpr int N = VEC_BYTES / sizeof(T);
};

template <typename T, int N>
DEVICE void to_floats(const Vec<T, N>& from, float (&to)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = to_float(from.v[i]);
}

// Rounds N floats to T, by pairs where there is an instruction for pairs.
template <typename T, int N>
struct FromFloats {
  static DEVICE Vec<T, N> make(const float (&from)[N]) {
    Vec<T, N> to;
    if constexpr (N == 1 || sizeof(T) == 4) {
#pragma unroll
      for (int i = 0; i < N; ++i) to.v[i] = from_float<T>(from[i]);
    } else if constexpr (sizeof(T) == 2) {
      u32* words = reinterpret_cast<u32*>(&to);
#pragma unroll
      for (int i = 0; i < N / 2; ++i) words[i] = pack2<T>(from[2 * i], from[2 * i + 1]);
    } else {
      u16* words = reinterpret_cast<u16*>(&to);
#pragma unroll
      for (int i = 0; i < N / 2; ++i) words[i] = to_e4m3x2(from[2 * i], from[2 * i + 1]);
    }
    return to;
  }
};
template <typename T, int N>
DEVICE Vec<T, N> from_floats(const float (&from)[N]) {
  return FromFloats<T, N>::make(from);
}

// Whether this address allows accesses of BYTES. The answer is the same in every thread of a launch.
template <int BYTES>
DEVICE bool aligned(const void* address) {
  return (reinterpret_cast<u64>(address) & (BYTES - 1)) == 0;
}

// ---- memory ---------------------------------------------------------------------------------------------------------
// Loads and stores are volatile asm, so that no compiler moves one before pdl_wait(), or a load of a row behind the
// store that overwrites it. KEEP: as the GPU likes. STREAM: read or written once, leaves the caches to others.
// CONST: through the read-only path; only for what no kernel writes meanwhile (weights), never for what is also `out`.
// FIRST (loads): in the caches as what goes first.

enum Cache { KEEP, STREAM, CONST, FIRST };

#define KMX_LOAD(KIND, SUFFIX, OUTS, FROM)                                               \
  if constexpr (CACHE == STREAM)                                                         \
    asm volatile("ld.global.L1::no_allocate." KIND " " SUFFIX ";" : OUTS : "l"(FROM));   \
  else if constexpr (CACHE == CONST)                                                     \
    asm volatile("ld.global.nc." KIND " " SUFFIX ";" : OUTS : "l"(FROM));                \
  else if constexpr (CACHE == FIRST)                                                     \
    asm volatile("ld.global.cs." KIND " " SUFFIX ";" : OUTS : "l"(FROM));                \
  else                                                                                   \
    asm volatile("ld.global." KIND " " SUFFIX ";" : OUTS : "l"(FROM))
#define KMX_STORE(KIND, SUFFIX, ...)                                                     \
  if constexpr (CACHE == STREAM)                                                         \
    asm volatile("st.global.cs." KIND " " SUFFIX ";" ::__VA_ARGS__ : "memory");          \
  else                                                                                   \
    asm volatile("st.global." KIND " " SUFFIX ";" ::__VA_ARGS__ : "memory")
#define KMX_COMMA ,

template <int BYTES, Cache CACHE>
struct Access;

template <Cache CACHE>
struct Access<1, CACHE> {
  static DEVICE void load(void* to, const void* from) {
    u16 w;
    KMX_LOAD("u8", "%0, [%1]", "=h"(w), from);
    *static_cast<u8*>(to) = static_cast<u8>(w);
  }
  static DEVICE void store(void* to, const void* from) {
    const u16 w = *static_cast<const u8*>(from);
    KMX_STORE("u8", "[%0], %1", "l"(to), "h"(w));
  }
};
template <Cache CACHE>
struct Access<2, CACHE> {
  static DEVICE void load(void* to, const void* from) {
    KMX_LOAD("u16", "%0, [%1]", "=h"(*static_cast<u16*>(to)), from);
  }
  static DEVICE void store(void* to, const void* from) {
    KMX_STORE("u16", "[%0], %1", "l"(to), "h"(*static_cast<const u16*>(from)));
  }
};
template <Cache CACHE>
struct Access<4, CACHE> {
  static DEVICE void load(void* to, const void* from) {
    KMX_LOAD("b32", "%0, [%1]", "=r"(*static_cast<u32*>(to)), from);
  }
  static DEVICE void store(void* to, const void* from) {
    KMX_STORE("b32", "[%0], %1", "l"(to), "r"(*static_cast<const u32*>(from)));
  }
};
template <Cache CACHE>
struct Access<8, CACHE> {
  static DEVICE void load(void* to, const void* from) {
    u32* w = static_cast<u32*>(to);
    KMX_LOAD("v2.b32", "{%0,%1}, [%2]", "=r"(w[0]) KMX_COMMA "=r"(w[1]), from);
  }
  static DEVICE void store(void* to, const void* from) {
    const u32* w = static_cast<const u32*>(from);
    KMX_STORE("v2.b32", "[%0], {%1,%2}", "l"(to), "r"(w[0]), "r"(w[1]));
  }
};
template <Cache CACHE>
struct Access<16, CACHE> {
  static DEVICE void load(void* to, const void* from) {
    u32* w = static_cast<u32*>(to);
    KMX_LOAD("v4.b32", "{%0,%1,%2,%3}, [%4]",
             "=r"(w[0]) KMX_COMMA "=r"(w[1]) KMX_COMMA "=r"(w[2]) KMX_COMMA "=r"(w[3]), from);
  }
  static DEVICE void store(void* to, const void* from) {
    const u32* w = static_cast<const u32*>(from);
    KMX_STORE("v4.b32", "[%0], {%1,%2,%3,%4}", "l"(to), "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]));
  }
};
template <Cache CACHE>
struct Access<32, CACHE> {
  static DEVICE void load(void* to, const void* from) {
    u32* w = static_cast<u32*>(to);
#if __CUDA_ARCH__ >= 1000
    KMX_LOAD("v8.b32", "{%0,%1,%2,%3,%4,%5,%6,%7}, [%8]",
             "=r"(w[0]) KMX_COMMA "=r"(w[1]) KMX_COMMA "=r"(w[2]) KMX_COMMA "=r"(w[3]) KMX_COMMA "=r"(w[4])
                 KMX_COMMA "=r"(w[5]) KMX_COMMA "=r"(w[6]) KMX_COMMA "=r"(w[7]),
             from);
#else
    Access<16, CACHE>::load(w, from);
    Access<16, CACHE>::load(w + 4, static_cast<const u8*>(from) + 16);
#endif
  }
  static DEVICE void store(void* to, const void* from) {
    const u32* w = static_cast<const u32*>(from);
#if __CUDA_ARCH__ >= 1000
    KMX_STORE("v8.b32", "[%0], {%1,%2,%3,%4,%5,%6,%7,%8}", "l"(to), "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]),
              "r"(w[4]), "r"(w[5]), "r"(w[6]), "r"(w[7]));
#else
    Access<16, CACHE>::store(to, w);
    Access<16, CACHE>::store(static_cast<u8*>(to) + 16, w + 4);
#endif
  }
};

#undef KMX_LOAD
#undef KMX_STORE
#undef KMX_COMMA

// load<8>(p): eight elements from p, which must be aligned to all of them. load<8, STREAM>(p), load<1>(p)
template <int N, Cache CACHE = KEEP, typename T>
DEVICE Vec<T, N> load(const T* from) {
  Vec<T, N> to;
  Access<sizeof(T) * N, CACHE>::load(&to, from);
  return to;
}
template <Cache CACHE = KEEP, typename T, int N>
DEVICE void store(T* to, const Vec<T, N>& from) {
  Access<sizeof(T) * N, CACHE>::store(to, &from);
}

// ---- reductions: a fixed tree, the same result in every thread and at every launch ----------------------------------

struct Add {
  static constexpr float NEUTRAL = 0.0f;
  static DEVICE float of(float a, float b) { return a + b; }
};
struct Max {  // of magnitudes: nothing is below 0
  static constexpr float NEUTRAL = 0.0f;
  static DEVICE float of(float a, float b) { return fmaxf(a, b); }
};

// Over each group of WIDTH neighbouring lanes; all 32 lanes must take part.
template <typename OP, int WIDTH>
DEVICE float warp_reduce(float x) {
#pragma unroll
  for (int offset = WIDTH / 2; offset > 0; offset /= 2) x = OP::of(x, __shfl_xor_sync(0xffffffffu, x, offset));
  return x;
}
template <int WIDTH = 32>
DEVICE float warp_sum(float x) {
  return warp_reduce<Add, WIDTH>(x);
}
template <int WIDTH = 32>
DEVICE float warp_max(float x) {
  return warp_reduce<Max, WIDTH>(x);
}

constexpr int power_of_two_from(int n) {
  int p = 1;
  while (p < n) p *= 2;
  return p;
}

// Over all THREADS of a one-dimensional block (whole warps). Two calls one after the other, also the turns of a loop,
// must alternate `turn` between 0 and 1: then one barrier a call is enough.
template <typename OP, int THREADS>
DEVICE float block_reduce(float x, int turn) {
  static_assert(THREADS % 32 == 0 && THREADS <= 1024, "whole warps");
  constexpr int WARPS = THREADS / 32;
  x = warp_reduce<OP, 32>(x);
  if constexpr (WARPS == 1) return x;
  constexpr int SLOTS = power_of_two_from(WARPS);
  __shared__ float parts[2][WARPS];
  float* mine = parts[turn & 1];
  const int lane = threadIdx.x & 31, slot = lane & (SLOTS - 1);
  if (lane == 0) mine[threadIdx.x >> 5] = x;
  __syncthreads();
  return warp_reduce<OP, SLOTS>(slot < WARPS ? mine[slot] : OP::NEUTRAL);
}
template <int THREADS>
DEVICE float block_sum(float x, int turn = 0) {
  return block_reduce<Add, THREADS>(x, turn);
}
template <int THREADS>
DEVICE float block_max(float x, int turn = 0) {  // of magnitudes
  return block_reduce<Max, THREADS>(x, turn);
}

// ---- programmatic dependent launch ----------------------------------------------------------------------------------
// Until pdl_wait() returns, the kernel before this one may still be writing: no access to a tensor may precede it.
// pdl_launch() lets the next kernel's blocks come in; it makes nothing visible to them, so it may be called early.
// Every thread calls both. Before 9.0 neither does anything. Where a kernel lets them in is a -D: LAUNCH, an `Entry`.

enum Entry { EARLY, LATE, ENDED };  // at once; when this block's stores are under way; when this block has ended

DEVICE void pdl_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
DEVICE void pdl_launch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
