// Uses everything of common.cuh, so that all of it is compiled for every GPU.
#include "common.cuh"

extern "C" __global__ void probe(DTYPE* out, const DTYPE* x, const DTYPE* weight, u8* small, int n) {
  constexpr int N = Full<DTYPE>::N;
  pdl_launch();
  pdl_wait();
  float a[N], w[N], one[1];
  const i64 at = (blockIdx.x * 256ll + threadIdx.x) * N;
  if (aligned<VEC_BYTES>(x + at)) {
    to_floats(load<N, STREAM>(x + at), a);
    to_floats(load<N, CONST>(weight + threadIdx.x * N), w);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      to_floats(load<1>(x + at + i), one);
      a[i] = w[i] = one[0];
    }
  }
  float squares = 0.0f, largest = 0.0f;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    squares += a[i] * a[i];
    largest = fmaxf(largest, fabsf(a[i]));
  }
  const float scale = rsqrtf(block_sum<256>(squares) / static_cast<float>(n) + 1e-6f);
  const float most = block_max<256>(largest, 1);
#pragma unroll
  for (int i = 0; i < N; ++i) a[i] = round_to<DTYPE>(a[i] * scale) * w[i];
  store<STREAM>(out + at, from_floats<DTYPE, N>(a));
#pragma unroll
  for (int i = 0; i < N; ++i) a[i] *= 448.0f / most;
  store(reinterpret_cast<e4m3*>(small) + at, from_floats<e4m3, N>(a));
  if (threadIdx.x == 0) store(reinterpret_cast<fp32*>(small) + blockIdx.x, from_floats<fp32, 1>({warp_max<8>(most)}));
}
