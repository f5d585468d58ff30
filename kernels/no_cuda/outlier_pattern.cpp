#include "kernels/outlier_pattern.h"

#include "kernels/no_cuda/absent.h"

namespace osprey::cuda {
void line_squares(const Queue&, const kernels::LineSquares&) { absent("line_squares"); }
void count_pattern(const Queue&, const kernels::CountPattern&) { absent("count_pattern"); }
}  // namespace osprey::cuda
