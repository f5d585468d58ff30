#pragma once
#include "kernels/cpu/isa.h"
#include "kernels/numerics/bf16.h"

namespace osprey::cpu {

/// One row of logits: loss = logsumexp - logits[target], d = (softmax - onehot) * scale.
/// target -1: loss 0 and d = 0. d: bf16 or f32 (of d_is_f32), or null. logits are used up.
struct ClassifierTable {
  double (*row)(float* logits, int64_t n, int64_t target, float scale, void* d, int d_is_f32);
  /// d of some columns of a row: d = (exp(logits - log_sum) - onehot) * scale, where a target outside [0, n)
  /// is another's.
  void (*columns)(const float* logits, int64_t n, int64_t target, float log_sum, float scale, void* d,
                  int d_is_f32);
};
OSPREY_ISA_TABLE(ClassifierTable, classifier_table)

}  // namespace osprey::cpu
