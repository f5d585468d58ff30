#pragma once
// Clocks, medians, random operands.

#include <algorithm>
#include <chrono>
#include <vector>

#include "framework/memory/arena.h"
#include "framework/memory/staging.h"
#include "kernels/core/random.h"
#include "kernels/device.h"

namespace osprey::bench {

inline double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline double median(std::vector<double> v) {
  if (v.empty()) return 0;
  std::nth_element(v.begin(), v.begin() + static_cast<std::ptrdiff_t>(v.size() / 2), v.end());
  return v[v.size() / 2];
}

/// Best of `rounds`: on a shared machine the median of short kernels measures the neighbours.
template <class F>
double best_seconds(const Queue& queue, int rounds, const F& f) {
  double best = 1e9;
  for (int i = 0; i < rounds; ++i) {
    const double start = now_s();
    f();
    kernels::synchronize(queue);
    best = std::min(best, now_s() - start);
  }
  return best;
}

/// Seconds of f(), best of `rounds`, without what the host takes to start it: on a GPU f is recorded eight
/// times over and replayed. It has run before, so that libraries have made their plans.
template <class F>
double best_replayed_seconds(const Queue& queue, int rounds, const F& f) {
  f();
  kernels::synchronize(queue);
  if (queue.device.kind != DeviceKind::cuda) return best_seconds(queue, rounds, f);
  constexpr int times = 8;
  kernels::Graph graph(queue.device);
  graph.record(queue, [&] {
    for (int i = 0; i < times; ++i) f();
  });
  return best_seconds(queue, rounds, [&] { graph.launch(queue); }) / times;
}

/// Random matrices of any shape.
inline Tensor random_tensor(const Queue& queue, Arena& arena, const Shape& shape, DType dtype, float scale) {
  const Tensor t = arena.alloc(shape, dtype);
  write_from_host(queue, t, [&](const Tensor& host) {
    for (int64_t i = 0; i < t.numel(); ++i) {
      const float v = scale * (random_uniform(3, 1, static_cast<uint64_t>(i)) - 0.5f);
      if (dtype == DType::bf16)
        host.as<bf16>()[i] = to_bf16(v);
      else
        host.as<float>()[i] = v;
    }
  });
  return t;
}

}  // namespace osprey::bench
