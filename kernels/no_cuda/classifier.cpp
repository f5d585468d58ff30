#include "kernels/classifier.h"

#include "kernels/no_cuda/absent.h"

namespace osprey::cuda {
void classifier(const Queue&, const kernels::Classifier&) { absent("classifier"); }
int64_t classifier_scratch(int64_t, int64_t, DType, kernels::Gradients) { absent("classifier"); }
}  // namespace osprey::cuda
