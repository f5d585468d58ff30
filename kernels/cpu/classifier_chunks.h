#pragma once
// How the head is cut into rows. Two sizes, because two things are dear: logits in fp32 should stay in
// the last-level cache until their softmax is taken, and dW (V, C) should pass through memory as seldom
// as possible, so gradients are gathered over more rows before the two backward products.

#include <algorithm>

#include "kernels/core/tensor.h"

namespace osprey::cpu {

struct ClassifierChunks {
  int64_t logit_rows = 0;  // rows of fp32 logits at a time
  int64_t grad_rows = 0;   // rows of d at a time, a multiple of logit_rows; 0 without gradients
  int64_t vocabulary = 0;
  DType dtype = DType::f32;

  static ClassifierChunks of(int64_t rows, int64_t vocabulary, DType dtype, bool gradients) {
    ClassifierChunks c{.vocabulary = vocabulary, .dtype = dtype};
    c.logit_rows = std::clamp<int64_t>((int64_t{2} << 20) / vocabulary / 32 * 32, 32, 512);  // 8 MiB
    c.logit_rows = std::min(c.logit_rows, std::max<int64_t>(rows, 1));
    if (!gradients) return c;
    const int64_t most = std::clamp<int64_t>((int64_t{16} << 20) / vocabulary, 512, 2048);
    c.grad_rows = std::min<int64_t>(std::max<int64_t>(rows, 1),
                                    std::max<int64_t>(1, most / c.logit_rows) * c.logit_rows);
    return c;
  }
  int64_t logit_floats() const { return logit_rows * vocabulary; }
  int64_t scratch_floats() const {
    const int64_t d = dtype == DType::bf16 ? (grad_rows * vocabulary + 1) / 2 : grad_rows * vocabulary;
    return logit_floats() + d + 2 * logit_rows + 32;  // row losses are doubles; slack for alignment
  }
};

}  // namespace osprey::cpu
