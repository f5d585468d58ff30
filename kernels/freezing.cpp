#include "kernels/freezing.h"

#include "kernels/core/dispatch.h"

namespace osprey::kernels {

namespace {

void require_numbers(const char* where, const char* what, const Tensor& t, int64_t n, DType dtype) {
  require(t.dtype == dtype && t.contiguous() && t.numel() == n, where,
          "{} must be {} contiguous elements of {}, got {}", what, n, name(dtype), t);
}

}  // namespace

void hold_frozen(const Queue& queue, const HoldFrozen& a) {
  const char* where = "hold_frozen";
  const int64_t n = a.master.numel();
  require_packed(where, "y", a.y, queue.device);
  require_numbers(where, "master", a.master, n, DType::f32);
  require_numbers(where, "held", a.held, n, DType::f32);
  require_numbers(where, "grad", a.grad, n, DType::f32);
  require_numbers(where, "step", a.step, 1, DType::f64);
  require_numbers(where, "frozen", a.frozen, 1, DType::f64);
  require(a.first >= 0 && a.first + n <= a.y.rows * a.y.cols, where,
          "elements {} to {} are not all of a matrix of {} x {}", a.first, a.first + n, a.y.rows, a.y.cols);
  dispatch(queue, a, cpu::hold_frozen, cuda::hold_frozen);
}

void restore_frozen(const Queue& queue, const RestoreFrozen& a) {
  const char* where = "restore_frozen";
  const int64_t n = a.master.numel();
  require_numbers(where, "master", a.master, n, DType::f32);
  require_numbers(where, "held", a.held, n, DType::f32);
  require_numbers(where, "value", a.value, n, a.value.dtype == DType::bf16 ? DType::bf16 : DType::f32);
  dispatch(queue, a, cpu::restore_frozen, cuda::restore_frozen);
}

}  // namespace osprey::kernels
