#pragma once
// Products with Sylvester's matrix, numbers along a vector's lanes.

#include "kernels/cpu/isa/vec.h"

namespace osprey::cpu::OSPREY_ISA {

/// x = x H for `size` numbers in a row, sums of neighbours first: an order that kernels/cuda/packed_spans.h
/// shares.
template <int size>
OSPREY_INLINE void hadamard(Vec* x) {
  constexpr int vectors = size / lanes;
#pragma GCC unroll 4
  for (int h = 1; h < lanes; h *= 2) {
    const IVec partner = iota() ^ h;
    const Vec sign = (iota() & h) != 0 ? splat(-1.0f) : splat(1.0f);
    for (int i = 0; i < vectors; ++i) x[i] = __builtin_shuffle(x[i], partner) + x[i] * sign;
  }
  for (int h = 1; h < vectors; h *= 2)
    for (int i = 0; i < vectors; ++i)
      if ((i & h) == 0) {
        const Vec a = x[i], b = x[i + h];
        x[i] = a + b;
        x[i + h] = a - b;
      }
}

}  // namespace osprey::cpu::OSPREY_ISA
