#include "framework/ops/cross_entropy.h"

#include "framework/ops/pack_cache.h"
#include "kernels/classifier.h"

namespace osprey {

namespace {

/// The gradient of the head some rows at a time, each of which may have changed when the next ones are
/// formed: from what the whole head left in log_sums.
void head_by_rows(Tape& t, Parameter& weight, const kernels::Classifier& c) {
  const int64_t rows = weight.row_gradient.rows();
  const Tensor scratch = t.temp({kernels::classifier_rows_scratch(c.x.rows(), rows, c.x.dtype)}, DType::f32);
  weight.accumulate_by_rows([&](int64_t first, const Tensor& some) {
    kernels::classifier_rows(t.queue(), {.x = c.x,
                                         .weight = weight.value.row_range(first, first + some.rows()),
                                         .targets = c.targets,
                                         .log_sums = c.log_sums,
                                         .grad_scale = c.grad_scale,
                                         .dweight = some,
                                         .scratch = scratch,
                                         .first_row = first});
  });
}

}  // namespace

Var cross_entropy(Tape& t, Var x, Parameter& weight, const Tensor& targets, const LossArgs& args) {
  const Queue& queue = t.queue();
  const Tensor in = t.value(x);  // (N, C)
  const Var leaf = t.leaf(weight);
  const bool wants_dx = t.needs_grad(x), wants_dw = t.needs_grad(leaf);
  const Tensor loss = t.alloc({1}, DType::f32);
  const Tensor dx = wants_dx ? t.alloc(in.shape, in.dtype) : Tensor{};
  Parameter* const one[] = {&weight};
  kernels::Classifier classifier{.x = in,
                                 .weight = weight.value,
                                 .targets = targets.view({targets.numel()}),
                                 .grad_scale = args.grad_scale,
                                 .sums = args.sums,
                                 .loss = loss,
                                 .dx = dx};
  const bool by_rows = wants_dw && weight.row_gradient.defined();
  if (wants_dw && !by_rows) classifier.dweight = t.grad(leaf);  // formed here, not in backward
  if (args.token_losses.defined())
    classifier.token_losses = args.token_losses.view({args.token_losses.numel()});
  classifier.pack_forward = packed_weights(queue, one, kernels::PackFor::forward);
  if (wants_dx) classifier.pack_dgrad = packed_weights(queue, one, kernels::PackFor::dgrad);
  const int64_t mark = t.arena().mark();
  if (by_rows) classifier.log_sums = t.alloc({in.rows()}, DType::f32);
  const auto gradients =
      wants_dx || (wants_dw && !by_rows) ? kernels::Gradients::wanted : kernels::Gradients::none;
  classifier.scratch = t.alloc(
      {kernels::classifier_scratch(queue, in.rows(), weight.shape[0], in.dtype, gradients)}, DType::f32);
  kernels::classifier(queue, classifier);
  if (by_rows) head_by_rows(t, weight, classifier);
  t.arena().rewind(mark);
  return t.record("cross_entropy", loss, {x, leaf}, [=, &t](Tensor dy) {
    // Where it costs nothing to look: on a GPU it would be a wait.
    require(dy.device.kind != DeviceKind::cpu || dy.as<float>()[0] == 1.0f, "cross_entropy",
            "backward must start from 1 at the loss: its gradients were formed with the forward");
    if (dx.defined()) t.pass_grad(x, dx);
  });
}

}  // namespace osprey
