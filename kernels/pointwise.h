#pragma once
// Element-wise arithmetic: copies, sums, activations, SwiGLU, embedding rows.

#include "kernels/core/queue.h"
#include "kernels/core/tensor.h"
#include "kernels/numerics/activation.h"

namespace osprey::kernels {

/// y = x, converting between f32 and bf16. Shapes: equal element counts seen as (rows, cols), rows may
/// be strided.
struct Copy {
  Tensor y, x;
};
void copy(const Queue& queue, const Copy& args);

/// y = value in every element. Shapes: y f32, bf16 or f64, rows may be strided.
struct Fill {
  Tensor y;
  double value = 0;
};
void fill(const Queue& queue, const Fill& args);

/// y = a + b. Shapes: all (N, C), one dtype. Aliasing: y may be a or b.
struct Add {
  Tensor y, a, b;
};
void add(const Queue& queue, const Add& args);

/// y = x + bias in every row. Shapes: y, x (N, C), bias (C), one dtype. Aliasing: y may be x.
struct AddBias {
  Tensor y, x, bias;
};
void add_bias(const Queue& queue, const AddBias& args);

/// dbias = sum of dy over rows. Shapes: dbias (C) f32, dy (N, C). Numerics: fp32; the CPU adds in the order
/// of rows, a GPU over chunks of rows that the shape fixes.
struct BiasBackward {
  Accum dbias;
  Tensor dy;
};
void bias_backward(const Queue& queue, const BiasBackward& args);

/// h = silu(gate) * up, silu(g) = g / (1 + exp(-g)).
/// Shapes: h (N, F); gate_up (N, 2F) = [gate | up].
struct SwigluForward {
  Tensor h, gate_up;
};
void swiglu_forward(const Queue& queue, const SwigluForward& args);

/// Shapes: dgate_up and gate_up (N, 2F), dh (N, F).
struct SwigluBackward {
  Accum dgate_up;
  Tensor dh, gate_up;
};
void swiglu_backward(const Queue& queue, const SwigluBackward& args);

/// y = activation(x). Shapes: y, x (N, F), one dtype. Aliasing: y may be x where no backward follows.
/// Numerics: fp32, rounded once.
struct ActivationForward {
  Tensor y, x;
  Activation activation = Activation::gelu;
};
void activation_forward(const Queue& queue, const ActivationForward& args);

/// dx = dy * slope(x). Shapes: dx, dy, x (N, F). dx cannot be accumulated.
struct ActivationBackward {
  Accum dx;
  Tensor dy, x;
  Activation activation = Activation::gelu;
};
void activation_backward(const Queue& queue, const ActivationBackward& args);

/// y[n] = weight[tokens[n]]. Shapes: y (N, C), tokens (N) i32, weight (V, C).
/// Errors: a token outside [0, V) throws on the CPU; a GPU makes its row NaN.
struct EmbeddingForward {
  Tensor y, tokens, weight;
};
void embedding_forward(const Queue& queue, const EmbeddingForward& args);

/// dweight[tokens[n] - first_row] += dy[n], in the order of n, so the sum does not depend on threads.
/// Shapes: dweight (V, C) f32, the rows from `first_row` on of the whole gradient, dy (N, C). A token outside
/// [first_row, first_row + V) is passed over: it is another row's, or forward told.
struct EmbeddingBackward {
  Accum dweight;
  Tensor dy, tokens;
  int64_t first_row = 0;
};
void embedding_backward(const Queue& queue, const EmbeddingBackward& args);

}  // namespace osprey::kernels

namespace osprey::cpu {
void copy(const Queue& queue, const kernels::Copy& args);
void fill(const Queue& queue, const kernels::Fill& args);
void add(const Queue& queue, const kernels::Add& args);
void add_bias(const Queue& queue, const kernels::AddBias& args);
void bias_backward(const Queue& queue, const kernels::BiasBackward& args);
void swiglu_forward(const Queue& queue, const kernels::SwigluForward& args);
void swiglu_backward(const Queue& queue, const kernels::SwigluBackward& args);
void activation_forward(const Queue& queue, const kernels::ActivationForward& args);
void activation_backward(const Queue& queue, const kernels::ActivationBackward& args);
void embedding_forward(const Queue& queue, const kernels::EmbeddingForward& args);
void embedding_backward(const Queue& queue, const kernels::EmbeddingBackward& args);
}  // namespace osprey::cpu
namespace osprey::cuda {
void copy(const Queue& queue, const kernels::Copy& args);
void fill(const Queue& queue, const kernels::Fill& args);
void add(const Queue& queue, const kernels::Add& args);
void add_bias(const Queue& queue, const kernels::AddBias& args);
void bias_backward(const Queue& queue, const kernels::BiasBackward& args);
void swiglu_forward(const Queue& queue, const kernels::SwigluForward& args);
void swiglu_backward(const Queue& queue, const kernels::SwigluBackward& args);
void activation_forward(const Queue& queue, const kernels::ActivationForward& args);
void activation_backward(const Queue& queue, const kernels::ActivationBackward& args);
void embedding_forward(const Queue& queue, const kernels::EmbeddingForward& args);
void embedding_backward(const Queue& queue, const kernels::EmbeddingBackward& args);
}  // namespace osprey::cuda
