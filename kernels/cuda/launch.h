#pragma once
// The one way to start a kernel.

#include <cuda_runtime.h>

#include "kernels/cuda/stream.h"

namespace osprey::cuda {

struct Grid {
  dim3 blocks;
  dim3 threads;
  /// Of dynamic shared memory; kernels see it through block_shared<T>() of kernels/cuda/ptx.h.
  size_t shared_bytes = 0;
};

/// Puts a kernel on the queue's stream. `op` names it in errors.
/// Shared memory: kernels declare no __shared__ variables; they take all of it as one struct, so that its
/// size is known here. Errors: throws what the launch reports.
template <class... Parameters, class... Arguments>
void launch(const char* op, const Queue& queue, const Grid& grid, void (*kernel)(Parameters...),
            const Arguments&... arguments) {
  if (grid.blocks.x == 0 || grid.blocks.y == 0 || grid.blocks.z == 0) return;
  if (grid.shared_bytes > 48 * 1024)
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(grid.shared_bytes)),
          op);
  cudaLaunchConfig_t config{};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = stream_of(queue).handle();
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), op);
}

}  // namespace osprey::cuda
