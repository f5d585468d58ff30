#pragma once
// Tests of kernels fill Buffers on the host and run on whatever test_device() is.

#include <vector>

#include "tests/support/buffer.h"
#include "tests/support/test_bed.h"

namespace osprey::test {

/// What an op gets of Buffers. On the CPU these are the buffers themselves; elsewhere copies of them, guards
/// included, that fetch() copies back.
class OnDevice {
 public:
  explicit OnDevice(int threads = 2) : queue(test_queue(threads)) {}
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  const Queue queue;
  /// The view of `buffer` on the device; the same one when asked again.
  Tensor operator()(Buffer& buffer);
  /// When work is done: makes the buffers what their copies are.
  void fetch();

 private:
  struct Copy {
    Buffer* buffer;
    Tensor memory;
  };
  std::vector<Copy> copies_;
};

}  // namespace osprey::test
