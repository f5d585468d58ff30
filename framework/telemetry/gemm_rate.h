#pragma once
// What this machine can do at most: the yardstick of "percent of GEMM".

#include "framework/memory/arena.h"
#include "framework/parallel/communicator.h"
#include "kernels/matmul.h"

namespace osprey {

/// Square products by the device's library (oneDNN, cuBLASLt), bf16 in, fp32 out: of side 2048 on a CPU,
/// where it holds 32 MiB, and 8192 on a GPU, 512 MiB.
class GemmYardstick {
 public:
  const int64_t side;
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
