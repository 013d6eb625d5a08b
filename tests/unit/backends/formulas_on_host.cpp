// csrc/formulas.cuh as C++ of the host: every activation over a whole array.
#include "machine_on_host.h"

#include "formulas.cuh"

struct Half {
  uint16_t bits;
};

template <typename ACT>
static void run(const float* x, float* y, long count, int bytes) {
  for (long i = 0; i < count; ++i) y[i] = bytes == 4 ? ACT::template of<float>(x[i]) : ACT::template of<Half>(x[i]);
}

// The names in the table's order, and each by its place.
#define NAME(NAME, VALUE) #NAME " "
extern "C" const char* names() { return ACTIVATIONS(NAME); }

extern "C" void evaluate(int which, const float* x, float* y, long count, int bytes, int exp2_units, int reciprocal_units) {
  exp2_off = exp2_units;
  reciprocal_off = reciprocal_units;
  int place = 0;
#define ONE(NAME, VALUE) \
  if (place++ == which) run<NAME>(x, y, count, bytes);
  ACTIVATIONS(ONE)
}
