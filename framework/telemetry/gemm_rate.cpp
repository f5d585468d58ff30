#include "framework/telemetry/gemm_rate.h"

#include <algorithm>
#include <vector>

#include "framework/clock.h"
#include "kernels/core/random.h"
#include "kernels/device.h"

namespace osprey {

namespace {

Tensor draw(const Queue& queue, Arena& memory, int64_t side, uint64_t stream) {
  const Tensor t = memory.alloc({side, side}, DType::bf16);
  std::vector<bf16> values(static_cast<size_t>(t.numel()));
  for (size_t i = 0; i < values.size(); ++i) values[i] = to_bf16(random_uniform(1, stream, i) - 0.5f);
  kernels::upload(queue, t, values.data());
  return t;
}

}  // namespace

GemmYardstick::GemmYardstick(const Queue& queue)
    : side(queue.device.kind == DeviceKind::cuda ? 8192 : 2048),
      queue_(queue),
      memory_("yardstick", queue.device, side * side * 8 + 4096),
      product_{.c = memory_.alloc({side, side}, DType::f32),
               .a = draw(queue, memory_, side, 1),
               .b = draw(queue, memory_, side, 2)} {
  kernels::library_matmul(queue_, product_);  // builds and caches the primitive
  kernels::synchronize(queue_);
}

double GemmYardstick::sample() {
  const double start = now_s(), edge = static_cast<double>(side);
  kernels::library_matmul(queue_, product_);
  kernels::synchronize(queue_);
  return 2.0 * edge * edge * edge / (now_s() - start);
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
