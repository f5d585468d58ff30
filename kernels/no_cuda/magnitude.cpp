#include "kernels/magnitude.h"

#include "kernels/no_cuda/absent.h"

namespace osprey::cuda {
void row_norms(const Queue&, const kernels::RowNorms&) { absent("row_norms"); }
void scale_lengths(const Queue&, const kernels::ScaleLengths&) { absent("scale_lengths"); }
void length_gradient(const Queue&, const kernels::LengthGradient&) { absent("length_gradient"); }
}  // namespace osprey::cuda
