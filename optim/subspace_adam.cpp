#include "optim/subspace_adam.h"

#include <algorithm>

#include "framework/parameter.h"
#include "kernels/compact_adam.h"
#include "kernels/core/random.h"
#include "kernels/matmul.h"

namespace osprey {

namespace {

constexpr int64_t elements_at_a_time = int64_t{1} << 22;  // of the step that is brought back

int64_t padded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

int64_t rows_at_a_time(const Shape& shape) {
  return std::min(shape[0], std::max<int64_t>(1, elements_at_a_time / shape[1]));
}

int64_t direction_bytes(const ParamPiece& p) {  // of one that may have no gradient now
  return padded(p.subspace->projected_shape(p.full_shape).numel() * size_bytes(p.value.dtype));
}

}  // namespace

int64_t SubspaceAdam::workspace_bytes(const Queue&, std::span<const ParamPiece> pieces) const {
  int64_t bytes = 0;
  for (const ParamPiece& p : pieces)
    bytes = std::max(bytes, direction_bytes(p) + rows_at_a_time(p.full_shape) * p.full_shape[1] * 4);
  return bytes;
}

double SubspaceAdam::cost(const Shape& full_shape) const {
  // Bringing the step back is a product with the rank, which is a fraction of the smaller side.
  return 100.0 * static_cast<double>(full_shape.numel());
}

void SubspaceAdam::step(const Queue& queue, std::span<const ParamPiece> pieces, const StepInfo& info) const {
  for (const ParamPiece& p : pieces) {
    const Subspace& s = *p.subspace;
    const Tensor d = make_tensor(info.workspace.data, p.grad.shape, p.value.dtype, queue.device);
    kernels::compact_adam(queue, {.direction = d.view({d.numel()}),
                                  .grad = p.grad.view({p.grad.numel()}),
                                  .m = {p.state[0].view({p.grad.numel()}), p.state[2]},
                                  .v = {p.state[1].view({p.grad.numel()}), p.state[3]},
                                  .beta1 = settings_.beta1,
                                  .beta2 = settings_.beta2,
                                  .eps = settings_.eps,
                                  .eps_place = settings_.eps_place,
                                  .since = p.since,
                                  .seed = info.seed,
                                  .stream = stream_of(std::string(p.name)),
                                  .control = info.control});
    const bool left = s.side == Subspace::Side::left, master = p.master.data != p.value.data;
    const int64_t rows = rows_at_a_time(p.full_shape), cols = p.full_shape[1];
    for (int64_t begin = 0; begin < p.full_shape[0]; begin += rows) {
      const int64_t end = std::min(begin + rows, p.full_shape[0]), n = (end - begin) * cols;
      const Tensor back = make_tensor(static_cast<char*>(info.workspace.data) + direction_bytes(p),
                                      {end - begin, cols}, DType::f32, queue.device);
      kernels::matmul(queue, {.c = back,
                              .a = left ? s.basis.columns(begin, end) : d.row_range(begin, end),
                              .b = left ? d : s.basis,
                              .op_a = left ? kernels::Op::transpose : kernels::Op::none});
      kernels::apply_step(queue, {.weight = p.master.row_range(begin, end).view({n}),
                                  .rounded = master ? p.value.row_range(begin, end).view({n}) : Tensor{},
                                  .x = back.view({n}),
                                  .step_size = settings_.learning_rate * s.scale,
                                  .decay = settings_.learning_rate * settings_.weight_decay,
                                  .seed = info.seed,
                                  .stream = stream_of(std::string(p.name)),
                                  .first_element = begin * cols,
                                  .control = info.control});
    }
  }
}

}  // namespace osprey
