// What nvfp4_gemv.cu asks of the machine in instructions that C++ has no words for: pairs of 16-bit numbers, the matrix
// product of a warp, copies into shared memory, clusters of blocks. A host can stand in for all of it.
#pragma once

#include "common.cuh"

#define SHARED_SPACE(name) extern __shared__ __align__(128) u8 name[]
#if CLUSTER > 1
#define OF_A_CLUSTER __cluster_dims__(CLUSTER, 1, 1)
#else
#define OF_A_CLUSTER
#endif

// scales: two codes at bits 4..11 of the halves as numbers. place: bits at their places in bf16, brought to those of T.
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

DEVICE u32 shared_address(const void* at) { return static_cast<u32>(__cvta_generic_to_shared(at)); }

// 16 bytes of x into shared memory; zeros where there are none.
DEVICE void copy_async(void* to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(inside ? 16 : 0)
               : "memory");
}

DEVICE void copies_done() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// What block `rank` of the cluster holds where this one holds *at.
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
// Of all blocks of the cluster; of the block where it is alone.
DEVICE void cluster_barrier() {
#if CLUSTER > 1
  asm volatile("barrier.cluster.arrive.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
#else
  __syncthreads();
#endif
}
