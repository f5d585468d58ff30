#pragma once

#include "kernels/cpu/isa.h"
#include "kernels/numerics/compact_adam.h"

namespace osprey::cpu {

/// A range of one parameter; unused pointers are null.
struct CompactRange {
  float* weight_f32;
  bf16* weight_bf16;
  bf16* rounded;
  float* direction_f32;
  bf16* direction_bf16;
  const float* grad;
  struct Moments {
    float* f32;
    bf16* rounded;
    uint8_t* codes;
    float* scales;
  } m, v;
  uint64_t seed, stream;
  int64_t step, first_element;
};

struct CompactAdamTable {
  /// Elements [begin, end) of the range, begin a multiple of 256.
  void (*update)(const CompactRange& range, int64_t begin, int64_t end, const AdamWFactors& factors,
                 float first_scale, float learning_rate);
  /// Likewise; `x` in place of the gradient: weight -= step_size x + decay weight.
  void (*apply)(const CompactRange& range, const float* x, int64_t begin, int64_t end, float step_size,
                float decay);
};
OSPREY_ISA_TABLE(CompactAdamTable, compact_adam_table)

}  // namespace osprey::cpu
