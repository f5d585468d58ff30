#include "framework/ops/cross_entropy.h"

#include "framework/ops/pack_cache.h"
#include "kernels/classifier.h"

namespace osprey {

Var cross_entropy(Tape& t, Var x, Parameter& weight, const Tensor& targets, float grad_scale, LossSum& sum,
                  const Tensor& token_losses) {
  const Queue& queue = t.queue();
  const Tensor in = t.value(x);  // (N, C)
  const Tensor n_targets = targets.view({targets.numel()});
  const Var leaf = t.leaf(weight);
  const bool wants_dx = t.needs_grad(x), wants_dw = t.needs_grad(leaf), wants = wants_dx || wants_dw;
  const Tensor loss = t.alloc({1}, DType::f32);
  const Tensor dx = wants_dx ? t.alloc(in.shape, in.dtype) : Tensor{};
  Parameter* const one[] = {&weight};
  kernels::Classifier args{
      .x = in, .weight = weight.value, .targets = n_targets, .grad_scale = grad_scale, .dx = dx};
  if (wants_dw) args.dweight = t.grad(leaf);  // head gradients are formed here, not in backward
  if (token_losses.defined()) args.token_losses = token_losses.view({token_losses.numel()});
  args.pack_forward = packed_weights(queue, one, kernels::PackFor::forward);
  if (wants_dx) args.pack_dgrad = packed_weights(queue, one, kernels::PackFor::dgrad);
  const int64_t mark = t.arena().mark();
  const auto gradients = wants ? kernels::Gradients::wanted : kernels::Gradients::none;
  args.scratch =
      t.alloc({kernels::classifier_scratch(in.rows(), weight.shape[0], in.dtype, gradients)}, DType::f32);
  const kernels::ClassifierLoss result = kernels::classifier(queue, args);
  t.arena().rewind(mark);
  sum.loss += result.loss;
  sum.tokens += result.tokens;
  if (!queue.meta()) loss.as<float>()[0] = static_cast<float>(result.loss * static_cast<double>(grad_scale));
  return t.record("cross_entropy", loss, {x, leaf}, [=, &t](Tensor dy) {
    require(t.queue().meta() || dy.as<float>()[0] == 1.0f, "cross_entropy",
            "backward must start from 1 at the loss: its gradients were formed with the forward");
    if (dx.defined()) t.pass_grad(x, dx);
  });
}

}  // namespace osprey
