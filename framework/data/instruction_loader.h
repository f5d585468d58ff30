#pragma once
// Batches of instruction data as functions of the step. In every epoch the documents are shuffled, packed
// into rows of sequence_len tokens, and the rows shuffled; attention and positions stay inside each document.
// Row r of a step is row step * global_rows + r of the run, whoever reads it: nothing depends on the number
// of ranks, and there is no state to save.

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "framework/data/batch_rows.h"
#include "framework/data/instruction_set.h"
#include "framework/data/loader.h"
#include "framework/data/packing.h"
#include "framework/data/permutation.h"

namespace osprey {

/// Rows that are shuffled and packed together.
struct InstructionPool {
  std::shared_ptr<const InstructionSet> set;
  std::optional<double> weight;  // of its rows; without one, by size
};

class InstructionLoader final : public TrainingData {
 public:
  struct Setup {
    uint64_t seed = 0;
    int64_t global_rows = 0;  // sequences in one optimizer step, over all ranks and micro steps
    int32_t filler = 0;       // the token after the last document of a row
  };
  /// Errors: a pool without rows.
  InstructionLoader(const DataSpec& spec, std::vector<InstructionPool> pools, const Setup& setup);

  int64_t batch(int64_t step, int64_t micro_step, int64_t rank, int64_t ranks,
                const BatchView& into) override;
  int64_t rows(double epochs) override;
  /// The documents of a row of the run, as their numbers in the set of its pool.
  struct Row {
    const InstructionSet* set;
    std::span<const int32_t> documents;
  };
  Row row(int64_t n);

 private:
  struct Epoch {
    std::optional<uint64_t> number;
    PackedRows packed;
    Permutation rows;
  };
  struct Pool {
    InstructionPool given;
    uint64_t document_shuffle = 0, row_shuffle = 0;  // random streams
    std::vector<int64_t> first_row{0};               // of every epoch worked out so far, and the one after
    std::array<Epoch, 2> epochs;                     // a step may lie across the end of one
  };
  const Epoch& epoch(Pool& pool, uint64_t number);
  void work_out(Pool& pool, uint64_t number);
  Row row(Pool& pool, int64_t n);

  DataSpec spec_;
  Setup setup_;
  std::deque<Pool> pools_;
  std::optional<Mixture> mixture_;
};

/// Instruction data in file order, packed the same way.
class InstructionValidation final : public ValidationData {
 public:
  /// Reads the first `max_tokens` tokens only, in whole rows.
  InstructionValidation(const DataSpec& spec, std::shared_ptr<const InstructionSet> set, int32_t filler,
                        int64_t max_tokens = INT64_MAX);
  int64_t rows() const override { return rows_; }
  const DataSpec& spec() const override { return spec_; }
  int64_t batch(int64_t first, const BatchView& into) override;

 private:
  DataSpec spec_;
  std::shared_ptr<const InstructionSet> set_;
  int32_t filler_;
  PackedRows packed_;
  int64_t rows_ = 0;
};

/// Writes documents side by side into one row, each blind to the others: the first token of a document is no
/// target, nor is what fills the row up. Returns the number of targets.
int64_t fill_row(const InstructionSet& set, std::span<const int32_t> documents, int32_t filler,
                 const BatchRows& row);

}  // namespace osprey
