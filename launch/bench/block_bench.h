#pragma once

#include "kernels/core/queue.h"

namespace osprey::bench {

/// Products of packed matrices beside oneDNN's bf16 product of the same shape, in turn; one row of x as in
/// generation beside a copy. On the CPU.
void bench_block_gemm(const Queue& queue);

}  // namespace osprey::bench
