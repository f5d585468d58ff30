#include "kernels/compact_adam.h"

#include "kernels/core/dispatch.h"
#include "kernels/numerics/dynamic_code.h"

namespace osprey::kernels {
namespace {

void check(const char* op, const Queue& queue, const Tensor& t, const char* what, int64_t numel) {
  if (t.numel() == numel && t.contiguous() && t.device == queue.device) return;  // formats nothing
  require(t.numel() == numel && t.contiguous(), op, "{} must be {} elements in a row, got {}", what, numel,
          t);
  require(t.device == queue.device, op, "{} is on {}, the queue on {}", what, name(t.device.kind),
          name(queue.device.kind));
}

void check_weight(const char* op, const Queue& queue, const Tensor& weight, const Tensor& rounded,
                  int64_t n) {
  check(op, queue, weight, "weight", n);
  require(weight.dtype == DType::f32 || weight.dtype == DType::bf16, op, "weight must be f32 or bf16, got {}",
          weight);
  if (!rounded.defined()) return;
  check(op, queue, rounded, "rounded", n);
  require(weight.dtype == DType::f32 && rounded.dtype == DType::bf16, op,
          "rounded must be bf16 beside an f32 weight, got {} and {}", rounded, weight);
}

void check_moment(const Queue& queue, const StoredMoment& moment, const char* what, int64_t n) {
  check("compact_adam", queue, moment.values, what, n);
  const DType type = moment.values.dtype;
  require(type == DType::f32 || type == DType::bf16 || type == DType::u8, "compact_adam",
          "{} must be f32, bf16 or u8, got {}", what, moment.values);
  require(moment.scales.defined() == (type == DType::u8), "compact_adam",
          "{} has scales if and only if it is u8", what);
  if (type != DType::u8) return;
  check("compact_adam", queue, moment.scales, "scales", (n + dynamic_block - 1) / dynamic_block);
  require(moment.scales.dtype == DType::f32, "compact_adam", "scales must be f32, got {}", moment.scales);
}

}  // namespace

void compact_adam(const Queue& queue, const CompactAdam& args) {
  const int64_t n = args.grad.numel();
  check("compact_adam", queue, args.grad, "grad", n);
  require(args.grad.dtype == DType::f32, "compact_adam", "grad must be f32, got {}", args.grad);
  require(args.weight.defined() != args.direction.defined(), "compact_adam",
          "give exactly one of weight and direction");
  if (args.weight.defined()) {
    check_weight("compact_adam", queue, args.weight, args.rounded, n);
  } else {
    check("compact_adam", queue, args.direction, "direction", n);
    require(args.direction.dtype == DType::f32 || args.direction.dtype == DType::bf16, "compact_adam",
            "direction must be f32 or bf16, got {}", args.direction);
  }
  check_moment(queue, args.m, "m", n);
  check_moment(queue, args.v, "v", n);
  require(args.first_element % dynamic_block == 0 || args.m.values.dtype != DType::u8, "compact_adam",
          "blocks of {} begin at multiples of it, and this range at {}", dynamic_block, args.first_element);
  require(0 <= args.beta1 && args.beta1 < 1 && 0 <= args.beta2 && args.beta2 < 1, "compact_adam",
          "betas must lie in [0, 1), got {} and {}", args.beta1, args.beta2);
  require_control("compact_adam", queue, args.control);
  dispatch(queue, args, cpu::compact_adam, cuda::compact_adam);
}

void apply_step(const Queue& queue, const ApplyStep& args) {
  const int64_t n = args.x.numel();
  check("apply_step", queue, args.x, "x", n);
  require(args.x.dtype == DType::f32, "apply_step", "x must be f32, got {}", args.x);
  check_weight("apply_step", queue, args.weight, args.rounded, n);
  require_control("apply_step", queue, args.control);
  dispatch(queue, args, cpu::apply_step, cuda::apply_step);
}

}  // namespace osprey::kernels
