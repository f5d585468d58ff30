#include "framework/ops/pointwise.h"

#include <array>

#include "kernels/pointwise.h"

namespace osprey {

Var add(Tape& t, Var a, Var b) {
  const Tensor left = t.value(a);
  const Tensor y = t.alloc(left.shape, left.dtype);
  kernels::add(t.queue(), {.y = y, .a = left, .b = t.value(b)});
  return t.record("add", y, {a, b}, [=, &t](Tensor dy) {
    t.pass_grad(a, dy);
    t.pass_grad(b, dy);
  });
}

Var add_bias(Tape& t, Var x, Var bias) {
  const Tensor in = t.value(x);  // (N, C)
  const Tensor y = t.alloc(in.shape, in.dtype);
  kernels::add_bias(t.queue(), {.y = y, .x = in, .bias = t.value(bias)});
  return t.record("add_bias", y, {x, bias}, [=, &t](Tensor dy) {
    kernels::bias_backward(t.queue(), {.dbias = t.grad(bias), .dy = dy});
    t.pass_grad(x, dy);
  });
}

Var add_biases(Tape& t, Var x, std::span<Parameter* const> biases) {
  constexpr size_t most = 4;
  require(!biases.empty() && biases.size() <= most, "add_biases", "1 to {} biases, got {}", most,
          biases.size());
  const Tensor y = t.value(x);  // (N, sum of C_i)
  std::array<Var, most> leaves{};
  int64_t column = 0;
  for (size_t i = 0; i < biases.size(); ++i) {
    leaves[i] = t.leaf(*biases[i]);
    const int64_t end = column + biases[i]->shape[0];
    require(end <= y.cols(), "add_biases", "the biases have more columns than x: {}", y);
    const Tensor part = y.columns(column, end);
    kernels::add_bias(t.queue(), {.y = part, .x = part, .bias = t.value(leaves[i])});
    column = end;
  }
  require(column == y.cols(), "add_biases", "the biases have {} columns, x is {}", column, y);
  return t.record("add_biases", y, {x, leaves[0], leaves[1], leaves[2], leaves[3]}, [=, &t](Tensor dy) {
    int64_t begin = 0;
    for (const Var leaf : leaves) {
      if (!leaf.valid()) break;
      const int64_t end = begin + t.value(leaf).numel();
      kernels::bias_backward(t.queue(), {.dbias = t.grad(leaf), .dy = dy.columns(begin, end)});
      begin = end;
    }
    t.pass_grad(x, dy);
  });
}

Tensor cast(Tape& t, Var x, DType dtype) {
  const Tensor in = t.value(x);
  const Tensor y = t.alloc(in.shape, dtype);
  kernels::copy(t.queue(), {.y = y, .x = in});
  return y;
}

Var swiglu(Tape& t, Var gate_up) {
  const Tensor in = t.value(gate_up);  // (N, 2F)
  Shape shape = in.shape;
  shape.dims[static_cast<size_t>(shape.rank - 1)] /= 2;
  const Tensor h = t.alloc(shape, in.dtype);
  kernels::swiglu_forward(t.queue(), {.h = h, .gate_up = in});
  return t.record("swiglu", h, {gate_up}, [=, &t](Tensor dh) {
    kernels::swiglu_backward(t.queue(), {.dgate_up = t.grad(gate_up), .dh = dh, .gate_up = t.value(gate_up)});
  });
}

Var activate(Tape& t, Var x, Activation activation) {
  const Tensor in = t.value(x);  // (N, F)
  const Tensor y = t.alloc(in.shape, in.dtype);
  kernels::activation_forward(t.queue(), {.y = y, .x = in, .activation = activation});
  return t.record("activate", y, {x}, [=, &t](Tensor dy) {
    kernels::activation_backward(t.queue(),
                                 {.dx = t.grad(x), .dy = dy, .x = t.value(x), .activation = activation});
  });
}

Var embedding(Tape& t, const Tensor& tokens, Var weight) {
  const Tensor table = t.value(weight);  // (V, C)
  const Tensor y = t.alloc({tokens.numel(), table.cols()}, table.dtype);
  kernels::embedding_forward(t.queue(), {.y = y, .tokens = tokens, .weight = table});
  return t.record("embedding", y, {weight}, [=, &t](Tensor dy) {
    Parameter* const p = t.parameter(weight);
    if (!p || !p->row_gradient.defined())
      return kernels::embedding_backward(t.queue(), {.dweight = t.grad(weight), .dy = dy, .tokens = tokens});
    p->accumulate_by_rows([&](int64_t first, const Tensor& some) {
      kernels::embedding_backward(t.queue(),
                                  {.dweight = {some, false}, .dy = dy, .tokens = tokens, .first_row = first});
    });
  });
}

}  // namespace osprey
