#include "launch/data_source.h"

namespace osprey {

static Batch as_batch(const BatchView& v) {
  return {
      .tokens = v.tokens, .targets = v.targets, .positions = v.positions, .document_start = v.document_start};
}

void TrainSource::fill(int64_t step, int64_t micro_step, int64_t, const BatchView& into) {
  Batch batch = as_batch(into);
  loader_.batch(step, micro_step, world_.rank(), world_.size(), batch);
}

void ValidationSource::fill(int64_t, int64_t micro_step, int64_t, const BatchView& into) {
  Batch batch = as_batch(into);
  loader_.batch((micro_step * world_.size() + world_.rank()) * into.batch(), batch);
}

}  // namespace osprey
