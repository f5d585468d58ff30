#pragma once
// The tokens of one micro step on one rank: what loaders fill and models read.

#include "kernels/core/tensor.h"

namespace osprey {

/// Views of memory that somebody else owns. All (B, T), i32, contiguous.
struct BatchView {
  Tensor tokens;
  Tensor targets;         // the token after; -1 where there is nothing to predict
  Tensor positions;       // in the sequence, or in the document where attention stays inside documents
  Tensor document_start;  // index in the sequence of the document's first token; undefined where attention
                          // crosses documents
  int64_t batch() const { return tokens.shape[0]; }
  int64_t sequence() const { return tokens.shape[1]; }
};

}  // namespace osprey
