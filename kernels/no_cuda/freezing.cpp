#include "kernels/freezing.h"

#include "kernels/no_cuda/absent.h"

namespace osprey::cuda {
void hold_frozen(const Queue&, const kernels::HoldFrozen&) { absent("hold_frozen"); }
void restore_frozen(const Queue&, const kernels::RestoreFrozen&) { absent("restore_frozen"); }
}  // namespace osprey::cuda
