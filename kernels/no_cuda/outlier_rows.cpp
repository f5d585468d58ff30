#include "kernels/outlier_rows.h"

#include "kernels/no_cuda/absent.h"

namespace osprey::cuda {
void largest_rows(const Queue&, const kernels::LargestRows&) { absent("largest_rows"); }
void scatter_rows(const Queue&, const kernels::ScatterRows&) { absent("scatter_rows"); }
}  // namespace osprey::cuda
