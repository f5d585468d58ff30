#pragma once

#include "kernels/core/queue.h"

namespace osprey::bench {

/// The products of the bench model, ours beside oneDNN's on plain layouts, in turn.
void bench_gemm(const Queue& queue);

/// Each op alone at the bench model's shapes, forward and backward.
void bench_ops(const Queue& queue);

/// Bytes a second of a copy that is too large for caches, read and written.
double copy_rate(const Queue& queue);

}  // namespace osprey::bench
