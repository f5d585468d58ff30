#include "framework/ops/outlier_rows.h"

#include <algorithm>
#include <array>

#include "framework/ops/pack_cache.h"
#include "kernels/linear.h"
#include "kernels/outlier_rows.h"
#include "kernels/pointwise.h"

namespace osprey {

namespace {

struct Values {
  std::array<Tensor, most_stacked_weights> all;
  size_t count = 0;
  kernels::Weights span() const { return {all.data(), count}; }
};
Values values_of(std::span<Parameter* const> weights) {
  Values v;
  for (const Parameter* p : weights) v.all[v.count++] = p->value;
  return v;
}

/// (K) i32: the rows of x that are taken.
Tensor largest_rows_of(Tape& t, const Tensor& x, int64_t count) {
  const Tensor rows = t.arena().alloc({std::min(count, x.rows())}, DType::i32),
               squares = t.arena().alloc({x.rows()}, DType::f32);
  kernels::largest_rows(t.queue(), {.rows = rows, .squares = squares, .x = x});
  return rows;
}

/// x[rows]
Tensor gathered(Tape& t, const Tensor& x, const Tensor& rows) {
  const Tensor y = t.arena().alloc({rows.numel(), x.cols()}, x.dtype);
  kernels::embedding_forward(t.queue(), {.y = y, .tokens = rows, .weight = x});
  return y;
}

}  // namespace

void extract_outlier_rows(Tape& t, const Tensor& y, const Tensor& x, std::span<Parameter* const> weights,
                          int64_t count) {
  const int64_t mark = t.arena().mark();
  const Tensor rows = largest_rows_of(t, x, count), large = gathered(t, x, rows),
               product = t.arena().alloc({rows.numel(), y.cols()}, y.dtype);
  kernels::linear_forward(
      t.queue(),
      {.y = product, .x = large, .weights = values_of(weights).span(), .pack = {}, .residual = {}});
  kernels::scatter_rows(t.queue(), {.y = y, .x = product, .rows = rows});
  t.arena().rewind(mark);
}

OutlierGradients outlier_gradients(Tape& t, const Accum& dx, const Tensor& dy,
                                   std::span<Parameter* const> weights, int64_t count) {
  if (count == 0 || !dx) return {};
  const Tensor rows = largest_rows_of(t, dy, count), large = gathered(t, dy, rows);
  const Tensor values =
      dx.add ? gathered(t, dx.tensor, rows) : t.temp({rows.numel(), dx.tensor.cols()}, dx.tensor.dtype);
  kernels::linear_dgrad(
      t.queue(), {.dx = {values, dx.add}, .dy = large, .weights = values_of(weights).span(), .pack = {}});
  return {rows, values};
}

void overwrite_rows(const Queue& queue, const Accum& dx, const OutlierGradients& outliers) {
  if (!outliers.rows.defined()) return;
  kernels::scatter_rows(queue, {.y = dx.tensor, .x = outliers.values, .rows = outliers.rows});
}

}  // namespace osprey
