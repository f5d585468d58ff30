#pragma once
#include "kernels/core/queue.h"

namespace osprey::bench {

/// Elements a second that the operands of forward and backward products are quantized with.
void bench_quantize(const Queue& queue);

}  // namespace osprey::bench
