#include "kernels/adamw.h"

#include "kernels/cpu/isa/adamw.h"

namespace osprey::cpu {

using namespace kernels;

void adamw(const Queue& queue, const AdamW& a) {
  const double* control = a.control.as<double>();
  if (control[step_apply] == 0) return;
  const AdamWFactors factors =
      adamw_factors({a.learning_rate * control[step_learning_rate_factor], a.beta1, a.beta2, a.eps,
                     a.weight_decay, a.eps_place},
                    static_cast<int64_t>(control[step_number]) - a.since, control[step_grad_scale]);
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
