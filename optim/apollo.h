#pragma once
// APOLLO: whole gradients, scaled as Adam would scale their random projections.

#include "optim/adamw.h"

namespace osprey {

/// For a gradient G of an (out, in) matrix, whose smaller side is projected by a matrix P of normal draws
/// with variance 1 / rank (the left side where out < in: R = P G, else R = G P^T):
///   d = Adam's direction from R, with moments of R's shape alone
///   s = |d_c| / |R_c| for each column (left) or row c, or |d| / |R| for the whole matrix
///   value -= lr (scale G s + weight_decay value), where |G s| grows at most 1.01 fold from step to step
/// P is a function of (seed, name, step / refresh_every) and is drawn again in every step; nothing of it is
/// kept. Matrices stay whole. State: moments in the projection's shape, and the norm of the last |G s|.
/// Numerics: all in fp32; masters or chance as in kernels/compact_adam.h. Moments are corrected for their
/// bias before the limit (the published code: after it), and `scale` multiplies as it stands (the published
/// code: its root). Reference: Zhu et al. 2412.05270, algorithm 1; the limit: Chen et al. 2410.01623.
class Apollo final : public Optimizer {
 public:
  enum class Scaling { channel, tensor };
  struct Projection {
    int64_t rank = 256;
    int64_t refresh_every = 200;
    double scale = 1;
    Scaling scaling = Scaling::channel;
    int64_t elements_at_a_time = int64_t{1} << 22;  // of the scaled gradient, whole rows
  };
  Apollo(const AdamW::Settings& adam, const Projection& projection) : adam_(adam), projection_(projection) {}

  const char* kind() const override { return "apollo"; }
  ShardGranularity granularity() const override { return ShardGranularity::matrix; }
  std::vector<StateSpec> states() const override;
  Shape state_shape(const Shape& gradient) const override;
  bool updates_in_place() const override { return true; }
  double learning_rate() const override { return adam_.learning_rate; }
  int64_t workspace_bytes(const Queue& queue, std::span<const ParamPiece> pieces) const override;
  double cost(const Shape& full_shape) const override;
  void step(const Queue& queue, std::span<const ParamPiece> pieces, const StepInfo& info) const override;

 private:
  struct Workspace;
  Workspace workspace_of(const Shape& matrix, void* memory, Device device) const;
  void step(const Queue& queue, const ParamPiece& piece, const StepInfo& info) const;
  AdamW::Settings adam_;
  Projection projection_;
};

}  // namespace osprey
