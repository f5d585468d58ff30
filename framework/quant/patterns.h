#pragma once
// What calibration finds of a linear layer, and which of its products it rotates for that.

#include <array>
#include <cstdint>
#include <string>

#include "framework/config/fields.h"
#include "kernels/numerics/outlier_pattern.h"

namespace osprey {

/// Which products of a linear layer are rotated along what they sum: y = x W^T, dW = dy^T x, dx = dy W.
struct RotatedProducts {
  bool forward = true, dw = true, dx = true;
  bool operator==(const RotatedProducts&) const = default;
};

/// Which products compute rows of their result unquantized where the left operand has outlier rows.
struct ExtractedProducts {
  bool forward = true, dx = true;
  bool operator==(const ExtractedProducts&) const = default;
};

/// How often a tensor had each pattern, by OutlierPattern.
using PatternVotes = std::array<int64_t, outlier_patterns>;

/// The pattern with the most votes. Of those with equally many `none` wins, then `column`; none without
/// votes.
OutlierPattern majority(const PatternVotes& votes);
const char* name(OutlierPattern pattern);

/// One linear layer's part of state.yaml: what micro batches of all ranks voted so far, and what was decided.
struct LayerPatterns {
  std::string weight;  // the first of those that share an input
  PatternVotes x{}, w{}, dy{};
  bool decided = false;
  RotatedProducts rotated;  // once decided

  void fields(Fields& f);
  int64_t votes() const;
  /// A product of two operands, with blocks along the K that it sums, gains from a rotation along K where the
  /// outliers of an operand stand in few of its K-columns: every block of a row then holds some, and their
  /// scale takes the digits of their neighbours. An outlier row of an operand has its blocks for itself. So
  /// forward looks for columns of x and of W; dW, whose operands are dy^T and x^T, for rows of dy and of x;
  /// dx, whose operands are dy and W^T, for columns of dy and rows of W. Reference: after AdaHOP (arXiv
  /// 2604.02525), whose own table and thresholds are not known to us.
  RotatedProducts wanted() const;
  /// A row of y depends on one row of x, and a row of dx on one of dy. Where outliers stand in few rows of x,
  /// or of dy, a rotation does not help against them, and those rows of the result can be computed by
  /// themselves. dW sums over those rows: none of its own is theirs alone.
  ExtractedProducts extracted() const;
  bool operator==(const LayerPatterns&) const = default;
};

}  // namespace osprey
