#include <fmt/format.h>
#include <omp.h>

#include <map>
#include <memory>

#include "kernels/device.h"
#include "launch/bench/block_bench.h"
#include "launch/bench/kernel_bench.h"
#include "launch/bench/quantize_bench.h"
#include "launch/bench/train_bench.h"
#include "launch/commands/command.h"

namespace osprey {

namespace {

struct BenchOptions {
  int threads = omp_get_max_threads();
  std::string device = "cpu";

  kernels::OpenQueue open() const {
    return kernels::open_queue({device == "cuda" ? DeviceKind::cuda : DeviceKind::cpu, 0}, threads);
  }
  bench::TrainBenchOptions train;
  std::string optimizer = "both";
};

void run_train(const BenchOptions& options) {
  bench::TrainBenchOptions train = options.train;
  const auto open = options.open();
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
  const double work = adamw.micro_batches * (adamw.step_ms - adamw.optimizer_ms);
  fmt::print("\nwith {:.0f} micro batches a step, a step with muon takes {:.2f}% longer than with adamw\n",
             adamw.micro_batches,
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
    sub->add_option("--device", options->device, "cpu, or cuda: the first GPU that this process sees")
        ->check(CLI::IsMember({"cpu", "cuda"}))
        ->capture_default_str();
    sub->footer(std::string("Example:\n  osprey bench ") + example);
    return sub;
  };
  add("gemm", "the model's products, and packed ones, ours beside oneDNN's or cuBLASLt's", "gemm --threads 1")
      ->callback([options] {
        const auto open = options->open();
        bench::bench_gemm(open.queue);
        bench::bench_block_gemm(open.queue);
      });
  add("ops", "each op alone, forward and backward", "ops --threads 2")->callback([options] {
    bench::bench_ops(options->open().queue);
  });
  add("quantize", "operands of packed products", "quantize --threads 1")->callback([options] {
    bench::bench_quantize(options->open().queue);
  });
  CLI::App* train =
      add("train", "whole training steps, with a profile", "train --threads 2 --optimizer adamw");
  using bench::BenchModel;
  train
      ->add_option("--model", options->train.model,
                   "34m, or for GPUs: 124m (GPT-2's size), 1b4 (recipes/pretrain/osp_1b4.yaml)")
      ->transform(CLI::CheckedTransformer(std::map<std::string, BenchModel>{
          {"34m", BenchModel::llama_34m}, {"124m", BenchModel::gpt2_124m}, {"1b4", BenchModel::osp_1b4}}));
  train
      ->add_option("--micro-batch", options->train.micro_batch,
                   "sequences at a time, instead of the model's own")
      ->check(CLI::Range(1, 1 << 16));
  train->add_option("--recompute", options->train.recompute, "none, attention or block")
      ->transform(CLI::CheckedTransformer(std::map<std::string, Recompute>{
          {"none", Recompute::none}, {"attention", Recompute::attention}, {"block", Recompute::block}}));
  train
      ->add_option("--quant", options->train.quant,
                   "a preset of the recipe's quant section, for the layers inside the blocks")
      ->capture_default_str();
  train->add_option("--steps", options->train.steps, "measured steps")->check(CLI::Range(1, 10000));
  train->add_option("--optimizer", options->optimizer, "adamw, muon, or both after each other")
      ->check(CLI::IsMember({"adamw", "muon", "both"}));
  train->callback([options] { run_train(*options); });
}

}  // namespace osprey
