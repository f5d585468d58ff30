#pragma once
// Tensors that may lie on a GPU, for code that only reads or writes host memory.

#include <vector>

#include "kernels/device.h"

namespace osprey {

/// `queue` for work on host memory: the CPU with the same threads. A meta queue stays one.
inline Queue host_queue(const Queue& queue) {
  return queue.meta() ? queue : Queue{.device = {}, .threads = queue.threads};
}

/// A tensor's values in host memory: the tensor itself on the CPU, a dense copy of one on a GPU.
/// Async: waits for the queue's work.
class HostCopy {
 public:
  HostCopy(const Queue& queue, const Tensor& t) : tensor_(t) {
    if (!t.defined() || t.device.kind != DeviceKind::cuda) return;
    bytes_.resize(static_cast<size_t>(t.bytes()));
    kernels::download(queue, bytes_.data(), t);
    tensor_ = make_tensor(bytes_.data(), t.shape, t.dtype);
  }
  HostCopy(const HostCopy&) = delete;
  HostCopy& operator=(const HostCopy&) = delete;
  const Tensor& tensor() const { return tensor_; }

 private:
  std::vector<char> bytes_;
  Tensor tensor_;
};

/// Calls write(host) with host memory of t's shape, whose values then become t's: t itself on the CPU.
template <class Write>
void write_from_host(const Queue& queue, const Tensor& t, const Write& write) {
  if (t.device.kind != DeviceKind::cuda) return write(t);
  std::vector<char> bytes(static_cast<size_t>(t.bytes()));
  write(make_tensor(bytes.data(), t.shape, t.dtype));
  kernels::upload(queue, t, bytes.data());
}

}  // namespace osprey
