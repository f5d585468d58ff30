#include "kernels/muon.h"

#include <array>

#include "kernels/cpu/isa/muon.h"

namespace osprey::cpu {

using namespace kernels;

void muon_momentum(const Queue& queue, const MuonMomentum& a) {
  const double* control = a.control.as<double>();
  double& sum_of_squares = *a.sum_of_squares.as<double>();
  sum_of_squares = 0;
  if (control[step_apply] == 0) return;
  const double grad_scale = control[step_grad_scale];
  // As in sum_of_squares: chunks follow from the element count alone.
  const int64_t n = a.momentum.numel();
  const int64_t chunk = std::max<int64_t>(16384, (n + 255) / 256);
  const int64_t chunks = (n + chunk - 1) / chunk;
  std::array<double, 256> sums{};
  float* m = a.momentum.as<float>();
  const float* grad = a.grad.as<float>();
  const MuonDirectionFactors u = muon_direction_factors(a.form == Momentum::nesterov, a.beta, grad_scale, 1);
  parallel_for(queue, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c)
      sums[static_cast<size_t>(c)] =
          muon_table().momentum(m + c * chunk, grad + c * chunk, std::min(chunk, n - c * chunk),
                                static_cast<float>(a.beta), static_cast<float>(grad_scale), u);
  });
  for (int64_t c = 0; c < chunks; ++c) sum_of_squares += sums[static_cast<size_t>(c)];
}

void muon_direction(const Queue& queue, const MuonDirection& a) {
  const int64_t rows = a.momentum.shape[0], cols = a.momentum.shape[1];
  const float *m = a.momentum.as<float>(), *grad = a.grad.as<float>();
  const MuonDirectionFactors u =
      muon_direction_factors(a.form == Momentum::nesterov, a.beta, a.control.as<double>()[step_grad_scale],
                             muon_direction_scale(*a.sum_of_squares.as<double>(), a.safety));
  const bool is_bf16 = a.x.dtype == DType::bf16;
  bf16* x16 = is_bf16 ? a.x.as<bf16>() : nullptr;
  float* x32 = is_bf16 ? nullptr : a.x.as<float>();
  const MuonTable& table = muon_table();
  if (a.layout == Layout::same) {
    parallel_for(queue, rows, 16, [&](int64_t begin, int64_t end) {
      const int64_t at = begin * cols, n = (end - begin) * cols;
      if (is_bf16)
        table.direction_bf16(x16 + at, m + at, grad + at, n, u);
      else
        table.direction_f32(x32 + at, m + at, grad + at, n, u);
    });
    return;
  }
  parallel_for(queue, cols, 32, [&](int64_t begin, int64_t end) {
    if (is_bf16)
      table.transposed_bf16(x16, m, grad, rows, cols, begin, end, u);
    else
      table.transposed_f32(x32, m, grad, rows, cols, begin, end, u);
  });
}

void muon_update(const Queue& queue, const MuonUpdate& a) {
  const double* control = a.control.as<double>();
  if (control[step_apply] == 0) return;
  const int64_t rows = a.master.shape[0], cols = a.master.shape[1];
  const int64_t x_row = a.layout == Layout::same ? cols : 1, x_col = a.layout == Layout::same ? 1 : rows;
  bf16* value = a.value.dtype == DType::bf16 ? a.value.as<bf16>() : nullptr;
  float* master = a.master.as<float>();
  const float step_size = static_cast<float>(a.step_size * control[step_learning_rate_factor]),
              decay = static_cast<float>(a.decay * control[step_learning_rate_factor]);
  parallel_for(queue, rows, 16, [&](int64_t begin, int64_t end) {
    if (a.x.dtype == DType::bf16)
      muon_table().update_bf16(value, master, a.x.as<bf16>(), cols, begin, end, x_row, x_col, step_size,
                               decay);
    else
      muon_table().update_f32(value, master, a.x.as<float>(), cols, begin, end, x_row, x_col, step_size,
                              decay);
  });
}

}  // namespace osprey::cpu
