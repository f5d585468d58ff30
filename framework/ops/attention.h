#pragma once
#include <optional>

#include "framework/tape/tape.h"
#include "kernels/attention.h"

namespace osprey {

struct AttentionArgs {
  int64_t batch = 0;  // B; N = B * T
  int64_t heads = 0, kv_heads = 0, head_size = 0;
  Tensor document_start;              // (B, T) i32, or undefined
  std::optional<kernels::Clip> clip;  // clipped softmax
  int64_t window = 0;                 // keys that a token sees, itself included; 0: all before it
};

/// Causal attention on a fused buffer. Saves its output and the row log-sum-exps only.
/// Shapes: qkv (N, (H + 2G) D); gate logits (N, H) or (N, H*D) or an invalid Var; sink (H) or an invalid Var
/// -> (N, H*D).
/// Shows (q, k, lse) to the tape's tap.
Var attention(Tape& t, Var qkv, const AttentionArgs& args, Var gate, Var sink);

/// One new token for each sequence: appends its keys and values to the cache at lengths - 1, then attends
/// over the first `lengths` entries. For evaluation only; records nothing.
/// Shapes: qkv (B, (H + 2G) D), caches (B, capacity, G*D), lengths (B) i32, the new token included -> (B,
/// H*D). Errors: throws when a length is outside [1, capacity].
Var cached_attention(Tape& t, Var qkv, const AttentionArgs& args, Var gate, Var sink, const Tensor& key_cache,
                     const Tensor& value_cache, const Tensor& lengths);

}  // namespace osprey
