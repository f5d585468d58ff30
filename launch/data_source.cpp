#include "launch/data_source.h"

namespace osprey {

int64_t TrainSource::fill(int64_t step, int64_t micro_step, int64_t, const BatchView& into) {
  return loader_.batch(step, micro_step, world_.rank(), world_.size(), into);
}

int64_t ValidationSource::fill(int64_t, int64_t micro_step, int64_t, const BatchView& into) {
  return loader_.batch((micro_step * world_.size() + world_.rank()) * into.batch(), into);
}

}  // namespace osprey
