#pragma once
// How kernels::classifier_rows() cuts its tokens, on every device: logits and d of a chunk lie in scratch.

#include <algorithm>

#include "kernels/core/tensor.h"

namespace osprey::kernels {

struct ClassifierRowsChunks {
  int64_t tokens = 0;  // at a time
  int64_t rows = 0;    // of the head
  DType dtype = DType::f32;

  static ClassifierRowsChunks of(int64_t tokens, int64_t rows, DType dtype) {
    const int64_t most =
        std::clamp<int64_t>((int64_t{4} << 20) / std::max<int64_t>(rows, 1) / 64 * 64, 64, 2048);
    return {std::min(most, std::max<int64_t>(tokens, 1)), rows, dtype};
  }
  int64_t logit_floats() const { return (tokens * rows + 63) / 64 * 64; }
  int64_t floats() const { return logit_floats() + tokens * rows * size_bytes(dtype) / 4 + 64 + 64; }
  Tensor logits(const Tensor& scratch) const {
    return make_tensor(aligned(scratch), {tokens, rows}, DType::f32, scratch.device);
  }
  Tensor d(const Tensor& scratch) const {
    return make_tensor(aligned(scratch) + logit_floats(), {tokens, rows}, dtype, scratch.device);
  }

 private:
  static float* aligned(const Tensor& scratch) {
    const auto address = reinterpret_cast<uintptr_t>(scratch.data);
    return reinterpret_cast<float*>((address + 255) / 256 * 256);
  }
};

}  // namespace osprey::kernels
