// What csrc/formulas.cuh asks of a machine, in C++ of the host. The two instructions that a GPU only approximates can be
// off by a given number of units in the last place.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define FORMULAS_ON_HOST
#define DEVICE inline

static int exp2_off = 0, reciprocal_off = 0;

static uint32_t __float_as_uint(float x) {
  uint32_t y;
  std::memcpy(&y, &x, 4);
  return y;
}
static float __uint_as_float(uint32_t x) {
  float y;
  std::memcpy(&y, &x, 4);
  return y;
}
// Off by `units`, or by anything up to them where they are negative; powers of two are exact, as they are on GPUs; and
// what is below 2^-126 is 0.
static uint32_t state = 1;
static float moved(float x, int units) {
  if (units < 0) {
    state = state * 1664525u + 1013904223u;
    units = static_cast<int>((state >> 8) % (2u * -units + 1u)) + units;
  }
  if (!std::isfinite(x)) return x;
  if (std::fabs(x) < 0x1p-126f) return std::copysign(0.0f, x);
  if (__float_as_uint(x) & 0x7fffffu) x = __uint_as_float(__float_as_uint(x) + units);
  return std::isfinite(x) ? x : INFINITY;
}
static float exp2_near(float x) { return moved(static_cast<float>(std::exp2(static_cast<double>(x))), exp2_off); }
static float reciprocal_near(float x) { return moved(static_cast<float>(1.0 / static_cast<double>(x)), reciprocal_off); }
static float fma_near(float a, float b, float c) { return std::fmaf(a, b, c); }
static float fma_down(float a, float b, float c) {  // exact in double for what it is used with
  const double sum = static_cast<double>(a) * b + c;
  const float near = static_cast<float>(sum);
  return near > sum ? std::nextafterf(near, -INFINITY) : near;
}
static float fma_in_01(float a, float b, float c) {
  const float y = std::fmaf(a, b, c);
  return y != y ? 0.0f : std::fmin(std::fmax(y, 0.0f), 1.0f);
}
static float over(float a, float b) { return a / b; }
static float plus(float a, float b) { return a + b; }
static float times(float a, float b) { return a * b; }
static float normcdff(float x) { return static_cast<float>(0.5 * std::erfc(-static_cast<double>(x) * M_SQRT1_2)); }
static float larger(float a, float b) { return a != a || a > b ? a : b; }  // a NaN stays one
