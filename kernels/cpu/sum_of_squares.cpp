#include "kernels/sum_of_squares.h"

#include <array>

#include "kernels/cpu/isa/sum_of_squares.h"

namespace osprey::cpu {

static double one_tensor(const Queue& queue, const Tensor& tensor) {
  // At most 256 chunks whose bounds follow from n alone; their sums are added in order.
  const int64_t n = tensor.numel();
  const int64_t chunk = std::max<int64_t>(16384, (n + 255) / 256);
  const int64_t chunks = (n + chunk - 1) / chunk;
  std::array<double, 256> sums{};
  const float* x = tensor.as<float>();
  parallel_for(queue, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c)
      sums[static_cast<size_t>(c)] =
          sum_of_squares_table().sum(x + c * chunk, std::min(chunk, n - c * chunk));
  });
  double total = 0;
  for (int64_t c = 0; c < chunks; ++c) total += sums[static_cast<size_t>(c)];
  return total;
}

void sum_of_squares(const Queue& queue, const kernels::SumOfSquares& args) {
  for (const Tensor& x : args.xs) *args.sum.as<double>() += one_tensor(queue, x);
}

}  // namespace osprey::cpu
