#pragma once
// Stands in front of the real kernels/cuda/launch.h: the same way to start a kernel, on the executor.

#include <cuda_runtime.h>

#include <tuple>

#include "kernels/cuda/stream.h"
#include "tests/support/executor/executor.h"

namespace osprey::cuda {

struct Grid {
  dim3 blocks;
  dim3 threads;
  size_t shared_bytes = 0;
};

/// As the real one. Errors: throws what CUDA would refuse, a pointer to host memory among the arguments, and
/// what goes wrong in the kernel.
template <class... Parameters, class... Arguments>
void launch(const char* op, const Queue& queue, const Grid& grid, void (*kernel)(Parameters...),
            const Arguments&... arguments) {
  static_assert((std::is_trivially_copyable_v<Parameters> && ...), "kernel arguments are copied as bytes");
  static_assert((sizeof(Parameters) + ... + 0) <= 4096, "kernel arguments take 4096 bytes at most");
  if (grid.blocks.x == 0 || grid.blocks.y == 0 || grid.blocks.z == 0) return;
  std::tuple<Parameters...> values(static_cast<Parameters>(arguments)...);
  std::apply(
      [op](Parameters&... value) {
        int index = 0;
        // What lies between members may be half of an old pointer.
        ((__builtin_clear_padding(&value), executor::check_argument(op, index++, &value, sizeof(value))),
         ...);
      },
      values);
  executor::launch(stream_of(queue).handle(), {op, grid.blocks, grid.threads, grid.shared_bytes,
                                               [kernel, values] { std::apply(kernel, values); }});
}

}  // namespace osprey::cuda
