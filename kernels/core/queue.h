#pragma once
// Ordered execution on one device. The first argument of every kernel.

#include <omp.h>

#include <algorithm>

#include "kernels/core/tensor.h"

namespace osprey {

namespace cuda {
class Stream;
}

/// On the CPU: how many threads a kernel may use. On CUDA: the stream its kernels are put on, see
/// kernels/device.h. On `meta`: nothing runs, shapes are checked.
struct Queue {
  Device device{};
  int threads = 1;
  cuda::Stream* stream = nullptr;
  DeviceKind planned = DeviceKind::cpu;  // on meta: the device whose memory is worked out

  bool meta() const { return device.kind == DeviceKind::meta; }
  /// The device whose layouts and scratch sizes hold: its own, or on meta the planned one.
  DeviceKind target() const { return meta() ? planned : device.kind; }
};

/// Runs body(begin, end) over [0, n) split into contiguous static ranges, one for each thread; ranges
/// hold at least `grain` items. Which thread runs an item must not change results: reduce over fixed
/// chunks (see kernels/cpu/norm.cpp), never per thread.
template <class Body>
void parallel_for(const Queue& queue, int64_t n, int64_t grain, const Body& body) {
  const int64_t most = std::max<int64_t>(1, n / std::max<int64_t>(1, grain));
  const int threads = static_cast<int>(std::min<int64_t>(queue.threads, most));
  if (threads <= 1) {
    if (n > 0) body(int64_t{0}, n);
    return;
  }
#pragma omp parallel num_threads(threads)
  {
    const int64_t t = omp_get_thread_num(), count = omp_get_num_threads();
    const int64_t begin = n * t / count, end = n * (t + 1) / count;
    if (begin < end) body(begin, end);
  }
}

}  // namespace osprey
