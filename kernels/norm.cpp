#include "kernels/norm.h"

#include <algorithm>

#include "kernels/core/dispatch.h"

namespace osprey::kernels {

int64_t norm_partials(const Queue& queue, int64_t rows) {
  // A GPU wants blocks for all its multiprocessors; their number may not change results, so it is fixed.
  return queue.target() == DeviceKind::cuda ? std::clamp<int64_t>(rows / 8, 1, 264)
                                            : std::clamp<int64_t>(rows / 64, 1, 64);
}

static void check_norm(const char* op, const Tensor& x, const Tensor& other, const char* what) {
  require(other.rows() == x.rows() && other.cols() == x.cols() && other.dtype == x.dtype, op,
          "{} must be like x {}, got {}", what, x, other);
}

static void check_weight(const char* op, const Tensor& x, const Tensor& weight) {
  require(weight.shape == Shape{x.cols()} && weight.dtype == x.dtype, op,
          "weight must be {} ({}), got {}; x is {}", name(x.dtype), x.cols(), weight, x);
}

static void check_rms_weight(const char* op, const Tensor& x, const Tensor& weight) {
  require((weight.shape == Shape{x.cols()} || weight.shape == Shape{1}) && weight.dtype == x.dtype, op,
          "weight must be {} ({}) or (1), got {}; x is {}", name(x.dtype), x.cols(), weight, x);
}

void rmsnorm_forward(const Queue& queue, const RmsnormForward& f) {
  check_norm("rmsnorm", f.x, f.y, "y");
  check_rms_weight("rmsnorm", f.x, f.weight);
  require_shape("rmsnorm", "rstd", f.rstd, {f.x.rows()});
  dispatch(queue, f, cpu::rmsnorm_forward, cuda::rmsnorm_forward);
}

void add_rmsnorm_forward(const Queue& queue, const AddRmsnormForward& f) {
  check_norm("add_rmsnorm", f.a, f.b, "b");
  check_norm("add_rmsnorm", f.a, f.sum, "sum");
  check_norm("add_rmsnorm", f.a, f.y, "y");
  check_rms_weight("add_rmsnorm", f.a, f.weight);
  require_shape("add_rmsnorm", "rstd", f.rstd, {f.a.rows()});
  dispatch(queue, f, cpu::add_rmsnorm_forward, cuda::add_rmsnorm_forward);
}

void rmsnorm_backward(const Queue& queue, const RmsnormBackward& b) {
  check_norm("rmsnorm", b.x, b.dy, "dy");
  check_rms_weight("rmsnorm", b.x, b.weight);
  if (b.dsum.defined()) {
    check_norm("rmsnorm", b.x, b.dsum, "dsum");
    require(b.dx && !b.dx.add, "rmsnorm", "dsum needs a dx to overwrite");
  }
  if (b.dx) check_norm("rmsnorm", b.x, b.dx.tensor, "dx");
  if (b.dweight) require_shape("rmsnorm", "dweight", b.dweight.tensor, b.weight.shape);
  require_shape("rmsnorm", "rstd", b.rstd, {b.x.rows()});
  require_shape("rmsnorm", "partial", b.partial, {norm_partials(queue, b.x.rows()), b.weight.numel()});
  dispatch(queue, b, cpu::rmsnorm_backward, cuda::rmsnorm_backward);
}

void layernorm_forward(const Queue& queue, const LayernormForward& f) {
  check_norm("layernorm", f.x, f.y, "y");
  check_weight("layernorm", f.x, f.weight);
  check_weight("layernorm", f.x, f.bias);
  require_shape("layernorm", "stats", f.stats, {f.x.rows(), 2});
  dispatch(queue, f, cpu::layernorm_forward, cuda::layernorm_forward);
}

void layernorm_backward(const Queue& queue, const LayernormBackward& b) {
  check_norm("layernorm", b.x, b.dy, "dy");
  if (b.dx) check_norm("layernorm", b.x, b.dx.tensor, "dx");
  check_weight("layernorm", b.x, b.weight);
  if (b.dweight) require_shape("layernorm", "dweight", b.dweight.tensor, b.weight.shape);
  if (b.dbias) require_shape("layernorm", "dbias", b.dbias.tensor, b.weight.shape);
  require_shape("layernorm", "stats", b.stats, {b.x.rows(), 2});
  require_shape("layernorm", "partial", b.partial, {norm_partials(queue, b.x.rows()), 2 * b.x.cols()});
  dispatch(queue, b, cpu::layernorm_backward, cuda::layernorm_backward);
}

}  // namespace osprey::kernels
