#pragma once
// Whole training steps of a bench model, as a fraction of what this machine's GEMM can do.

#include <cstdint>
#include <optional>
#include <string>

#include "framework/tape/tape.h"
#include "kernels/core/queue.h"

namespace osprey::bench {

enum class BenchOptimizer { adamw, muon };
/// llama_34m, T 512, micro batch 8: small enough for two CPU cores. The others, T 2048, are for GPUs.
enum class BenchModel { llama_34m, gpt2_124m, osp_1b4 };

struct TrainBenchOptions {
  Queue queue{.device = {}, .threads = 2};
  BenchModel model = BenchModel::llama_34m;
  int64_t steps = 8;  // measured, after those that warm up
  BenchOptimizer optimizer = BenchOptimizer::adamw;
  std::optional<int64_t> micro_batch;  // instead of the model's
  Recompute recompute = Recompute::none;
  std::string quant = "none";  // preset of the layers inside the blocks
};

struct TrainBenchResult {
  double tokens_per_second = 0;
  double flops = 0;         // training FLOP/s: 6 N (head included, embedding not) + causal attention
  double gemm_flops = 0;    // the library's bf16 GEMM, measured in turn
  double step_ms = 0;       // median
  double optimizer_ms = 0;  // of which the optimizer
  double micro_batches =
      0;  // in the step that the optimizer's share is given of: 131,072 tokens, 524,288 on a GPU
  int64_t allocations = 0;  // calls of operator new in the measured steps
  double fraction() const { return gemm_flops > 0 ? flops / gemm_flops : 0; }
};

/// The trainer's own steps on random tokens, one micro batch each: forward, backward, gradient norm,
/// optimizer. Prints a report with a profile by op; on a GPU the measured steps are replays and the profile
/// is of others.
TrainBenchResult bench_train(const TrainBenchOptions& options);

}  // namespace osprey::bench
