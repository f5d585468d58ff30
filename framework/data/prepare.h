#pragma once
// From files of text to a directory of token shards:
//   OUT/train-00000.{bin,idx,json} ...  OUT/validation-00000.{bin,idx,json} ...  OUT/tokenizer/
//   OUT/prepare.json
// Everything is written into OUT.partial and becomes visible by one rename.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "framework/data/text_reader.h"
#include "framework/data/tokenizer.h"

namespace osprey {

struct PrepareOptions {
  enum class Existing { refuse, keep };  // keep: a complete output of the same settings is left as it is

  std::vector<std::string> inputs;  // files and shell patterns
  std::string output;
  TextOptions text;
  std::string tokenizer;                          // what load_tokenizer takes; empty when one is trained
  std::optional<SentencepieceTraining> training;  // instead of `tokenizer`
  int64_t tokenizer_lines = 200'000;              // lines drawn from the training documents to train it on
  double validation_fraction = 0.01;              // of documents, drawn one by one
  int64_t shard_tokens = 100'000'000;             // a shard is closed when it holds so many
  uint64_t seed = 42;
  int threads = 1;
  Existing existing = Existing::refuse;
};

struct PrepareProgress {
  const char* stage = "";  // "reading for the tokenizer", "training the tokenizer", "encoding"
  int64_t documents = 0, text_bytes = 0, tokens = 0;
};

struct SplitSummary {
  std::string name;
  int64_t shards = 0, documents = 0, tokens = 0, text_bytes = 0;
};

struct PrepareSummary {
  std::vector<SplitSummary> splits;  // train, then validation if any
  std::string tokenizer_fingerprint;
  int64_t vocab_size = 0, skipped = 0;
  std::string first_skipped;
  bool already_there = false;
};

/// The same options and inputs give the same bytes, whatever the number of threads.
/// Errors: everything wrong with options, inputs or disk is named; nothing is left at `output`
/// then.
PrepareSummary prepare(const PrepareOptions& options,
                       const std::function<void(const PrepareProgress&)>& progress);

/// Writes side-cars beside shards made by other tools, having read all of them.
/// Errors: tokens outside the vocabulary, documents that do not end with the end of text, a
/// side-car that is there already. Returns the prefixes.
std::vector<std::string> adopt_shards(const std::vector<std::string>& patterns, const Tokenizer& tokenizer);

}  // namespace osprey
