#include "kernels/adamw.h"

#include <cmath>

#include "kernels/cpu/isa/adamw.h"

namespace osprey::cpu {

void adamw(const Queue& queue, const kernels::AdamW& a) {
  const double t = static_cast<double>(a.step) + 1;
  const AdamWFactors factors = {
      .grad_scale = static_cast<float>(a.grad_scale),
      .one_minus_beta1 = static_cast<float>(1 - a.beta1),
      .beta2 = static_cast<float>(a.beta2),
      .one_minus_beta2 = static_cast<float>(1 - a.beta2),
      .root_scale = static_cast<float>(1 / std::sqrt(1 - std::pow(a.beta2, t))),
      .eps = static_cast<float>(a.eps),
      .step_size = static_cast<float>(a.learning_rate / (1 - std::pow(a.beta1, t))),
      .decay = static_cast<float>(a.learning_rate * a.weight_decay),
  };
  bf16* value = a.value.dtype == DType::bf16 ? a.value.as<bf16>() : nullptr;
  float *master = a.master.as<float>(), *m = a.m.as<float>(), *v = a.v.as<float>();
  const float* grad = a.grad.as<float>();
  const auto update = adamw_table().update;
  parallel_for(queue, a.master.numel(), 16384, [&](int64_t begin, int64_t end) {
    update(value ? value + begin : nullptr, master + begin, m + begin, v + begin, grad + begin, end - begin,
           factors);
  });
}

}  // namespace osprey::cpu
