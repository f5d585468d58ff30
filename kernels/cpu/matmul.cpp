#include "kernels/matmul.h"

#include "kernels/cpu/bf16_product.h"

namespace osprey::cpu {

static Tensor slice(const Tensor& t, int64_t index) {
  Tensor s = make_tensor(static_cast<char*>(t.data) + index * t.strides[0] * size_bytes(t.dtype),
                         {t.shape[1], t.shape[2]}, t.dtype, t.device);
  s.strides[0] = t.strides[1];
  return s;
}

// b is packed for this product alone: nothing beside 2 M N K operations, unless M is small.
static void own(const Queue& queue, const kernels::Matmul& m) {
  multiply_panels(queue, {.c = m.c,
                          .a = m.a,
                          .op_a = m.op_a,
                          .panels = pack_b(queue, m.b, m.op_b),
                          .addend = m.beta == 0.0f       ? Tensor{}
                                    : m.addend.defined() ? m.addend
                                                         : m.c,
                          .alpha = m.alpha,
                          .beta = m.beta});
}

void matmul(const Queue& queue, const kernels::Matmul& args) {
  if (!own_product(args.a.dtype)) return cpu::library_matmul(queue, args);
  if (args.c.shape.rank == 2) return own(queue, args);
  kernels::Matmul one = args;
  for (int64_t i = 0; i < args.c.shape[0]; ++i) {
    one.c = slice(args.c, i);
    one.a = slice(args.a, i);
    one.b = slice(args.b, i);
    if (args.addend.defined()) one.addend = slice(args.addend, i);
    own(queue, one);
  }
}

}  // namespace osprey::cpu
