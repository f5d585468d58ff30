#pragma once
// What this machine can do at most: the yardstick of "percent of GEMM".

#include "framework/parallel/communicator.h"
#include "kernels/core/queue.h"

namespace osprey {

/// Best rate of a square oneDNN bf16 product with fp32 sums, in FLOP/s, summed over the ranks, which
/// measure at the same time so that ranks on one host share it as they do in training. Collective.
/// Units: `seconds` is how long each rank measures, about.
double measure_gemm_rate(const Queue& queue, Communicator& world, double seconds);

}  // namespace osprey
