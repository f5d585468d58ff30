#pragma once
// How the head is cut into rows on a GPU. Memory bounds them from above; from below they should be many,
// because dW (V, C) passes through memory once for each chunk. With and without gradients alike, so that
// losses have the same bits.

#include <algorithm>

#include "kernels/classifier.h"

namespace osprey::cuda {

struct ClassifierChunks {
  int64_t rows;    // at a time
  int64_t stride;  // floats from one row of logits to the next: every row starts at a multiple of 256 bytes
  int64_t losses;  // doubles, one for every row of the batch

  static constexpr int64_t most_bytes = int64_t{512} << 20;  // of logits

  static ClassifierChunks of(int64_t rows, int64_t vocabulary) {
    constexpr int64_t unit = 128;
    const int64_t stride = (vocabulary + 63) / 64 * 64;
    const int64_t most = std::max(unit, most_bytes / 4 / stride / unit * unit);
    const int64_t chunks = std::max<int64_t>(1, (rows + most - 1) / most);
    const int64_t even = ((rows + chunks - 1) / chunks + unit - 1) / unit * unit;
    return {.rows = std::min(even, rows), .stride = stride, .losses = rows};
  }
  /// Of scratch: logits, losses, and what aligns the first row.
  int64_t floats() const { return rows * stride + 2 * losses + 64; }
};

/// kernels::classifier() cut as `chunks` say; scratch holds chunks.floats().
void classifier(const Queue& queue, const kernels::Classifier& args, const ClassifierChunks& chunks);

}  // namespace osprey::cuda
