#pragma once
// The rows of a batch as plain pointers: what the loaders of this folder write through.

#include <cstdint>

#include "framework/batch.h"

namespace osprey {

struct BatchRows {
  int64_t count, tokens;                       // B, T
  int32_t *token, *target, *position, *start;  // start is null when attention crosses documents

  enum class Documents { joined, apart };
  /// Errors: throws unless the views are (B, sequence_len), contiguous and in host memory.
  static BatchRows of(const BatchView& batch, int64_t sequence_len, Documents documents);
  BatchRows row(int64_t r) const;
  /// Gives tokens [begin, end) of a row, clipped to it, the positions of one document.
  void mark_document(int64_t begin, int64_t end) const;
};

/// Which rows of its global batch a rank takes in a micro step.
/// Errors: throws when the rows of a step do not divide, and past the last micro step.
int64_t first_row(int64_t global_rows, int64_t micro_step, int64_t rank, int64_t ranks, int64_t rows);

}  // namespace osprey
