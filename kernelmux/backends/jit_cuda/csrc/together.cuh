// Loads that are in flight together. ptxas spares registers by moving a load down to its first use, past all the
// arithmetic of the one before: the GPU then waits for memory once for each. What is made of the data of all of them
// cannot begin before all are under way: one bit operation a word, with a zero that only the launch knows.
#pragma once

#include "common.cuh"

template <int VALUE>
struct Count {
  static constexpr int value = VALUE;
};

template <int BYTES>
struct WordOf {
  typedef u32 type;
};
template <>
struct WordOf<2> {
  typedef u16 type;
};

template <typename PART>
DEVICE u32 first_word(const PART& part) {
  return *reinterpret_cast<const typename WordOf<sizeof(PART)>::type*>(&part);
}

template <typename PART>
DEVICE void mix(PART& part, u32 zero) {
  typedef typename WordOf<sizeof(PART)>::type Word;
  Word* words = reinterpret_cast<Word*>(&part);
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(PART) / sizeof(Word)); ++i) words[i] |= static_cast<Word>(zero);
}

// a waits for itself, and for b. nothing is 0.
template <int COUNT, typename PART>
DEVICE void together(PART (&a)[COUNT], u32 nothing) {
  u32 all = 0;
#pragma unroll
  for (int u = 0; u < COUNT; ++u) all ^= first_word(a[u]);
  all &= nothing;
#pragma unroll
  for (int u = 0; u < COUNT; ++u) mix(a[u], all);
}
template <int COUNT, typename PART>
DEVICE void together(PART (&a)[COUNT], const PART (&b)[COUNT], u32 nothing) {
  u32 all = 0;
#pragma unroll
  for (int u = 0; u < COUNT; ++u) all ^= first_word(a[u]) ^ first_word(b[u]);
  all &= nothing;
#pragma unroll
  for (int u = 0; u < COUNT; ++u) mix(a[u], all);
}

// Elements in fp32. Of two bf16 in a word each is one instruction away.
template <int N>
DEVICE void widen(const Vec<bf16, N>& from, float (&to)[N]) {
  if constexpr (N == 1) {
    to[0] = to_float(from.v[0]);
  } else {
    const u32* words = reinterpret_cast<const u32*>(&from);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      to[2 * i] = __uint_as_float(words[i] << 16);
      to[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  }
}
template <typename T, int N>
DEVICE void widen(const Vec<T, N>& from, float (&to)[N]) {
  to_floats(from, to);
}
