#pragma once
// The recipe's `run` and `train` sections.

#include <algorithm>
#include <optional>
#include <string>

#include "framework/config/fields.h"
#include "framework/tape/tape.h"
#include "kernels/core/check.h"

namespace osprey {

struct RunSpec {
  enum class DeviceChoice { automatic, cpu, cuda };
  std::string name = "run";
  std::string output_dir = "runs";
  int64_t seed = 42;
  DeviceChoice device = DeviceChoice::automatic;
  std::optional<int64_t> threads;

  void fields(Fields& f) {
    f("name", name, "run directory inside output_dir");
    f("output_dir", output_dir, "where run directories live");
    f("seed", seed, "of everything random: initial values, data order", at_least(0));
    f.choice("device", device,
             {{"auto", DeviceChoice::automatic}, {"cpu", DeviceChoice::cpu}, {"cuda", DeviceChoice::cuda}},
             "auto takes a GPU if this build and machine have one");
    f("threads", threads,
      "CPU threads of each rank; absent: OMP_NUM_THREADS where that is set, else the cores the launcher bound "
      "the rank to, shared evenly among the ranks of this host that are bound to the same cores",
      between(1, 1024));
    const auto control = [](char c) { return static_cast<unsigned char>(c) < 0x20; };
    f.rule(!name.empty() && name.find('/') == std::string::npos && name != "." && name != ".." &&
               std::none_of(name.begin(), name.end(), control),
           "name", "must be a plain directory name");
    f.rule(!output_dir.empty(), "output_dir", "must name a directory");
  }
};

/// Are fp32 masters kept of bf16 values, or are the values updated as they are?
enum class Masters { kept, none };

/// When parameters are updated: once all gradients of a step are there, or each layer's as soon as its own
/// are.
enum class Updates { after_backward, in_backward };

struct TrainSpec {
  std::optional<int64_t> tokens, steps;
  std::optional<double> epochs;
  int64_t steps_of_epochs =
      0;  // what `epochs` come to: known once the data are open, and no key of the recipe
  int64_t global_batch_tokens = 32768;
  int64_t micro_batch_size = 8;
  DType precision = DType::bf16;
  Masters masters = Masters::kept;
  Updates updates = Updates::after_backward;
  Recompute recompute = Recompute::none;
  std::optional<double> max_grad_norm = 1.0;
  enum class Graphs { automatic, on, off };
  Graphs cuda_graphs = Graphs::automatic;
  int64_t max_skipped_updates = 10;
  int64_t profile_steps = 0;
  int64_t eval_every_steps = 100;
  int64_t eval_tokens = 65536;

  void fields(Fields& f) {
    f("tokens", tokens, "length of the run in tokens; give one of tokens, steps and epochs",
      between(1, 1e18));
    f("steps", steps, "length of the run in optimizer steps", between(1, 1e12));
    f("epochs", epochs,
      "length of the run in passes over the training data; the last step is filled up from the next pass",
      between(1e-3, 1e5));
    f.rule(int{tokens.has_value()} + int{steps.has_value()} + int{epochs.has_value()} == 1, "tokens",
           "give exactly one of tokens, steps and epochs; null takes one back");
    f("global_batch_tokens", global_batch_tokens, "tokens of one optimizer step over all ranks",
      between(1, 1e12));
    f("micro_batch_size", micro_batch_size, "sequences that one rank computes at a time",
      between(1, 1 << 20));
    // The run's tokens are counted in 64 bits.
    f.rule(!steps || *steps <= (int64_t{1} << 62) / std::max<int64_t>(1, global_batch_tokens), "steps",
           "times global_batch_tokens is more than 4.6e18 tokens");
    f.choice("precision", precision, {{"bf16", DType::bf16}, {"fp32", DType::f32}},
             "bf16: activations and weights in bf16, gradients in fp32");
    f.choice(
        "master_weights", masters, {{"fp32", Masters::kept}, {"none", Masters::none}},
        "fp32: bf16 weights are rounded from copies in fp32, 4 bytes a parameter. none: they are updated as they "
        "are and rounded by chance, so that small steps are kept on average; adamw only");
    f.choice(
        "updates", updates,
        {{"after_backward", Updates::after_backward}, {"in_backward", Updates::in_backward}},
        "after_backward: once all gradients are there. in_backward: each layer as soon as its gradients are, which "
        "then make room for those of the next: gradients take the memory of one layer, and of some rows of embedding "
        "and head. In that case with one rank and one micro batch a step, and without clipping");
    f.choice(
        "recompute", recompute,
        {{"none", Recompute::none}, {"attention", Recompute::attention}, {"block", Recompute::block}},
        "block: keep only each block's input and compute the rest again during backward; attention: the same "
        "for the attention half of each block only");
    f.choice(
        "cuda_graphs", cuda_graphs, {{"auto", Graphs::automatic}, {"on", Graphs::on}, {"off", Graphs::off}},
        "record a step on the GPU and replay it, which spares the host from launching its kernels one by one; "
        "auto: with one rank");
    f("max_grad_norm", max_grad_norm,
      "global gradient norm above which gradients are scaled down; null: no clipping", positive());
    f.rule(updates == Updates::after_backward || !max_grad_norm, "updates",
           "in_backward knows no norm of all gradients before the first is used; set max_grad_norm: null");
    f("profile_steps", profile_steps,
      "steps, after the first three of the run, that are written op by op to trace.json in the run directory, for "
      "chrome://tracing or Perfetto",
      between(0, 1000));
    f("max_skipped_updates", max_skipped_updates,
      "updates in a row that may be skipped because loss or gradient is not finite; one more ends the run",
      at_least(0));
    f("eval_every_steps", eval_every_steps, "steps from one evaluation on the validation data to the next",
      at_least(1));
    f("eval_tokens", eval_tokens, "tokens of one evaluation; never more than the validation data hold",
      at_least(1));
  }

  /// Errors: throws where the length is given in epochs and the data have not been opened.
  int64_t total_steps() const {
    if (steps) return *steps;
    if (tokens) return (*tokens + global_batch_tokens - 1) / global_batch_tokens;
    require(steps_of_epochs > 0, "train", "the steps of train.epochs are known once the data are open");
    return steps_of_epochs;
  }
};

}  // namespace osprey
