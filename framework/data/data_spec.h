#pragma once
// The `data` section of a recipe.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "framework/config/fields.h"
#include "framework/data/instruction_row.h"

namespace osprey {

struct SourceSpec {
  std::string path;
  std::optional<double> weight;
  InstructionFormat format = InstructionFormat::automatic;
  /// Is it instruction data (a path in .jsonl or .json), and not token shards?
  bool instructions() const { return path.ends_with(".jsonl") || path.ends_with(".json"); }
  void fields(Fields& f);
};

struct DataSpec {
  std::string tokenizer;
  std::vector<SourceSpec> train, validation;
  int64_t sequence_len = 512;
  bool attention_across_documents = true;

  // Of instruction data.
  enum class Overlong { drop, truncate, error };
  std::string chat_template = "auto";  // `template` in the recipe
  bool train_on_inputs = false;
  bool packing = true;
  Overlong overlong = Overlong::drop;
  double validation_fraction = 0;
  bool strict = false;

  bool instructions() const { return !train.empty() && train.front().instructions(); }
  /// Does attention stay inside each document?
  bool documents_apart() const { return instructions() || !attention_across_documents; }
  void fields(Fields& f);

 private:
  void instruction_fields(Fields& f);
};

}  // namespace osprey
