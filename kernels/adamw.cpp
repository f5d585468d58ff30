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
  for (const AdamWPiece& p : args.pieces) {
    const int64_t n = p.master.numel();
    check(p.master, "master", n, queue);
    check(p.value, "value", n, queue);
    check(p.grad, "grad", n, queue);
    check(p.m, "m", n, queue);
    check(p.v, "v", n, queue);
    for (const Tensor* t : {&p.master, &p.grad, &p.m, &p.v})
      if (t->dtype != DType::f32) fail("adamw", "master, grad, m and v must be f32, got {}", t->str());
    if (p.value.dtype != DType::bf16 && p.value.data != p.master.data)
      fail("adamw", "value must be bf16, or the same f32 memory as master; got {}", p.value.str());
  }
  require(0 <= args.beta1 && args.beta1 < 1 && 0 <= args.beta2 && args.beta2 < 1, "adamw",
          "betas must lie in [0, 1), got {} and {}", args.beta1, args.beta2);
  require_control("adamw", queue, args.control);
  dispatch(queue, args, cpu::adamw, cuda::adamw);
}

}  // namespace osprey::kernels
