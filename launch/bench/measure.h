#pragma once
// Clocks, medians, and the yardstick: the rate of oneDNN's bf16 GEMM, measured in turn with what is judged.

#include <algorithm>
#include <chrono>
#include <vector>

#include "framework/memory/arena.h"
#include "kernels/core/random.h"
#include "kernels/matmul.h"

namespace osprey::bench {

inline double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline double median(std::vector<double> v) {
  if (v.empty()) return 0;
  std::nth_element(v.begin(), v.begin() + static_cast<std::ptrdiff_t>(v.size() / 2), v.end());
  return v[v.size() / 2];
}

/// Random matrices of any shape.
inline Tensor random_tensor(Arena& arena, const Shape& shape, DType dtype, float scale) {
  const Tensor t = arena.alloc(shape, dtype);
  for (int64_t i = 0; i < t.numel(); ++i) {
    const float v = scale * (random_uniform(3, 1, static_cast<uint64_t>(i)) - 0.5f);
    if (dtype == DType::bf16)
      t.as<bf16>()[i] = to_bf16(v);
    else
      t.as<float>()[i] = v;
  }
  return t;
}

/// Products of 2048 x 2048 matrices, bf16 to f32, through oneDNN.
class Yardstick {
 public:
  explicit Yardstick(const Queue& queue)
      : queue_(queue),
        memory_("yardstick", queue.device, side * side * 8 + 4096),
        product_{.c = memory_.alloc({side, side}, DType::f32),
                 .a = random_tensor(memory_, {side, side}, DType::bf16, 1),
                 .b = random_tensor(memory_, {side, side}, DType::bf16, 1)} {
    kernels::matmul(queue_, product_);  // builds the primitive
  }
  /// FLOP/s of one product.
  double sample() {
    const double start = now_s();
    kernels::matmul(queue_, product_);
    return 2.0 * side * side * side / (now_s() - start);
  }

 private:
  static constexpr int64_t side = 2048;
  Queue queue_;
  Arena memory_;
  kernels::Matmul product_;
};

}  // namespace osprey::bench
