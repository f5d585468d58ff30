#include "framework/ops/rmsnorm.h"

#include "kernels/norm.h"

namespace osprey {

Var rmsnorm(Tape& t, Var x, Var weight, float eps) {
  const Tensor in = t.value(x);  // (N, C)
  const Tensor y = t.alloc(in.shape, in.dtype);
  const Tensor rstd = t.alloc({in.rows()}, DType::f32);
  kernels::rmsnorm_forward(t.queue(), {.y = y, .rstd = rstd, .x = in, .weight = t.value(weight), .eps = eps});
  return t.record("rmsnorm", y, {x, weight}, [=, &t](Tensor dy) {
    const Tensor w = t.value(weight);
    const Tensor partial = t.temp({kernels::norm_partials(t.queue(), dy.rows()), w.numel()}, DType::f32);
    kernels::rmsnorm_backward(t.queue(), {.dx = t.grad(x),
                                          .dweight = t.grad(weight),
                                          .dy = dy,
                                          .x = t.value(x),
                                          .weight = w,
                                          .rstd = rstd,
                                          .partial = partial});
  });
}

NormedSum add_rmsnorm(Tape& t, Var a, Var b, Var weight, float eps) {
  const Tensor left = t.value(a);  // (N, C)
  const Tensor sum = t.alloc(left.shape, left.dtype), y = t.alloc(left.shape, left.dtype);
  const Tensor rstd = t.alloc({left.rows()}, DType::f32);
  kernels::add_rmsnorm_forward(
      t.queue(),
      {.sum = sum, .y = y, .rstd = rstd, .a = left, .b = t.value(b), .weight = t.value(weight), .eps = eps});
  const Var total = t.second_output(sum, {a, b});
  const Var normed = t.record("add_rmsnorm", y, {a, b, weight}, [=, &t](Tensor dy) {
    const Tensor w = t.value(weight);
    const Tensor partial = t.temp({kernels::norm_partials(t.queue(), dy.rows()), w.numel()}, DType::f32);
    kernels::rmsnorm_backward(t.queue(), {.dx = t.grad(total),
                                          .dweight = t.grad(weight),
                                          .dy = dy,
                                          .x = sum,
                                          .weight = w,
                                          .rstd = rstd,
                                          .partial = partial});
    t.hand_on(total, {a, b});
  });
  return {total, normed};
}

Var layernorm(Tape& t, Var x, Var weight, Var bias, float eps) {
  const Tensor in = t.value(x);  // (N, C)
  const Tensor y = t.alloc(in.shape, in.dtype);
  const Tensor stats = t.alloc({in.rows(), 2}, DType::f32);
  kernels::layernorm_forward(
      t.queue(),
      {.y = y, .stats = stats, .x = in, .weight = t.value(weight), .bias = t.value(bias), .eps = eps});
  return t.record("layernorm", y, {x, weight, bias}, [=, &t](Tensor dy) {
    const Tensor partial = t.temp({kernels::norm_partials(t.queue(), dy.rows()), 2 * dy.cols()}, DType::f32);
    kernels::layernorm_backward(t.queue(), {.dx = t.grad(x),
                                            .dweight = t.grad(weight),
                                            .dbias = t.grad(bias),
                                            .dy = dy,
                                            .x = t.value(x),
                                            .weight = t.value(weight),
                                            .stats = stats,
                                            .partial = partial});
  });
}

}  // namespace osprey
