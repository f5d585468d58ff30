#pragma once
// Adam on gradients that are held in a low-rank subspace.

#include "optim/adamw.h"

namespace osprey {

/// The direction of Adam is formed in the subspace and brought back by its basis B:
///   value -= lr (scale B^T d + weight_decay value)   (left; d B for the right side).
/// Matrices stay whole. A basis that is replaced leaves the moments as they are: their signs are aligned with
/// the old basis by who replaces it (framework/finetune). Numerics: d is rounded to the values' type before
/// it is brought back, in pieces of rows; masters or chance as in kernels/compact_adam.h. eps stands where
/// the settings say (the published code: beside the plain root). Reference: GaLore, Zhao et al.
/// 2403.03507, algorithm 2.
class SubspaceAdam final : public Optimizer {
 public:
  explicit SubspaceAdam(const AdamW::Settings& settings) : settings_(settings) {}

  const char* kind() const override { return "adamw in a subspace"; }
  ShardGranularity granularity() const override { return ShardGranularity::matrix; }
  std::vector<StateSpec> states() const override { return adam_states(settings_.moments); }
  bool updates_in_place() const override { return true; }
  double learning_rate() const override { return settings_.learning_rate; }
  int64_t workspace_bytes(const Queue& queue, std::span<const ParamPiece> pieces) const override;
  double cost(const Shape& full_shape) const override;
  void step(const Queue& queue, std::span<const ParamPiece> pieces, const StepInfo& info) const override;

 private:
  AdamW::Settings settings_;
};

}  // namespace osprey
