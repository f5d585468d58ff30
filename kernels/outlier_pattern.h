#pragma once
// Where a matrix has its outliers: in few of its rows, in few of its columns, or in neither.

#include <span>

#include "kernels/core/queue.h"
#include "kernels/numerics/outlier_pattern.h"

namespace osprey::kernels {

/// Mean squares of all rows and of all columns of a matrix that may lie in several parts, one below the
/// other. Shapes: xs 1 to 4 of (N_i, K), all bf16 or all f32; rows (sum of N_i) f32, out; columns (K) f32,
/// out. Numerics: squares and sums in double over chunks that shapes fix, rounded once.
struct LineSquares {
  std::span<const Tensor> xs;
  Tensor rows, columns;
};
void line_squares(const Queue& queue, const LineSquares& args);

/// counts[pattern_of(...)] += 1, see kernels/numerics/outlier_pattern.h.
/// Shapes: rows (N) and columns (K) f32 as line_squares() leaves them; counts (outlier_patterns) f64.
/// Numerics: a median is element (n - 1) / 2 of n in ascending order, so no two devices differ.
struct CountPattern {
  Tensor counts;
  Tensor rows, columns;
  double ratio = 4;  // of rms, above which a line is an outlier
};
void count_pattern(const Queue& queue, const CountPattern& args);

}  // namespace osprey::kernels

namespace osprey::cpu {
void line_squares(const Queue& queue, const kernels::LineSquares& args);
void count_pattern(const Queue& queue, const kernels::CountPattern& args);
}  // namespace osprey::cpu
namespace osprey::cuda {
void line_squares(const Queue& queue, const kernels::LineSquares& args);
void count_pattern(const Queue& queue, const kernels::CountPattern& args);
}  // namespace osprey::cuda
