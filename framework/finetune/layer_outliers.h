#pragma once
// How many of a layer's weight-times-activation products stand out: the layerwise outlier distribution (LOD)
// that OwLore draws layers by.

#include <string>
#include <unordered_map>
#include <vector>

#include "framework/tape/tape.h"

namespace osprey {

/// Sums the squares of what every linear layer reads, column by column, while it is set on a tape that
/// evaluates.
///   A_ij = |W_ij| * |X_j|_2  (Wanda);  score of a block = 100 * #{A > threshold * mean A} / #A, strict, in
///   percent,
/// with mean and counts over all matrices of the block together, and X all tokens seen.
/// Reference: OWL, Yin et al. 2310.05175, sec. 3.2, with the mean over the whole block as its published code
/// has it; thresholds of 5 (OWL) and 13 (OwLore). Numerics: sums in double on the host. Waits for the queue
/// at every linear layer.
class LayerOutliers final : public LinearInput {
 public:
  explicit LayerOutliers(Tape& tape) : tape_(tape) { tape_.set_linear_input(this); }
  ~LayerOutliers() override { tape_.set_linear_input(nullptr); }
  LayerOutliers(const LayerOutliers&) = delete;
  LayerOutliers& operator=(const LayerOutliers&) = delete;

  Tensor linear_input(Tape& t, const std::string& weight, const Tensor& x) override;

  /// One score a layer. Weights that are multiplied in one product share what the first of them read.
  /// Errors: a layer of which nothing was seen, or whose weights are packed.
  std::vector<double> scores(const ParamStore& params, double threshold) const;

 private:
  Tape& tape_;
  std::unordered_map<std::string, std::vector<double>> squares_;  // by weight, of its input's columns
};

}  // namespace osprey
