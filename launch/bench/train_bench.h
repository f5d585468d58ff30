#pragma once
// Whole training steps of the bench model, as a fraction of what this machine's GEMM can do.

#include <cstdint>

#include "kernels/core/queue.h"

namespace osprey::bench {

enum class BenchOptimizer { adamw, muon };

struct TrainBenchOptions {
  Queue queue{.device = {}, .threads = 2};
  int64_t steps = 8;  // measured, after one that warms up
  BenchOptimizer optimizer = BenchOptimizer::adamw;
};

struct TrainBenchResult {
  double tokens_per_second = 0;
  double flops = 0;         // training FLOP/s: 6 N (head included, embedding not) + causal attention
  double gemm_flops = 0;    // oneDNN bf16 GEMM, measured in turn
  double step_ms = 0;       // median
  double optimizer_ms = 0;  // of which the optimizer
  int64_t allocations = 0;  // calls of operator new in the measured steps
  double fraction() const { return gemm_flops > 0 ? flops / gemm_flops : 0; }
};

/// Llama, 8 layers, width 512, 8 heads, ffn 1408, vocabulary 8192; T 512, micro batch 8, bf16. Each step is
/// one micro batch: forward, backward, gradient norm, optimizer. Prints a report with a profile by op.
TrainBenchResult bench_train(const TrainBenchOptions& options);

}  // namespace osprey::bench
