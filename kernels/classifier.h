#pragma once
// The language-model head with its cross-entropy: logits exist for a few rows at a time only.

#include "kernels/core/queue.h"
#include "kernels/core/tensor.h"

namespace osprey::kernels {

/// logits = x W^T; loss = sum over counted rows of logsumexp(logits) - logits[target]; and at once
/// d = (softmax(logits) - onehot(target)) * grad_scale, dx = d W, dweight (+)= d^T x. sums += [loss, counted
/// rows]. Shapes: x (N, C), weight (V, C), targets (N) i32 where -1 is not counted; dx like x, dweight (V, C)
/// f32, each undefined when not wanted; grad_scale (1) f64, undefined: 1; sums (2) f64; loss (1) f32, = loss
/// * grad_scale of this call, or undefined; token_losses and log_sums, which is logsumexp(logits), (N) f32
/// or undefined (both 0 for rows that are not counted); scratch f32 (classifier_scratch(...)); packs as
/// linear_pack() left them, or undefined. Numerics: logits and softmax in fp32, d rounded to x's dtype, row
/// losses in double and summed in row order: the number of threads does not change a bit. Errors: a target
/// outside [-1, V) throws on the CPU, before anything is written; a GPU makes the loss NaN.
struct Classifier {
  Tensor x, weight, targets;
  Tensor grad_scale;
  Tensor sums;
  Tensor loss;
  Tensor dx;
  Accum dweight;
  Tensor token_losses;
  Tensor log_sums = {};
  Tensor scratch;
  Tensor pack_forward, pack_dgrad;
};

void classifier(const Queue& queue, const Classifier& args);

enum class Gradients : uint8_t { none, wanted };
/// Scratch in floats.
int64_t classifier_scratch(const Queue& queue, int64_t rows, int64_t vocabulary, DType dtype,
                           Gradients gradients);

/// The gradient of some rows of the head, for those who do not want to hold all of it: logits of these rows
/// are formed once more, and dweight = ((exp(logits - log_sums) - onehot) grad_scale)^T x. Shapes: x (N, C),
/// weight (R, C) the rows [first_row, first_row + R) of the head, targets and log_sums as classifier() had
/// and left them, dweight (R, C) f32, grad_scale (1) f64 or undefined: 1; scratch f32
/// (classifier_rows_scratch(...)). Numerics: as classifier(); sums over n in chunks that the shapes decide.
struct ClassifierRows {
  Tensor x, weight, targets, log_sums;
  Tensor grad_scale;
  Tensor dweight;
  Tensor scratch;
  int64_t first_row = 0;
};
void classifier_rows(const Queue& queue, const ClassifierRows& args);
int64_t classifier_rows_scratch(int64_t tokens, int64_t rows, DType dtype);

}  // namespace osprey::kernels

namespace osprey::cpu {
void classifier_rows(const Queue& queue, const kernels::ClassifierRows& args);
void classifier(const Queue& queue, const kernels::Classifier& args);
int64_t classifier_scratch(int64_t rows, int64_t vocabulary, DType dtype, kernels::Gradients gradients);
}  // namespace osprey::cpu
namespace osprey::cuda {
void classifier_rows(const Queue& queue, const kernels::ClassifierRows& args);
void classifier(const Queue& queue, const kernels::Classifier& args);
int64_t classifier_scratch(int64_t rows, int64_t vocabulary, DType dtype, kernels::Gradients gradients);
}  // namespace osprey::cuda
