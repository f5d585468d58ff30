#pragma once
// Sums in double over chunks that follow from shapes alone: a first kernel leaves one number a block, a
// second adds them in order. Two runs give equal bits, whatever the GPU.

#include "kernels/cuda/row.h"

namespace osprey::cuda {

inline constexpr int sum_threads = 256;
inline constexpr int sum_final_threads = 1024;

/// Room for block_sum.
struct SumShared {
  double warps[sum_final_threads / warp_size];
};

enum class Into : int64_t { overwrite, add };
struct FinalSum {
  const double* partial;
  int64_t count;
  double* sum;
  Into into;
};
/// Launch as one block of sum_final_threads.
[[maybe_unused]] static __global__ void __launch_bounds__(sum_final_threads) final_sum(FinalSum a) {
  SumShared& shared = block_shared<SumShared>();
  double total = 0;
  for (int64_t i = threadIdx.x; i < a.count; i += sum_final_threads) total += a.partial[i];
  total = block_sum(total, shared.warps);
  if (threadIdx.x == 0) *a.sum = a.into == Into::overwrite ? total : *a.sum + total;
}

}  // namespace osprey::cuda
