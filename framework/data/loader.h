#pragma once
// Batches as functions of the step. Documents of a source are laid end to end in an order shuffled
// anew every epoch, cut into windows of sequence_len + 1 tokens (a window's last token is only a
// target and begins the next one), and the windows are shuffled too; sources are mixed by weight.
// Sample n of a run is therefore a function of (seed, n), and row r of a step is sample step *
// global_rows + r, whoever reads it: nothing depends on the number of ranks, and there is no state
// to save.

#include <array>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "framework/batch.h"
#include "framework/data/data_spec.h"
#include "framework/data/mixture.h"
#include "framework/data/token_stream.h"
#include "framework/data/tokenizer.h"

namespace osprey {

/// A part of a document that a step read.
struct DocumentUse {
  int64_t row = 0;       // of the global batch
  std::string file;      // without .bin
  int64_t document = 0;  // within the file
  int64_t offset = 0, tokens = 0;
  bool operator==(const DocumentUse&) const = default;
};

/// Where training batches come from.
class TrainingData {
 public:
  virtual ~TrainingData() = default;
  /// Fills the B rows that `rank` of `ranks` trains on in micro step `micro_step` of `step`; over
  /// all ranks and micro steps these are the global_rows rows of the step, each once. Returns how many
  /// targets are not -1. Allocates nothing, but at the first use of an epoch its order is worked out, in
  /// time linear in the number of documents.
  virtual int64_t batch(int64_t step, int64_t micro_step, int64_t rank, int64_t ranks,
                        const BatchView& into) = 0;
  /// How many rows so many epochs have; an epoch reads all sources once.
  virtual int64_t rows(double epochs) = 0;
};

/// Where evaluation reads, row by row.
class ValidationData {
 public:
  virtual ~ValidationData() = default;
  virtual int64_t rows() const = 0;
  virtual const DataSpec& spec() const = 0;
  /// Fills B rows from row `first` on; rows past the end have no targets. Returns how many targets are
  /// not -1. Allocates nothing.
  virtual int64_t batch(int64_t first, const BatchView& into) = 0;
};

/// Training batches from token shards.
/// Errors: whatever is wrong with files, tokenizer, weights or sizes is found when the loader is
/// made, except a token beyond what the side-car promised, which is found when it is read.
class Loader final : public TrainingData {
 public:
  struct Setup {
    uint64_t seed = 0;
    int64_t global_rows = 0;  // sequences in one optimizer step, over all ranks and micro steps
    int64_t vocab_size = 0;   // of the model
  };
  Loader(const DataSpec& spec, const Tokenizer& tokenizer, const Setup& setup);

  int64_t batch(int64_t step, int64_t micro_step, int64_t rank, int64_t ranks,
                const BatchView& into) override;
  int64_t rows(double epochs) override;
  /// What `step` reads, row by row.
  std::vector<DocumentUse> documents(int64_t step);

  /// Tokens of all training sources: one epoch.
  int64_t tokens() const;

 private:
  struct Epoch {
    explicit Epoch(const TokenStream& stream) : order(stream) {}
    std::optional<uint64_t> number;
    DocumentOrder order;
    Permutation windows;
  };
  struct Source {
    Source(const SourceSpec& spec, const Tokenizer& tokenizer, int64_t vocab_size)
        : stream({spec.path}, tokenizer, vocab_size), epochs{Epoch(stream), Epoch(stream)} {}
    Source(const Source&) = delete;
    Source& operator=(const Source&) = delete;
    TokenStream stream;
    std::array<Epoch, 2> epochs;                        // a step may lie across the end of one
    uint64_t windows = 0;                               // in an epoch
    uint64_t document_shuffle = 0, window_shuffle = 0;  // random streams
  };
  struct Window {
    const Source* source;
    const DocumentOrder* order;
    int64_t begin;  // token in the order
  };
  Window window(uint64_t sample);

  DataSpec spec_;
  Setup setup_;
  std::deque<Source> sources_;
  std::optional<Mixture> mixture_;
  std::vector<int32_t> scratch_;  // T + 1 tokens
};

/// The validation sources in file order, cut into rows without overlap of targets: every token but
/// the very first is a target once (without attention across documents, the first of each document
/// is none). The last row is filled up with tokens that are not targets.
class ValidationLoader final : public ValidationData {
 public:
  /// Reads the first `max_tokens` targets only, in whole rows.
  ValidationLoader(const DataSpec& spec, const Tokenizer& tokenizer, int64_t vocab_size,
                   int64_t max_tokens = INT64_MAX);
  ValidationLoader(const ValidationLoader&) = delete;
  ValidationLoader& operator=(const ValidationLoader&) = delete;

  int64_t rows() const override { return rows_; }
  const DataSpec& spec() const override { return spec_; }
  int64_t batch(int64_t first, const BatchView& into) override;

 private:
  DataSpec spec_;
  TokenStream stream_;
  DocumentOrder order_;
  int32_t eos_id_;
  int64_t rows_ = 0;
  std::vector<int32_t> scratch_;
};

}  // namespace osprey
