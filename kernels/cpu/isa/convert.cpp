#include "kernels/cpu/isa/convert.h"

namespace osprey::cpu::OSPREY_ISA {

static void widen(float* to, const bf16* from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = to_float(from[i]);
}

static void narrow(bf16* to, const float* from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = to_bf16(from[i]);
}

extern const ConvertTable convert_table{widen, narrow};

}  // namespace osprey::cpu::OSPREY_ISA
