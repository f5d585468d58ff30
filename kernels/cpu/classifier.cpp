#include "kernels/classifier.h"

#include <cstring>

#include "kernels/classifier_rows_chunks.h"
#include "kernels/cpu/classifier_chunks.h"
#include "kernels/cpu/isa/classifier.h"
#include "kernels/linear.h"

namespace osprey::cpu {

namespace {

void check_targets(const Tensor& targets, int64_t vocabulary) {
  const int32_t* t = targets.as<int32_t>();
  for (int64_t i = 0; i < targets.numel(); ++i)
    require(t[i] >= -1 && t[i] < vocabulary, "cross_entropy", "target {} of row {} is outside [-1, {})", t[i],
            i, vocabulary);
}

struct Sums {
  double loss = 0, tokens = 0;
};

struct Scratch {
  Scratch(const Tensor& memory, const ClassifierChunks& chunks) {
    float* next = memory.as<float>();
    logits = make_tensor(next, {chunks.logit_rows, chunks.vocabulary}, DType::f32, memory.device);
    next += (chunks.logit_floats() + 15) / 16 * 16;
    losses = reinterpret_cast<double*>(next);
    next += (2 * chunks.logit_rows + 15) / 16 * 16;
    if (chunks.grad_rows)
      d = make_tensor(next, {chunks.grad_rows, chunks.vocabulary}, chunks.dtype, memory.device);
  }
  Tensor logits, d;
  double* losses;
};

// Rows [begin, end): logits, losses, and d where it is defined.
void softmax_rows(const Queue& queue, const kernels::Classifier& args, const Scratch& s, int64_t begin,
                  int64_t end, float grad_scale, const Tensor& d, Sums& sum) {
  const Tensor logits = s.logits.row_range(0, end - begin);
  kernels::linear_forward(queue, {.y = logits,
                                  .x = args.x.row_range(begin, end),
                                  .weights = {&args.weight, 1},
                                  .pack = args.pack_forward});
  const int32_t* targets = args.targets.as<int32_t>() + begin;
  const int64_t v = args.weight.rows();
  const ClassifierTable& table = classifier_table();
  parallel_for(queue, end - begin, 1, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      // The row uses its logits up.
      const double wanted = targets[r] < 0 ? 0 : static_cast<double>(logits.as<float>()[r * v + targets[r]]);
      void* out = d.defined() ? static_cast<char*>(d.data) + r * v * size_bytes(d.dtype) : nullptr;
      s.losses[r] =
          table.row(logits.as<float>() + r * v, v, targets[r], grad_scale, out, d.dtype == DType::f32);
      if (args.log_sums.defined())
        args.log_sums.as<float>()[begin + r] = static_cast<float>(s.losses[r] + wanted);
    }
  });
  for (int64_t r = 0; r < end - begin; ++r) {
    sum.loss += s.losses[r];
    sum.tokens += targets[r] >= 0;
    if (args.token_losses.defined())
      args.token_losses.as<float>()[begin + r] = static_cast<float>(s.losses[r]);
  }
}

}  // namespace

int64_t classifier_scratch(int64_t rows, int64_t vocabulary, DType dtype, kernels::Gradients gradients) {
  return ClassifierChunks::of(rows, vocabulary, dtype, gradients == kernels::Gradients::wanted)
      .scratch_floats();
}

void classifier(const Queue& queue, const kernels::Classifier& args) {
  const int64_t n = args.x.rows(), v = args.weight.rows();
  check_targets(args.targets, v);
  const bool gradients = args.dx.defined() || args.dweight;
  const ClassifierChunks chunks = ClassifierChunks::of(n, v, args.x.dtype, gradients);
  const Scratch s(args.scratch, chunks);
  const double grad_scale = args.grad_scale.defined() ? *args.grad_scale.as<double>() : 1.0;
  Sums sum;
  const int64_t outer = gradients ? chunks.grad_rows : chunks.logit_rows;
  for (int64_t begin = 0; begin < n; begin += outer) {
    const int64_t end = std::min(n, begin + outer);
    for (int64_t r = begin; r < end; r += chunks.logit_rows) {
      const int64_t stop = std::min(end, r + chunks.logit_rows);
      softmax_rows(queue, args, s, r, stop, static_cast<float>(grad_scale),
                   gradients ? s.d.row_range(r - begin, stop - begin) : Tensor{}, sum);
    }
    if (!gradients) continue;
    const Tensor d = s.d.row_range(0, end - begin);
    if (args.dx.defined())
      kernels::linear_dgrad(queue, {.dx = {args.dx.row_range(begin, end), false},
                                    .dy = d,
                                    .weights = {&args.weight, 1},
                                    .pack = args.pack_dgrad});
    if (args.dweight) {
      const Accum dw{args.dweight.tensor, args.dweight.add || begin > 0};
      kernels::linear_wgrad(
          queue, {.dweights = {&dw, 1}, .outs = {&v, 1}, .dy = d, .x = args.x.row_range(begin, end)});
    }
  }
  args.sums.as<double>()[0] += sum.loss;
  args.sums.as<double>()[1] += sum.tokens;
  if (args.loss.defined()) *args.loss.as<float>() = static_cast<float>(sum.loss * grad_scale);
}

void classifier_rows(const Queue& queue, const kernels::ClassifierRows& args) {
  const int64_t n = args.x.rows(), rows = args.weight.rows();
  const auto chunks = kernels::ClassifierRowsChunks::of(n, rows, args.x.dtype);
  const Tensor all_logits = chunks.logits(args.scratch), all_d = chunks.d(args.scratch);
  const double grad_scale = args.grad_scale.defined() ? *args.grad_scale.as<double>() : 1.0;
  const ClassifierTable& table = classifier_table();
  for (int64_t begin = 0; begin < n; begin += chunks.tokens) {
    const int64_t end = std::min(n, begin + chunks.tokens), count = end - begin;
    const Tensor logits = all_logits.row_range(0, count), d = all_d.row_range(0, count);
    const Tensor x = args.x.row_range(begin, end);
    kernels::linear_forward(queue, {.y = logits, .x = x, .weights = {&args.weight, 1}, .pack = {}});
    const int32_t* targets = args.targets.as<int32_t>() + begin;
    const float* log_sums = args.log_sums.as<float>() + begin;
    parallel_for(queue, count, 1, [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) {
        char* out = static_cast<char*>(d.data) + r * rows * size_bytes(d.dtype);
        if (targets[r] < 0)
          std::memset(out, 0, static_cast<size_t>(rows * size_bytes(d.dtype)));
        else
          table.columns(logits.as<float>() + r * rows, rows, targets[r] - args.first_row, log_sums[r],
                        static_cast<float>(grad_scale), out, d.dtype == DType::f32);
      }
    });
    const Accum dw{args.dweight, begin > 0};
    kernels::linear_wgrad(queue, {.dweights = {&dw, 1}, .outs = {&rows, 1}, .dy = d, .x = x});
  }
}

}  // namespace osprey::cpu
