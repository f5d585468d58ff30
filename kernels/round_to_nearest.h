#pragma once
// Integer round-to-nearest quantization, simulated: values move to the nearest point of the grid and stay in
// their dtype. What post-training quantization does to a model before anything clever.

#include "kernels/core/queue.h"
#include "kernels/core/tensor.h"

namespace osprey::kernels {

enum class RowGrid {
  symmetric,   // scale = max|row| / (2^(bits-1) - 1); integers -2^(bits-1) .. 2^(bits-1) - 1
  asymmetric,  // scale = (max(row, 0) - min(row, 0)) / (2^bits - 1), integer zero point
};

/// How far the largest value of a row is clipped before its scale is taken.
enum class ClipSearch {
  none,
  osp,  // 80 candidates 1 - i / 100; the one with the least sum |q - x|^2.4 for each row
};

/// y = grid(x), every row with its own scale.
/// Shapes: y, x (N, C), one dtype. Aliasing: y may be x. Numerics: fp32; a row of zeros stays zero; a row
/// with a non-finite value becomes NaN. Reference: evaluation code of Outlier-Safe Pre-Training (arXiv
/// 2506.19697): symmetric weights per output row with clip search, asymmetric activations per token.
struct RoundToNearest {
  Tensor y, x;
  int bits = 8;
  RowGrid grid = RowGrid::symmetric;
  ClipSearch clip = ClipSearch::none;
};
void round_to_nearest(const Queue& queue, const RoundToNearest& args);

}  // namespace osprey::kernels

namespace osprey::cpu {
void round_to_nearest(const Queue& queue, const kernels::RoundToNearest& args);
}
namespace osprey::cuda {
void round_to_nearest(const Queue& queue, const kernels::RoundToNearest& args);
}
