#include "kernels/muon.h"

#include "kernels/no_cuda/absent.h"

namespace osprey::cuda {
void muon_momentum(const Queue&, const kernels::MuonMomentum&) { absent("muon_momentum"); }
void muon_direction(const Queue&, const kernels::MuonDirection&) { absent("muon_direction"); }
void muon_update(const Queue&, const kernels::MuonUpdate&) { absent("muon_update"); }
}  // namespace osprey::cuda
