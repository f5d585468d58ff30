#include "kernels/outlier_rows.h"

#include "kernels/core/dispatch.h"

namespace osprey::kernels {

namespace {

bool is_list(const Tensor& t, DType dtype) {
  return t.defined() && t.dtype == dtype && t.contiguous() && t.numel() > 0;
}

}  // namespace

void largest_rows(const Queue& queue, const LargestRows& a) {
  const char* where = "largest_rows";
  require(a.x.defined() && (a.x.dtype == DType::f32 || a.x.dtype == DType::bf16) && a.x.rows() <= INT32_MAX,
          where, "x must be f32 or bf16, with at most 2^31 - 1 rows, got {}", a.x);
  require(is_list(a.rows, DType::i32) && a.rows.numel() <= a.x.rows(), where,
          "rows must be i32 (K), K at least 1 and at most {}, got {}", a.x.rows(), a.rows);
  require(is_list(a.squares, DType::f32) && a.squares.numel() == a.x.rows(), where,
          "squares must be f32 ({}), got {}", a.x.rows(), a.squares);
  dispatch(queue, a, cpu::largest_rows, cuda::largest_rows);
}

void scatter_rows(const Queue& queue, const ScatterRows& a) {
  const char* where = "scatter_rows";
  require(a.x.defined() && (a.x.dtype == DType::f32 || a.x.dtype == DType::bf16) && a.y.defined() &&
              a.y.dtype == a.x.dtype && a.y.cols() == a.x.cols(),
          where, "y and x must be f32 or bf16 of one width, got {} and {}", a.y, a.x);
  require(is_list(a.rows, DType::i32) && a.rows.numel() == a.x.rows(), where, "rows must be i32 ({}), got {}",
          a.x.rows(), a.rows);
  dispatch(queue, a, cpu::scatter_rows, cuda::scatter_rows);
}

}  // namespace osprey::kernels
