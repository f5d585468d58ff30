#include "optim/apollo.h"

#include <algorithm>
#include <cmath>

#include "framework/parameter.h"
#include "kernels/compact_adam.h"
#include "kernels/core/random.h"
#include "kernels/gradient_scaling.h"
#include "kernels/matmul.h"

namespace osprey {

namespace {

bool left_side(const Shape& matrix) { return Subspace::smaller_side(matrix) == Subspace::Side::left; }

}  // namespace

/// What a step works in; of one matrix after the other.
struct Apollo::Workspace {
  Tensor projection;            // (rank, out) or (rank, in)
  Tensor projected, direction;  // state_shape()
  Tensor factors;               // of columns or rows, or one
  Tensor scaled;                // some rows of the gradient
  int64_t bytes = 0;            // of all
};

Apollo::Workspace Apollo::workspace_of(const Shape& matrix, void* memory, Device device) const {
  Workspace w;
  const auto take = [&](const Shape& shape) {
    void* at = memory ? static_cast<char*>(memory) + w.bytes : nullptr;
    w.bytes += (shape.numel() * 4 + 63) / 64 * 64;
    return make_tensor(at, shape, DType::f32, device);
  };
  const bool left = left_side(matrix);
  w.projection = take({projection_.rank, left ? matrix[0] : matrix[1]});
  w.projected = take(state_shape(matrix));
  w.direction = take(state_shape(matrix));
  w.factors = take({projection_.scaling == Scaling::tensor ? 1 : left ? matrix[1] : matrix[0]});
  w.scaled = take({std::clamp<int64_t>(projection_.elements_at_a_time / matrix[1], 1, matrix[0]), matrix[1]});
  return w;
}

std::vector<StateSpec> Apollo::states() const {
  std::vector<StateSpec> all = adam_states(adam_.moments);
  all.insert(all.begin(), StateSpec{"scaled_norm", DType::f32, one_for_all});
  return all;
}

Shape Apollo::state_shape(const Shape& gradient) const {
  return left_side(gradient) ? Shape{projection_.rank, gradient[1]} : Shape{gradient[0], projection_.rank};
}

int64_t Apollo::workspace_bytes(const Queue& queue, std::span<const ParamPiece> pieces) const {
  int64_t bytes = 0;
  for (const ParamPiece& p : pieces)
    bytes = std::max(bytes, workspace_of(p.full_shape, nullptr, queue.device).bytes);
  return bytes;
}

double Apollo::cost(const Shape& full_shape) const {
  return (2.0 * static_cast<double>(projection_.rank) + 20.0) * static_cast<double>(full_shape.numel());
}

void Apollo::step(const Queue& queue, std::span<const ParamPiece> pieces, const StepInfo& info) const {
  for (const ParamPiece& p : pieces) step(queue, p, info);
}

void Apollo::step(const Queue& queue, const ParamPiece& p, const StepInfo& info) const {
  const Workspace w = workspace_of(p.full_shape, info.workspace.data, queue.device);
  const bool left = left_side(p.full_shape), whole = projection_.scaling == Scaling::tensor;
  const std::string name(p.name);
  kernels::draw_normal(queue, {.y = w.projection,
                               .deviation = 1 / std::sqrt(static_cast<double>(projection_.rank)),
                               .refresh_every = projection_.refresh_every,
                               .seed = info.seed,
                               .stream = stream_of(name + " projection"),
                               .control = info.control});
  kernels::matmul(queue, {.c = w.projected,
                          .a = left ? w.projection : p.grad,
                          .b = left ? p.grad : w.projection,
                          .op_b = left ? kernels::Op::none : kernels::Op::transpose});
  const auto flat = [](const Tensor& t) { return t.view({t.numel()}); };
  kernels::compact_adam(queue, {.direction = flat(w.direction),
                                .grad = flat(w.projected),
                                .m = {flat(p.state[1]), p.state[3]},
                                .v = {flat(p.state[2]), p.state[4]},
                                .beta1 = adam_.beta1,
                                .beta2 = adam_.beta2,
                                .eps = adam_.eps,
                                .since = p.since,
                                .seed = info.seed,
                                .stream = stream_of(name),
                                .control = info.control});
  using kernels::Channels;
  const Channels channels = whole ? Channels::whole : left ? Channels::columns : Channels::rows;
  kernels::scaling_factors(queue, {.factors = w.factors,
                                   .previous = p.state[0],
                                   .direction = w.direction,
                                   .projected = w.projected,
                                   .gradient = p.grad,
                                   .channels = channels,
                                   .control = info.control});
  const bool master = p.master.data != p.value.data;
  const int64_t cols = p.full_shape[1], most = w.scaled.shape[0];
  for (int64_t begin = 0; begin < p.full_shape[0]; begin += most) {
    const int64_t end = std::min(begin + most, p.full_shape[0]);
    const Tensor scaled = w.scaled.row_range(0, end - begin);
    const Tensor factors = channels == Channels::rows ? make_tensor(w.factors.as<float>() + begin,
                                                                    {end - begin}, DType::f32, queue.device)
                                                      : w.factors;
    kernels::scale_channels(
        queue, {.y = scaled, .x = p.grad.row_range(begin, end), .factors = factors, .channels = channels});
    kernels::apply_step(queue, {.weight = flat(p.master.row_range(begin, end)),
                                .rounded = master ? flat(p.value.row_range(begin, end)) : Tensor{},
                                .x = flat(scaled),
                                .step_size = adam_.learning_rate * projection_.scale,
                                .decay = adam_.learning_rate * adam_.weight_decay,
                                .seed = info.seed,
                                .stream = stream_of(name),
                                .first_element = begin * cols,
                                .control = info.control});
  }
}

}  // namespace osprey
