#include <fmt/format.h>
#include <omp.h>

#include <memory>

#include "kernels/device.h"
#include "launch/bench/kernel_bench.h"
#include "launch/bench/train_bench.h"
#include "launch/commands/command.h"

namespace osprey {

namespace {

struct BenchOptions {
  int threads = omp_get_max_threads();
  bench::TrainBenchOptions train;
  std::string optimizer = "both";
};

void run_train(const BenchOptions& options) {
  bench::TrainBenchOptions train = options.train;
  const auto open = kernels::open_queue({}, options.threads);
  train.queue = open.queue;
  if (options.optimizer != "both") {
    train.optimizer =
        options.optimizer == "muon" ? bench::BenchOptimizer::muon : bench::BenchOptimizer::adamw;
    bench::bench_train(train);
    return;
  }
  train.optimizer = bench::BenchOptimizer::adamw;
  const bench::TrainBenchResult adamw = bench::bench_train(train);
  fmt::print("\n");
  train.optimizer = bench::BenchOptimizer::muon;
  const bench::TrainBenchResult muon = bench::bench_train(train);
  // Forward and backward are the same program in both runs: only the optimizers' own times are compared.
  const double work = 32 * (adamw.step_ms - adamw.optimizer_ms);
  fmt::print(
      "\nat 131072 tokens a step (32 micro batches) a step with muon takes {:.2f}% longer than with adamw\n",
      100 * (muon.optimizer_ms - adamw.optimizer_ms) / (work + adamw.optimizer_ms));
}

}  // namespace

void add_bench(CLI::App& app) {
  const auto options = std::make_shared<BenchOptions>();
  CLI::App* command =
      app.add_subcommand("bench", "kernels and whole steps, as a fraction of what this machine can do");
  command->require_subcommand(1);
  command->footer("Example:\n  osprey bench train --threads 2");
  const auto add = [&](const char* name, const char* what, const char* example) {
    CLI::App* sub = command->add_subcommand(name, what);
    sub->add_option("--threads", options->threads, "threads to use; all by default")
        ->check(CLI::Range(1, 4096));
    sub->footer(std::string("Example:\n  osprey bench ") + example);
    return sub;
  };
  add("gemm", "the model's products, ours beside oneDNN's", "gemm --threads 1")->callback([options] {
    bench::bench_gemm(kernels::open_queue({}, options->threads).queue);
  });
  add("ops", "each op alone, forward and backward", "ops --threads 2")->callback([options] {
    bench::bench_ops(kernels::open_queue({}, options->threads).queue);
  });
  CLI::App* train = add("train", "whole training steps of a 34M-parameter llama, with a profile",
                        "train --threads 2 --optimizer adamw");
  train->add_option("--steps", options->train.steps, "measured steps")->check(CLI::Range(1, 10000));
  train->add_option("--optimizer", options->optimizer, "adamw, muon, or both after each other")
      ->check(CLI::IsMember({"adamw", "muon", "both"}));
  train->callback([options] { run_train(*options); });
}

}  // namespace osprey
