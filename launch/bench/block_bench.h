#pragma once

#include <span>

#include "kernels/core/queue.h"

namespace osprey::bench {

/// Products of packed matrices beside the library's bf16 product of the same shape, in turn. On the CPU also
/// one row of x as in generation, beside a copy; on a GPU every engine, and what quantizing adds.
void bench_block_gemm(const Queue& queue);

/// Products of `sizes` cubed by every engine of a GPU, the one that it takes first; multiples of 128.
void bench_block_engines(const Queue& queue, std::span<const int64_t> sizes);

}  // namespace osprey::bench
