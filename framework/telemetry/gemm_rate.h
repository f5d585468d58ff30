#pragma once
// What this machine can do at most: the yardstick of "percent of GEMM".

#include "framework/memory/arena.h"
#include "framework/parallel/communicator.h"
#include "kernels/matmul.h"

namespace osprey {

/// Products of 2048 x 2048 matrices by oneDNN, bf16 in, fp32 out. Holds 32 MiB.
class GemmYardstick {
 public:
  static constexpr int64_t side = 2048;
  explicit GemmYardstick(const Queue& queue);
  /// FLOP/s of one product.
  double sample();

 private:
  Queue queue_;
  Arena memory_;
  kernels::Matmul product_;
};

/// Best rate of the yardstick's product, in FLOP/s, summed over the ranks, which measure at the same time so
/// that ranks on one host share it as they do in training. Collective.
/// Units: `seconds` is how long each rank measures, about; one product at least.
double measure_gemm_rate(const Queue& queue, Communicator& world, double seconds);

}  // namespace osprey
