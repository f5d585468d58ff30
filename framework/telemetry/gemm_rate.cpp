#include "framework/telemetry/gemm_rate.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "kernels/core/random.h"
#include "kernels/matmul.h"

namespace osprey {

double measure_gemm_rate(const Queue& queue, Communicator& world, double seconds) {
  constexpr int64_t side = 1024;
  const auto now = [] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  };
  std::vector<bf16> a(side * side), b(side * side), c(side * side);
  for (size_t i = 0; i < a.size(); ++i) {
    a[i] = to_bf16(random_uniform(1, 1, i) - 0.5f);
    b[i] = to_bf16(random_uniform(1, 2, i) - 0.5f);
  }
  const auto view = [&](std::vector<bf16>& v) {
    return make_tensor(v.data(), {side, side}, DType::bf16, queue.device);
  };
  const kernels::Matmul product{.c = view(c), .a = view(a), .b = view(b)};
  kernels::matmul(queue, product);  // builds and caches the primitive
  world.barrier();
  double best = 0;
  for (const double end = now() + seconds; best == 0 || now() < end;) {
    const double start = now();
    kernels::matmul(queue, product);
    best = std::max(best, 2.0 * side * side * side / (now() - start));
  }
  double rate[1] = {best};
  world.sum(rate);
  return rate[0];
}

}  // namespace osprey
