#pragma once
// Working memory of kernels that need some: grows to the largest request of the thread and stays,
// so that a training loop allocates in its first step only.

#include <cstddef>

namespace osprey::cpu {

/// One buffer for each purpose, so that a kernel may hold several at once.
enum class Scratch {
  gemm_a,
  gemm_b,
  gemm_c,
  onednn,
  linear_a,
  linear_b,
  attention,
  quantize,
  block_buffer,
  block_rows,
  block_panels,
  count
};

/// At least `bytes` bytes, aligned to 64, uninitialised, owned by the calling thread and this
/// purpose; valid until the same thread asks again for the same purpose.
void* scratch(Scratch purpose, size_t bytes);

template <class T>
T* scratch_of(Scratch purpose, size_t count) {
  return static_cast<T*>(scratch(purpose, count * sizeof(T)));
}

}  // namespace osprey::cpu
