#pragma once
// Linked when CUDA is absent: every CUDA twin throws. The absence of a backend is a file that is linked,
// not an #ifdef that is read. Sizes are known all the same: `osprey plan --device cuda` works in every build.

#include "kernels/core/check.h"

namespace osprey::cuda {

[[noreturn]] inline void absent(const char* kernel) {
  fail(kernel, "this osprey was built without CUDA; set run.device: cpu");
}

}  // namespace osprey::cuda
