#include "kernels/adamw.h"

#include <cmath>

#include "kernels/cpu/isa/adamw.h"

namespace osprey::cpu {

using namespace kernels;

void adamw(const Queue& queue, const AdamW& a) {
  const double* control = a.control.as<double>();
  if (control[step_apply] == 0) return;
  const double t = control[step_number] + 1, learning_rate = a.learning_rate * control[step_learning_rate_factor];
  const AdamWFactors factors = {
      .grad_scale = static_cast<float>(control[step_grad_scale]),
      .one_minus_beta1 = static_cast<float>(1 - a.beta1),
      .beta2 = static_cast<float>(a.beta2),
      .one_minus_beta2 = static_cast<float>(1 - a.beta2),
      .root_scale = static_cast<float>(1 / std::sqrt(1 - std::pow(a.beta2, t))),
      .eps = static_cast<float>(a.eps),
      .step_size = static_cast<float>(learning_rate / (1 - std::pow(a.beta1, t))),
      .decay = static_cast<float>(learning_rate * a.weight_decay),
  };
  const auto update = adamw_table().update;
  for (const AdamWPiece& p : a.pieces) {
    bf16* value = p.value.dtype == DType::bf16 ? p.value.as<bf16>() : nullptr;
    float *master = p.master.as<float>(), *m = p.m.as<float>(), *v = p.v.as<float>();
    const float* grad = p.grad.as<float>();
    parallel_for(queue, p.master.numel(), 16384, [&](int64_t begin, int64_t end) {
      update(value ? value + begin : nullptr, master + begin, m + begin, v + begin, grad + begin, end - begin,
             factors);
    });
  }
}

}  // namespace osprey::cpu
