#pragma once
#include "framework/ops/rmsnorm.h"
#include "framework/parameter.h"

namespace osprey {

enum class NormKind { rmsnorm, ssnorm, layernorm };

/// x (N, C) -> (N, C).
struct Norm {
  NormKind kind = NormKind::rmsnorm;
  Parameter* weight = nullptr;  // (C); ssnorm: (1)
  Parameter* bias = nullptr;    // (C), layernorm only
  float eps = 1e-6f;

  /// Declares `name`.weight (ones) and, for layernorm, `name`.bias (zeros).
  static Norm declare(ParamStore& params, const std::string& name, int layer, NormKind kind, int64_t width,
                      double eps);
  Var operator()(Tape& t, Var x) const;
  /// a + b and its norm, in one pass where there is one.
  NormedSum of_sum(Tape& t, Var a, Var b) const;
};

}  // namespace osprey
