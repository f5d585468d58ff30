#include "kernels/cuda/classifier_chunks.h"
#include "kernels/no_cuda/absent.h"

namespace osprey::cuda {
void classifier(const Queue&, const kernels::Classifier&) { absent("classifier"); }
void classifier_rows(const Queue&, const kernels::ClassifierRows&) { absent("classifier"); }
int64_t classifier_scratch(int64_t rows, int64_t vocabulary, DType, kernels::Gradients) {
  return ClassifierChunks::of(rows, vocabulary).floats();
}
}  // namespace osprey::cuda
