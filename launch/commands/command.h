#pragma once
// One subcommand a file: launch/commands/<name>.cpp defines add_<name>() and registers nothing itself;
// launch/main.cpp lists them. A command parses its options, calls the library, prints, and throws Error.

#include <omp.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <string>
#include <vector>

#include "kernels/core/tensor.h"

namespace osprey {

/// What every command about a recipe takes: RECIPE and --set.
struct RecipeOptions {
  std::string recipe;
  std::vector<std::string> overrides;

  void add_to(CLI::App& command) {
    command.add_option("recipe", recipe, "the recipe, a YAML file")->required();
    command
        .add_option("--set", overrides, "key.path=value, instead of what the recipe says; may be repeated")
        ->take_all()
        ->allow_extra_args(false);
  }
};

/// What every command about a checkpoint takes: CHECKPOINT and --threads.
struct CheckpointOptions {
  std::string checkpoint;
  int threads = std::max(1, omp_get_max_threads());  // OMP_NUM_THREADS, else all cores
  std::string device = "cpu";

  Device on_device() const { return {device == "cuda" ? DeviceKind::cuda : DeviceKind::cpu, 0}; }

  void add_to(CLI::App& command) {
    command.add_option("checkpoint", checkpoint, "a checkpoint, or a run (its newest checkpoint)")
        ->required();
    command.add_option("--threads", threads, "CPU threads; OMP_NUM_THREADS if absent, else all cores")
        ->check(CLI::Range(1, 1024))
        ->capture_default_str();
    command.add_option("--device", device, "cpu, or cuda: the first GPU that this process sees")
        ->check(CLI::IsMember({"cpu", "cuda"}))
        ->capture_default_str();
  }
};

void add_train(CLI::App& app);
void add_check(CLI::App& app);
void add_plan(CLI::App& app);
void add_prepare(CLI::App& app);
void add_data(CLI::App& app);
void add_eval(CLI::App& app);
void add_inspect(CLI::App& app);
void add_generate(CLI::App& app);
void add_export(CLI::App& app);
void add_quantize(CLI::App& app);
void add_report(CLI::App& app);
void add_fields(CLI::App& app);
void add_bench(CLI::App& app);
void add_devices(CLI::App& app);
void add_scaling(CLI::App& app);

}  // namespace osprey
