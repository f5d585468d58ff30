#include "kernels/classifier.h"

namespace osprey::cuda {
kernels::ClassifierLoss classifier(const Queue&, const kernels::Classifier&) {
  fail("cross_entropy", "this osprey was built without CUDA");
}
}  // namespace osprey::cuda
