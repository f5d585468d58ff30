#pragma once
// The recipe's `telemetry` section: what of a run is written down, and how often.

#include <algorithm>
#include <string>
#include <vector>

#include "framework/config/fields.h"

namespace osprey {

/// The activations that the tape's tap offers, in the order in which reports show them.
inline const std::vector<std::string>& observed_tensors() {
  static const std::vector<std::string> names{"block_input", "attention_output", "down_input",
                                              "final_hidden"};
  return names;
}

struct TelemetrySpec {
  int64_t train_every_steps = 1;
  double progress_every_seconds = 10;
  bool tensorboard = true;
  bool outliers = true;
  int64_t outliers_every_steps = 100;
  std::vector<std::string> outlier_tensors = observed_tensors();
  bool first_token_share = true;
  int64_t osp_tokens = 512;
  bool quantization = true;
  int64_t quantization_every_steps = 100;
  bool oscillation = false;

  void fields(Fields& f) {
    f("train_every_steps", train_every_steps, "steps from one train entry of metrics.jsonl to the next",
      at_least(1));
    f("progress_every_seconds", progress_every_seconds,
      "seconds between progress lines when the output is no terminal", positive());
    f("tensorboard", tensorboard, "also write TensorBoard event files to tensorboard/");
    f("outliers", outliers, "measure activation outliers during training");
    f.when(outliers, "outliers is true", [&] {
      f("outliers_every_steps", outliers_every_steps, "steps from one outlier measurement to the next",
        at_least(1));
      f("outlier_tensors", outlier_tensors,
        "which of block_input, attention_output, down_input, final_hidden");
      f("first_token_share", first_token_share, "also measure the share of attention on the first token");
      f("osp_tokens", osp_tokens,
        "tokens per rank that are also run as sequences of length one (the OSP paper's kurtosis protocol); 0 "
        "leaves it out",
        at_least(0));
    });
    f("quantization", quantization, "measure what the quantized operands of products lose");
    f.when(quantization, "quantization is true", [&] {
      f("quantization_every_steps", quantization_every_steps,
        "steps from one measurement of quantization to the next", at_least(1));
      f("oscillation", oscillation,
        "also follow how often 4-bit weights jump back and forth; looks at every step");
    });
    for (const std::string& name : outlier_tensors) {
      const auto& known = observed_tensors();
      f.rule(std::find(known.begin(), known.end(), name) != known.end(), "outlier_tensors",
             "'" + name + "' is none of block_input, attention_output, down_input, final_hidden");
    }
  }
};

}  // namespace osprey
