#pragma once
// Instruction data in memory: rows read from JSON, written by a template, encoded, and counted.

#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "framework/data/chat_template.h"
#include "framework/data/data_spec.h"
#include "framework/data/instruction_row.h"
#include "framework/data/tokenizer.h"

namespace osprey {

/// Encoded rows, one behind the other.
class InstructionSet {
 public:
  void add(const TokenRow& row);
  int64_t size() const { return static_cast<int64_t>(lengths_.size()); }
  /// Of every row.
  std::span<const int32_t> lengths() const { return lengths_; }
  std::span<const int32_t> tokens(int64_t row) const { return part(tokens_, row); }
  std::span<const uint8_t> trained(int64_t row) const { return part(trained_, row); }

 private:
  template <class T>
  std::span<const T> part(const std::vector<T>& all, int64_t row) const {
    const auto at = static_cast<size_t>(row);
    return std::span(all).subspan(static_cast<size_t>(begin_[at]), static_cast<size_t>(lengths_[at]));
  }
  std::vector<int32_t> tokens_, lengths_;
  std::vector<uint8_t> trained_;
  std::vector<int64_t> begin_;
};

/// What became of the rows of some files.
struct InstructionCounts {
  struct Dropped {
    int64_t rows = 0;
    std::string first;  // "file:line: about this row"
  };
  int64_t rows = 0, kept = 0, held_out = 0, truncated = 0;  // rows = kept + held out + dropped
  int64_t tokens = 0, trained_tokens = 0;                   // of kept rows
  std::map<std::string, Dropped> dropped;                   // by reason
  std::set<InstructionFormat> formats;                      // of the files
};

struct InstructionSetup {
  const Tokenizer& tokenizer;
  const ChatTemplate& chat_template;
  int64_t vocab_size = 0;  // of the model
  uint64_t seed = 0;       // decides what is held out
  int threads = 1;
};

/// The tokens of one row as training reads them: with the begin of text where the tokenizer has texts begin
/// so, and with the end of text after what is learnt to the last; a row that came as tokens stays as it is.
/// Errors: throws what the template refuses with.
TokenRow encode_row(const InstructionRow& row, const InstructionSetup& setup, const DataSpec& spec);

/// Reads the files of one source. With spec.validation_fraction, rows go to `held_out` instead, drawn one by
/// one as a function of (seed, number of the row); null: nothing is held out. The same on any number of
/// threads. Errors: no such file, formats that mix, and with spec.strict or overlong: error the first row
/// that cannot be used, each with file and line.
void read_instructions(const SourceSpec& source, const DataSpec& spec, const InstructionSetup& setup,
                       InstructionSet& kept, InstructionSet* held_out, InstructionCounts& counts);

}  // namespace osprey
