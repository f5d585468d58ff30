#pragma once
#include "framework/scaling/run_record.h"

namespace osprey::test {

/// A record as `osprey train` makes it, of a run of this size and length.
inline RunRecord example_record(const std::string& run = "a", int64_t parameters = 1'000'000,
                                int64_t tokens = 20'000'000) {
  RunRecord r;
  r.run = run;
  r.recipe_hash = "0123456789abcdef";
  r.version = "0.1.0";
  r.parameters = parameters + 500'000;
  r.parameters_without_embedding = parameters;
  r.tokens = tokens;
  r.batch_tokens = 4096;
  r.sequence_len = 256;
  r.optimizers = {"muon", "adamw"};
  r.schedule = "wsd, warmup 30 steps";
  r.seed = 42;
  r.tokenizer = "bytes";
  r.validation_loss = 3.1;
  r.validation_standard_error = 0.004;
  r.validation_tokens = 65536;
  r.train_loss = 3.05;
  r.train_loss_steps = 12;
  r.flops = 1.25e14;
  return r;
}

/// The same run with quantization.
inline RunRecord quantized(RunRecord r, const std::string& run, double delta, int64_t block = 32,
                           const std::string& weights = "mxfp4") {
  r.run = run;
  r.formats = {weights, "mxfp4", "bf16", block};
  *r.validation_loss += delta;
  return r;
}

}  // namespace osprey::test
