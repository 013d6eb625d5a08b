// The activations: one line each in ACTIVATIONS at the end, a formula of x in fp32 under the name that its ops carry.
//
// For 16-bit results a formula is within some 2^-21 of the function itself, everywhere: nothing cancels for a very
// negative x, where 1 + erf and 1 + tanh keep no more than 6e-8. For fp32 results it is within a few units.
// The file compiles as C++ of the host too, the includer giving what stands under "machine": that is how every 16-bit
// input is tested without a GPU.
#pragma once

// ---- machine --------------------------------------------------------------------------------------------------------

#ifndef FORMULAS_ON_HOST
DEVICE float exp2_near(float x) {  // within 2 ulp; results below 2^-126 are 0
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE float reciprocal_near(float x) {  // within 1 ulp; results below 2^-126 are 0
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE float fma_near(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEVICE float fma_down(float a, float b, float c) { return __fmaf_rd(a, b, c); }
DEVICE float fma_in_01(float a, float b, float c) { return __saturatef(__fmaf_rn(a, b, c)); }
DEVICE float over(float a, float b) { return __fdiv_rn(a, b); }
DEVICE float plus(float a, float b) { return __fadd_rn(a, b); }  // plus and times are never fused
DEVICE float times(float a, float b) { return __fmul_rn(a, b); }
DEVICE float larger(float a, float b) {  // a NaN stays one
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}
#endif

// ---- parts ----------------------------------------------------------------------------------------------------------

// x / (1 + e), given e / 4. A quarter of it all, so that the reciprocal stays above 2^-126 wherever e is finite: where
// x / (1 + e) in fp32 has a value, and where it is -0, this has and is too.
DEVICE float sigmoid_times(float x, float quarter_of_e) {
  return times(x, times(0.25f, reciprocal_near(plus(quarter_of_e, 0.25f))));
}

// x / (1 + e^-x), e^-x as p * 2^j with an exact remainder, as expf does it.
template <typename T>
DEVICE float silu_of(float x) {
  if constexpr (sizeof(T) == 4) {
    return over(x, plus(1.0f, expf(-x)));
  } else {
    // log2(e) / 250 maps the j of -125 to 125 to 0 to 1; the sum puts j + 125 into the low bits
    const float t = fma_down(fma_in_01(x, -5.7707801635558535e-03f, 0.5f), 250.0f, 12582912.0f);
    const float j = plus(t, -12583037.0f);
    float f = fma_near(x, -1.4426950216293334961f, -j);
    f = fma_near(x, -1.925963033500011079e-08f, f);
    const float quarter_power = __uint_as_float(__float_as_uint(t) << 23);  // 2^(j - 2)
    return times(x, times(0.25f, reciprocal_near(fma_near(exp2_near(f), quarter_power, 0.25f))));
  }
}

// x * Phi(x). Phi(-a) = exp(-a^2 / 2) * t * 2^p(t), t = 1 / (1 + 0.395 a): p of degree 8 is within 2^-22.9 for every a
// up to 13.5, beyond which Phi(-a) < 2^-126, and -1 at t = 1: gelu(x) is x / 2 to the bit for the least of x.
template <typename T>
DEVICE float gelu_of(float x) {
  if constexpr (sizeof(T) == 4) {
    return times(x, normcdff(x));
  } else {
    const float t = reciprocal_near(fma_near(fabsf(x), 0.39500001072883606f, 1.0f));
    float p = 0.26906517148017883f;
    p = fma_near(p, t, -1.4017040729522705f);
    p = fma_near(p, t, 2.8612468242645264f);
    p = fma_near(p, t, -2.6615612506866455f);
    p = fma_near(p, t, 0.9026275277137756f);
    p = fma_near(p, t, -0.2937920391559601f);
    p = fma_near(p, t, 0.5523849129676819f);
    p = fma_near(p, t, 1.43734109f);
    p = fma_near(p, t, -2.66560817f);
    const float below = times(t, exp2_near(fma_near(times(x, x), -0.7213475108f, p)));
    return times(x, x > 0.0f ? plus(1.0f, -below) : below);
  }
}

// (1 + tanh(u)) / 2 = 1 / (1 + e^-2u), u = sqrt(2 / pi) * (x + 0.044715 x^3)
template <typename T>
DEVICE float gelu_tanh_of(float x) {
  if constexpr (sizeof(T) == 4) {  // 2u as a sum of two floats: the exponential multiplies its error by u
    constexpr float C = 1.5957691669464111f, C_REST = -4.534068e-08f;    // 2 sqrt(2 / pi)
    constexpr float D = 0.07135481387376785f, D_REST = 2.3988325e-09f;  // 0.044715 of it
    const float y = fminf(fmaxf(x, -10.0f), 10.0f);
    const float square = times(y, y), square_rest = fma_near(y, y, -square);
    const float cubic = times(D, square);
    const float cubic_rest = fma_near(D, square, -cubic) + fma_near(D, square_rest, D_REST * square);
    const float factor = plus(C, cubic), back = plus(factor, -cubic);
    const float factor_rest = plus(plus(C, -back), plus(cubic, -plus(factor, -back))) + (cubic_rest + C_REST);
    const float u = times(y, factor), u_rest = fma_near(y, factor, -u) + y * factor_rest;
    const float e = expf(-u);
    return over(x, plus(1.0f, x < -10.0f ? __uint_as_float(0x7f800000u) : fma_near(e, -u_rest, e)));
  } else {  // 2u log2(e) = x * (2.302... + 0.1029... x^2)
    const float factor = fma_near(times(x, x), -0.10294324159622192f, -2.302208185195923f);
    return sigmoid_times(x, exp2_near(fma_near(x, factor, -2.0f)));
  }
}

DEVICE float relu_of(float x) { return x <= 0.0f ? 0.0f : x; }  // a NaN stays one
DEVICE float squared(float x) { return times(x, x); }

// ---- the table ------------------------------------------------------------------------------------------------------
// T is the dtype of input and output. An op `name_and_mul` multiplies by up.

#define ACTIVATIONS(FORMULA)             \
  FORMULA(silu, silu_of<T>(x))           \
  FORMULA(gelu, gelu_of<T>(x))           \
  FORMULA(gelu_tanh, gelu_tanh_of<T>(x)) \
  FORMULA(relu2, squared(relu_of(x)))

#define KMX_FORMULA(NAME, VALUE)                      \
  struct NAME {                                       \
    template <typename T>                             \
    static DEVICE float of(float x) { return VALUE; } \
  };
ACTIVATIONS(KMX_FORMULA)
#undef KMX_FORMULA
