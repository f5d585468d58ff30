#pragma once
// How likely a model finds given continuations of given tokens.

#include <cstdint>
#include <span>
#include <vector>

#include "framework/model.h"

namespace osprey {

/// The last `scored` tokens, each given all before it. 0 < scored < tokens.size().
struct ScoredText {
  std::span<const int32_t> tokens;
  int64_t scored = 0;
};

struct LikelihoodOptions {
  int64_t rows = 8;          // texts at a time
  int64_t sequence_len = 0;  // of a longer text only the last tokens are read
};

/// Sums of log probabilities, in nats, one for each text. `tape` is set to evaluate. Any order of texts gives
/// the same sums up to rounding; those of like length are computed together. Errors: a text whose scored
/// tokens do not fit into sequence_len.
std::vector<double> log_likelihoods(LanguageModel& model, Tape& tape, std::span<const ScoredText> texts,
                                    const LikelihoodOptions& options);

/// Cuts a sequence into texts that overlap: each reads up to `length` tokens, goes on by `stride`, and scores
/// what none before it scored. Every token but the first is scored once. Aliasing: the texts view `tokens`.
void add_windows(std::span<const int32_t> tokens, int64_t length, int64_t stride,
                 std::vector<ScoredText>& texts);

}  // namespace osprey
