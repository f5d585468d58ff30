#include "kernels/outlier_pattern.h"

#include "kernels/core/dispatch.h"

namespace osprey::kernels {

namespace {

void require_line(const char* where, const char* what, const Tensor& t, int64_t count) {
  require(t.dtype == DType::f32 && t.contiguous() && t.numel() == count && count > 0, where,
          "{} must be f32 ({}), got {}", what, count, t);
}

}  // namespace

void line_squares(const Queue& queue, const LineSquares& a) {
  const char* where = "line_squares";
  require(!a.xs.empty() && a.xs.size() <= 4, where, "1 to 4 matrices, got {}", a.xs.size());
  const DType dtype = a.xs[0].dtype;
  require(dtype == DType::f32 || dtype == DType::bf16, where, "xs must be f32 or bf16, got {}", a.xs[0]);
  int64_t rows = 0;
  for (const Tensor& x : a.xs) {
    require(x.defined() && x.dtype == dtype && x.cols() == a.xs[0].cols() && x.device == queue.device, where,
            "xs must be matrices of one width and type on {}, got {} and {}", name(queue.device.kind),
            a.xs[0], x);
    rows += x.rows();
  }
  require_line(where, "rows", a.rows, rows);
  require_line(where, "columns", a.columns, a.xs[0].cols());
  dispatch(queue, a, cpu::line_squares, cuda::line_squares);
}

void count_pattern(const Queue& queue, const CountPattern& a) {
  const char* where = "count_pattern";
  require_line(where, "rows", a.rows, a.rows.numel());
  require_line(where, "columns", a.columns, a.columns.numel());
  require(a.counts.dtype == DType::f64 && a.counts.numel() == outlier_patterns && a.counts.contiguous(),
          where, "counts must be f64 ({}), got {}", outlier_patterns, a.counts);
  require(a.ratio > 1, where, "the ratio must be above 1, got {}", a.ratio);
  dispatch(queue, a, cpu::count_pattern, cuda::count_pattern);
}

}  // namespace osprey::kernels
