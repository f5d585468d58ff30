#include "kernels/muon.h"

namespace osprey::cuda {
void muon_momentum(const Queue&, const kernels::MuonMomentum&) { fail("muon_momentum", "built without CUDA"); }
void muon_direction(const Queue&, const kernels::MuonDirection&) { fail("muon_direction", "built without CUDA"); }
void muon_update(const Queue&, const kernels::MuonUpdate&) { fail("muon_update", "built without CUDA"); }
}  // namespace osprey::cuda
