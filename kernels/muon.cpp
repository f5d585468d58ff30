#include "kernels/muon.h"

#include "kernels/core/dispatch.h"

namespace osprey::kernels {

static void require_f32(const char* where, const char* what, const Tensor& t, const Shape& shape) {
  if (t.shape != shape || t.dtype != DType::f32 || !t.contiguous())
    fail(where, "{} must be contiguous f32 {}, got {}", what, shape.str(), t.str());
}

static void require_x(const char* where, const Tensor& x, const Shape& shape, Layout layout) {
  if (shape.rank != 2) fail(where, "the parameter must be a matrix, got {}", shape.str());
  const Shape wanted = layout == Layout::same ? shape : Shape{shape[1], shape[0]};
  if (x.shape != wanted || !x.contiguous() || x.dtype == DType::i32)
    fail(where, "x must be contiguous f32 or bf16 {}, got {}", wanted.str(), x.str());
}

static void require_sum(const char* where, const Tensor& t) {
  if (t.numel() != 1 || t.dtype != DType::f64) fail(where, "sum_of_squares must be f64 (1), got {}", t.str());
}

void muon_momentum(const Queue& queue, const MuonMomentum& args) {
  require_f32("muon_momentum", "momentum", args.momentum, args.momentum.shape);
  require_f32("muon_momentum", "grad", args.grad, args.momentum.shape);
  require_sum("muon_momentum", args.sum_of_squares);
  require_control("muon_momentum", queue, args.control);
  dispatch(queue, args, cpu::muon_momentum, cuda::muon_momentum);
}

void muon_direction(const Queue& queue, const MuonDirection& args) {
  require_f32("muon_direction", "momentum", args.momentum, args.momentum.shape);
  require_f32("muon_direction", "grad", args.grad, args.momentum.shape);
  require_x("muon_direction", args.x, args.momentum.shape, args.layout);
  require_sum("muon_direction", args.sum_of_squares);
  require_control("muon_direction", queue, args.control);
  dispatch(queue, args, cpu::muon_direction, cuda::muon_direction);
}

void muon_update(const Queue& queue, const MuonUpdate& args) {
  require_f32("muon_update", "master", args.master, args.master.shape);
  require_x("muon_update", args.x, args.master.shape, args.layout);
  require_shape("muon_update", "value", args.value, args.master.shape);
  if (!args.value.contiguous() || (args.value.dtype != DType::bf16 && args.value.data != args.master.data))
    fail("muon_update", "value must be contiguous bf16, or the same f32 memory as master; got {}",
         args.value.str());
  require_control("muon_update", queue, args.control);
  dispatch(queue, args, cpu::muon_update, cuda::muon_update);
}

}  // namespace osprey::kernels
