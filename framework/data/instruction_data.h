#pragma once
// All instruction data of a recipe, read and encoded: what loaders and `osprey data show` work from.

#include <memory>
#include <string>
#include <vector>

#include "framework/data/instruction_loader.h"
#include "framework/data/instruction_set.h"

namespace osprey {

struct InstructionData {
  std::shared_ptr<const Tokenizer> tokenizer;
  std::unique_ptr<ChatTemplate> chat_template;
  std::vector<InstructionPool> train;  // one pool, or one for each source where they have weights
  std::shared_ptr<const InstructionSet> validation;  // null without
  InstructionCounts train_counts, validation_counts;

  /// What was read, and what was left out and why: lines for people.
  std::vector<std::string> summary() const;
};

struct InstructionRequest {
  int64_t vocab_size = 0;  // of the model
  uint64_t seed = 0;       // decides what is held out
  int threads = 1;
  enum class Sources { all, validation } sources = Sources::all;
};
/// Errors: as read_instructions() and load_template(), and data of which no row can be used, with the
/// reasons.
InstructionData open_instructions(const DataSpec& spec, std::shared_ptr<const Tokenizer> tokenizer,
                                  const InstructionRequest& request);

/// Lines that say how many rows of `counts` were used, and why others were not.
std::vector<std::string> describe(const std::string& what, const InstructionCounts& counts);

}  // namespace osprey
