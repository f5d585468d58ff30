#include "optim/newton_schulz.h"

#include <utility>

#include "kernels/matmul.h"
#include "kernels/symmetric_product.h"

namespace osprey {

namespace {

constexpr Quintic polar_express_steps[] = {
    {8.156554524902461, -22.48329292557795, 15.878769915207462},
    {4.042929935166739, -2.808917465908714, 0.5000178451051316},
    {3.8916678022926607, -2.772484153217685, 0.5060648178503393},
    {3.285753657755655, -2.3681294933425376, 0.46449024233003106},
    {2.3465413258596377, -1.7097828382687081, 0.42323551169305323},
};
constexpr Quintic keller_step = {3.4445, -4.7750, 2.0315};

constexpr int64_t align(int64_t elements) { return (elements + 31) / 32 * 32; }

}  // namespace

const char* name(NewtonSchulz method) { return method == NewtonSchulz::keller ? "keller" : "polar_express"; }

Quintic newton_schulz_step(NewtonSchulz method, int index) {
  if (method == NewtonSchulz::keller) return keller_step;
  require(0 <= index && index < 5, "newton_schulz", "polar_express has five steps; step {} does not exist",
          index + 1);
  return polar_express_steps[index];
}

double newton_schulz_safety(NewtonSchulz method) { return method == NewtonSchulz::keller ? 1.0 : 1.02; }

int64_t NewtonSchulzBuffers::elements(int64_t batch, int64_t m, int64_t n) {
  return 2 * align(batch * m * n) + 2 * align(batch * m * m);
}

NewtonSchulzBuffers NewtonSchulzBuffers::cut(void* memory, int64_t batch, int64_t m, int64_t n, DType dtype,
                                             Device device) {
  char* at = static_cast<char*>(memory);
  const auto take = [&](int64_t rows, int64_t cols) {
    Tensor t = make_tensor(at, {batch, rows, cols}, dtype, device);
    if (at) at += align(batch * rows * cols) * size_bytes(dtype);
    return t;
  };
  NewtonSchulzBuffers b;
  b.x = take(m, n);
  b.y = take(m, n);
  b.gram = take(m, m);
  b.polynomial = take(m, m);
  return b;
}

Tensor newton_schulz(const Queue& queue, const NewtonSchulzBuffers& buffers, NewtonSchulz method, int steps) {
  Tensor x = buffers.x, y = buffers.y;
  if (x.shape.rank != 3 || x.shape[1] > x.shape[2])
    fail("newton_schulz", "x must hold matrices of at most as many rows as columns, got {}; transpose them",
         x.str());
  for (int i = 0; i < steps; ++i) {
    const Quintic q = newton_schulz_step(method, i);
    const float a = static_cast<float>(q.a), b = static_cast<float>(q.b), c = static_cast<float>(q.c);
    kernels::symmetric_product(queue, {.c = buffers.gram, .a = x});
    kernels::symmetric_product(
        queue, {.c = buffers.polynomial, .a = buffers.gram, .alpha = c, .beta = b, .addend = buffers.gram});
    kernels::matmul(queue, {.c = y, .a = buffers.polynomial, .b = x, .beta = a, .addend = x});
    std::swap(x, y);
  }
  return x;
}

double newton_schulz_flops(int64_t m, int64_t n, int steps) {
  const double small = static_cast<double>(std::min(m, n)), large = static_cast<double>(std::max(m, n));
  return steps * (3 * small * small * large + small * small * small);
}

}  // namespace osprey
