#include "framework/telemetry/gemm_rate.h"

#include <algorithm>

#include "framework/clock.h"
#include "kernels/core/random.h"

namespace osprey {

namespace {

Tensor draw(Arena& memory, uint64_t stream) {
  const Tensor t = memory.alloc({GemmYardstick::side, GemmYardstick::side}, DType::bf16);
  for (int64_t i = 0; i < t.numel(); ++i)
    t.as<bf16>()[i] = to_bf16(random_uniform(1, stream, static_cast<uint64_t>(i)) - 0.5f);
  return t;
}

}  // namespace

GemmYardstick::GemmYardstick(const Queue& queue)
    : queue_(queue),
      memory_("yardstick", queue.device, side * side * 8 + 4096),
      product_{.c = memory_.alloc({side, side}, DType::f32), .a = draw(memory_, 1), .b = draw(memory_, 2)} {
  kernels::library_matmul(queue_, product_);  // builds and caches the primitive
}

double GemmYardstick::sample() {
  const double start = now_s();
  kernels::library_matmul(queue_, product_);
  return 2.0 * side * side * side / (now_s() - start);
}

double measure_gemm_rate(const Queue& queue, Communicator& world, double seconds) {
  GemmYardstick yardstick(queue);
  world.barrier();
  double best = 0;
  for (const double end = now_s() + seconds; best == 0 || now_s() < end;)
    best = std::max(best, yardstick.sample());
  double rate[1] = {best};
  world.sum(rate);
  return rate[0];
}

}  // namespace osprey
