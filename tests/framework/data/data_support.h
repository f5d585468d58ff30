#pragma once
// Small helpers of the data tests: whole files as strings, and the text of an expected error.

#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "framework/batch.h"
#include "framework/data/data_spec.h"
#include "kernels/core/check.h"

namespace osprey {

inline std::string slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream all;
  all << in.rdbuf();
  return all.str();
}

inline void spill(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// What Error the action throws, or "no error"; anything else goes through and fails the test.
template <class Action>
std::string error_of(const Action& action) {
  try {
    action();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

/// Memory for one batch.
class BatchBuffer {
 public:
  BatchBuffer(const DataSpec& spec, int64_t rows)
      : memory_(static_cast<size_t>(4 * rows * spec.sequence_len)) {
    const auto view = [&](int64_t i) {
      return make_tensor(memory_.data() + i * rows * spec.sequence_len, {rows, spec.sequence_len},
                         DType::i32);
    };
    batch = {.tokens = view(0), .targets = view(1), .positions = view(2), .document_start = {}};
    if (spec.documents_apart()) batch.document_start = view(3);
  }
  BatchView batch;

 private:
  std::vector<int32_t> memory_;
};

}  // namespace osprey
