#pragma once
// How much of the attention goes to the first token: the attention sink, as one number a layer.

#include <cstdint>
#include <optional>

#include "kernels/core/queue.h"
#include "kernels/core/tensor.h"

namespace osprey {

struct FirstTokenArgs {
  Tensor q;               // (B*T, H*D), after position encoding; bf16 or f32, row-strided
  Tensor k;               // (B*T, G*D)
  Tensor lse;             // (B, H, T) f32: log of the softmax denominator of scale * q.k
  Tensor document_start;  // (B, T) i32: the first token each query may see; undefined: the sequence's first
  int64_t batch = 0, tokens = 0, heads = 0, kv_heads = 0, head_size = 0;
  int64_t window = 0;  // tokens that a query sees, itself included; 0: all before it
  float scale = 1;
};

/// Sum of attention probabilities, to be merged over micro batches and ranks.
struct FirstTokenSums {
  double probability = 0;         // sum over heads and queries
  int64_t queries = 0;            // heads times queries in the sum
  int64_t nonfinite_queries = 0;  // left out of the sum

  void merge(const FirstTokenSums& other);
  /// Mean probability; absent when there was no query.
  std::optional<double> share() const;
};

/// Sum over sequences, heads and queries i of exp(scale * q_i . k_s - lse_i), where s is the first token
/// that the query may see: 0, or the start of its document. Query head h reads key head h / (H / G).
/// A first token itself is left out: it attends to nothing else, always 1; so are queries whose window does
/// not reach back to s.
/// Numerics: dot products and sums in double; bits do not depend on queue.threads. With attention sinks
/// the sink's mass is in lse; for clipped softmax this is the share before clipping.
/// Errors: throws when shapes disagree.
FirstTokenSums first_token_share(const Queue& queue, const FirstTokenArgs& args);

}  // namespace osprey
