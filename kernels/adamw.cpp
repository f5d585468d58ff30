#include "kernels/adamw.h"

#include "kernels/core/dispatch.h"

namespace osprey::kernels {

static void check(const Tensor& t, const char* what, int64_t numel, const Queue& queue) {
  if (t.numel() == numel && t.contiguous() && t.device == queue.device) return;  // formats nothing
  require(t.numel() == numel, "adamw", "{} must have {} elements like master, got {}", what, numel, t);
  require(t.contiguous(), "adamw", "{} must be contiguous, got {}", what, t);
  require(t.device == queue.device, "adamw", "{} is on {}, the queue on {}", what, name(t.device.kind),
          name(queue.device.kind));
}

void adamw(const Queue& queue, const AdamW& args) {
  const int64_t n = args.master.numel();
  check(args.master, "master", n, queue);
  check(args.value, "value", n, queue);
  check(args.grad, "grad", n, queue);
  check(args.m, "m", n, queue);
  check(args.v, "v", n, queue);
  for (const Tensor* t : {&args.master, &args.grad, &args.m, &args.v})
    if (t->dtype != DType::f32) fail("adamw", "master, grad, m and v must be f32, got {}", t->str());
  if (args.value.dtype != DType::bf16 && args.value.data != args.master.data)
    fail("adamw", "value must be bf16, or the same f32 memory as master; got {}", args.value.str());
  require(args.step >= 0, "adamw", "step is 0-based, got {}", args.step);
  require(0 <= args.beta1 && args.beta1 < 1 && 0 <= args.beta2 && args.beta2 < 1, "adamw",
          "betas must lie in [0, 1), got {} and {}", args.beta1, args.beta2);
  dispatch(queue, args, cpu::adamw, cuda::adamw);
}

}  // namespace osprey::kernels
