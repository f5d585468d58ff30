#include "launch/data_source.h"

namespace osprey {

void TrainSource::fill(int64_t step, int64_t micro_step, int64_t, const BatchView& into) {
  loader_.batch(step, micro_step, world_.rank(), world_.size(), into);
}

void ValidationSource::fill(int64_t, int64_t micro_step, int64_t, const BatchView& into) {
  loader_.batch((micro_step * world_.size() + world_.rank()) * into.batch(), into);
}

}  // namespace osprey
