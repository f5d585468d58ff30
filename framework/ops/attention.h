#pragma once
#include <optional>

#include "framework/tape/tape.h"

namespace osprey {

struct ClipArgs {
  float zeta = 1, gamma = 0;
};

struct AttentionArgs {
  int64_t batch = 0;  // B; N = B * T
  int64_t heads = 0, kv_heads = 0, head_size = 0;
  Tensor document_start;         // (B, T) i32, or undefined
  std::optional<ClipArgs> clip;  // clipped softmax
};

/// Causal attention on a fused buffer. Saves its output and the row log-sum-exps only.
/// Shapes: qkv (N, (H + 2G) D); gate logits (N, H) or (N, H*D) or an invalid Var; sink (H) or an invalid Var
/// -> (N, H*D).
/// Shows (q, k, lse) to the tape's tap.
Var attention(Tape& t, Var qkv, const AttentionArgs& args, Var gate, Var sink);

}  // namespace osprey
