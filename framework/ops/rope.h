#pragma once
#include "framework/tape/tape.h"
#include "kernels/numerics/rope.h"

namespace osprey {

struct RopeArgs {
  int64_t heads = 0, kv_heads = 0, head_size = 0;
  double theta = 10000;
  RopeScaling scaling = {};
  float eps = 1e-6f;  // of the QK norms
  Tensor positions;   // (N) i32
};

/// Rotary positions on the query and key columns of a fused buffer, after an optional RMSNorm of each head.
/// In place: qkv's producer must not need its output for backward (linear does not), and the returned Var
/// has the same memory.
/// Shapes: qkv (N, (H + 2G) D), q_norm and k_norm (D) or invalid Vars -> (N, (H + 2G) D).
Var rope(Tape& t, Var qkv, const RopeArgs& args, Var q_norm, Var k_norm);

}  // namespace osprey
