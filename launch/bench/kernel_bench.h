#pragma once

namespace osprey::bench {

/// The products of the bench model, ours beside oneDNN's on plain layouts, in turn.
void bench_gemm(int threads);

/// Each op alone at the bench model's shapes, forward and backward.
void bench_ops(int threads);

}  // namespace osprey::bench
