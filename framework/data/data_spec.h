#pragma once
// The `data` section of a recipe.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "framework/config/fields.h"

namespace osprey {

struct SourceSpec {
  std::string path;
  std::optional<double> weight;
  void fields(Fields& f);
};

struct DataSpec {
  std::string tokenizer;
  std::vector<SourceSpec> train, validation;
  int64_t sequence_len = 512;
  bool attention_across_documents = true;
  void fields(Fields& f);
};

}  // namespace osprey
