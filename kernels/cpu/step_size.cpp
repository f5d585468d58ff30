#include "kernels/step_size.h"

#include <algorithm>

#include "kernels/cpu/isa/quantize.h"
#include "kernels/cpu/scratch.h"
#include "kernels/numerics/step_size.h"

namespace osprey::cpu {

namespace {

float number_at(const Tensor& t, int64_t i) {
  return t.dtype == DType::bf16 ? to_float(t.as<bf16>()[i]) : t.as<float>()[i];
}

/// Elements [col, col + n) of a row as floats.
void load_run(float* v, const Tensor& t, int64_t row, int64_t col, int64_t n) {
  const int64_t at = row * t.row_stride() + col;
  if (t.dtype == DType::bf16)
    quantize_table().load_bf16(v, t.as<bf16>() + at, n);
  else
    quantize_table().load_f32(v, t.as<float>() + at, n);
}

double row_sum(const kernels::StepGradient& a, int64_t row) {
  alignas(64) float x[quantize_run + 16], dy[quantize_run + 16];
  const float step = number_at(a.step, a.step.numel() > 1 ? row : 0),
              inverse = inverse_f32(used_step(step) * steps_per_unit(a.element));
  double sum = 0;
  for (int64_t col = 0; col < a.x.cols(); col += quantize_run) {
    const int64_t n = std::min(quantize_run, a.x.cols() - col);
    load_run(x, a.x, row, col, n);
    load_run(dy, a.dy, row, col, n);
    sum += quantize_table().slope_sum(dy, x, n, inverse, a.element);
  }
  return sum;
}

}  // namespace

void step_gradient(const Queue& queue, const kernels::StepGradient& a) {
  // A step of its own for each row, or at most 256 chunks of rows whose bounds follow from the shape alone.
  const int64_t rows = a.x.rows(), steps = a.step.numel(),
                chunks = steps > 1 ? steps : std::min<int64_t>(rows, 256);
  auto* const sums = scratch_of<double>(Scratch::quantize, static_cast<size_t>(chunks));
  parallel_for(queue, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      sums[i] = 0;
      for (int64_t r = rows * i / chunks; r < rows * (i + 1) / chunks; ++r) sums[i] += row_sum(a, r);
    }
  });
  for (int64_t s = 0; s < steps; ++s) {
    double total = 0;
    for (int64_t i = chunks * s / steps; i < chunks * (s + 1) / steps; ++i) total += sums[i];
    float& out = a.dstep.tensor.as<float>()[s];
    out = (a.dstep.add ? out : 0.0f) + static_cast<float>(a.factor * total);
  }
}

}  // namespace osprey::cpu
