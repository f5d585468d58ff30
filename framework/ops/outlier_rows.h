#pragma once
// Rows of a quantized product that are computed unquantized: those of the rows of its left operand that are
// larger than the others. Reference: after the outlier extraction of AdaHOP (arXiv 2604.02525).

#include <span>

#include "framework/parameter.h"
#include "framework/tape/tape.h"

namespace osprey {

/// y[r] = x[r] W^T for the rows r of x with the largest sums of squares, at most `count`; the other rows of y
/// stay as they are. Shapes: x (N, in), weights (out_i, in), stacked, y (N, sum of out_i), all of the compute
/// dtype. Numerics: as linear() on the weights' values. In a forward; takes memory of the arena and gives it
/// back.
void extract_outlier_rows(Tape& t, const Tensor& y, const Tensor& x, std::span<Parameter* const> weights,
                          int64_t count);

/// The same of dx (+)= dy W, in two parts around the quantized product, which writes or adds to all rows of
/// dx. In a backward.
struct OutlierGradients {
  Tensor rows;    // (K) i32; undefined: none
  Tensor values;  // (K, in), of dx's dtype: what the rows will hold
};
/// Before the product. Shapes: dx (N, in) f32 or of dy's dtype, dy (N, sum of out_i), weights (out_i, in).
/// None for a count of 0.
OutlierGradients outlier_gradients(Tape& t, const Accum& dx, const Tensor& dy,
                                   std::span<Parameter* const> weights, int64_t count);
/// After it: overwrites the rows, also where others were added to.
void overwrite_rows(const Queue& queue, const Accum& dx, const OutlierGradients& outliers);

}  // namespace osprey
