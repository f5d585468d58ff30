#include "kernels/compact_adam.h"

#include "kernels/cpu/isa/compact_adam.h"

namespace osprey::cpu {

using namespace kernels;

namespace {

constexpr int64_t chunk = 64 * dynamic_block;

template <class T>
T* pointer_if(const Tensor& t, DType dtype) {
  return t.defined() && t.dtype == dtype ? t.as<T>() : nullptr;
}

CompactRange::Moments moments(const StoredMoment& m) {
  return {pointer_if<float>(m.values, DType::f32), pointer_if<bf16>(m.values, DType::bf16),
          pointer_if<uint8_t>(m.values, DType::u8), pointer_if<float>(m.scales, DType::f32)};
}

}  // namespace

void compact_adam(const Queue& queue, const CompactAdam& a) {
  const double* control = a.control.as<double>();
  if (control[step_apply] == 0) return;
  const int64_t step = static_cast<int64_t>(control[step_number]);
  const double learning_rate = a.learning_rate * control[step_learning_rate_factor];
  const AdamWFactors factors =
      adamw_factors({learning_rate, a.beta1, a.beta2, a.eps, a.weight_decay, a.eps_place}, step - a.since,
                    control[step_grad_scale]);
  const float first_scale = static_cast<float>(1 / (1 - power(a.beta1, step - a.since + 1)));
  const CompactRange range = {.weight_f32 = pointer_if<float>(a.weight, DType::f32),
                              .weight_bf16 = pointer_if<bf16>(a.weight, DType::bf16),
                              .rounded = pointer_if<bf16>(a.rounded, DType::bf16),
                              .direction_f32 = pointer_if<float>(a.direction, DType::f32),
                              .direction_bf16 = pointer_if<bf16>(a.direction, DType::bf16),
                              .grad = a.grad.as<float>(),
                              .m = moments(a.m),
                              .v = moments(a.v),
                              .seed = a.seed,
                              .stream = a.stream,
                              .step = step,
                              .first_element = a.first_element};
  const auto update = compact_adam_table().update;
  const int64_t n = a.grad.numel();
  parallel_for(queue, (n + chunk - 1) / chunk, 1, [&](int64_t begin, int64_t end) {
    update(range, begin * chunk, std::min(end * chunk, n), factors, first_scale,
           static_cast<float>(learning_rate));
  });
}

void apply_step(const Queue& queue, const ApplyStep& a) {
  const double* control = a.control.as<double>();
  if (control[step_apply] == 0) return;
  const double factor = control[step_learning_rate_factor];
  const CompactRange range = {.weight_f32 = pointer_if<float>(a.weight, DType::f32),
                              .weight_bf16 = pointer_if<bf16>(a.weight, DType::bf16),
                              .rounded = pointer_if<bf16>(a.rounded, DType::bf16),
                              .direction_f32 = nullptr,
                              .direction_bf16 = nullptr,
                              .grad = nullptr,
                              .m = {},
                              .v = {},
                              .seed = a.seed,
                              .stream = a.stream,
                              .step = static_cast<int64_t>(control[step_number]),
                              .first_element = a.first_element};
  const auto apply = compact_adam_table().apply;
  const int64_t n = a.x.numel();
  parallel_for(queue, (n + chunk - 1) / chunk, 1, [&](int64_t begin, int64_t end) {
    apply(range, a.x.as<float>(), begin * chunk, std::min(end * chunk, n),
          static_cast<float>(factor * a.step_size), static_cast<float>(factor * a.decay));
  });
}

}  // namespace osprey::cpu
