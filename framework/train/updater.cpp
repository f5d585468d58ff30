#include "framework/train/updater.h"

#include <algorithm>

#include "kernels/device.h"
#include "kernels/pointwise.h"

namespace osprey {

/// Elements [begin, end) of a contiguous tensor.
static Tensor flat_range(const Tensor& t, int64_t begin, int64_t end) {
  Tensor flat = t.view({1, t.numel()}).columns(begin, end);
  return make_tensor(flat.data, {end - begin}, t.dtype, t.device);
}

Updater::Updater(const Queue& queue, ParamStore& params, const ShardPlan& plan,
                 std::span<const ShardParameter> sharded, int rank,
                 const std::function<const Optimizer&(const Parameter&)>& optimizer_of, Arena::Place place)
    : queue_(queue), params_(params) {
  for (const ShardParameter& s : sharded) by_index_.push_back(&params.at(s.name));
  for (const UpdateRange& range : plan.updates.at(static_cast<size_t>(rank))) {
    const Optimizer& optimizer = optimizer_of(*by_index_[range.parameter]);
    auto it = std::find_if(groups_.begin(), groups_.end(),
                           [&](const Group& g) { return g.optimizer == &optimizer; });
    if (it == groups_.end()) it = groups_.insert(groups_.end(), Group{&optimizer, optimizer.states(), {}});
    it->pieces.push_back(make_piece(range, optimizer));
  }
  int64_t state_bytes = 0, workspace_bytes = 0;
  for (const Group& g : groups_) {
    workspace_bytes = std::max(workspace_bytes, g.optimizer->workspace_bytes(queue, g.pieces));
    for (const ParamPiece& p : g.pieces)
      state_bytes += (p.end - p.begin + 16) * 4 * static_cast<int64_t>(g.states.size() + 1);
  }
  state_ = std::make_unique<Arena>("optimizer state", queue.device, state_bytes + 4096, place);
  workspace_ = std::make_unique<Arena>("optimizer workspace", queue.device, workspace_bytes + 64);
  for (Group& g : groups_) allocate(g);
  if (workspace_bytes > 0) scratch_ = workspace_->alloc({(workspace_bytes + 3) / 4}, DType::f32);
}

ParamPiece Updater::make_piece(const UpdateRange& range, const Optimizer& optimizer) const {
  const Parameter& p = *by_index_[range.parameter];
  ParamPiece piece;
  piece.name = p.name;
  piece.full_shape = p.shape;
  piece.begin = range.begin;
  piece.end = range.end;
  const bool whole = optimizer.granularity() == ShardGranularity::matrix;
  piece.value = whole ? p.value : flat_range(p.value, range.begin, range.end);
  piece.grad = whole ? p.grad : flat_range(p.grad, range.begin, range.end);
  return piece;
}

void Updater::allocate(Group& group) {
  require(group.states.size() <= max_states, "updater", "{} declares {} states, at most {} are possible",
          group.optimizer->kind(), group.states.size(), max_states);
  for (ParamPiece& p : group.pieces) {
    p.master = p.value.dtype == DType::f32 ? p.value : state_->alloc(p.value.shape, DType::f32);
    for (size_t i = 0; i < group.states.size(); ++i)
      p.state[i] = state_->alloc(p.value.shape, group.states[i].dtype);
  }
}

void Updater::initialize(uint64_t seed) {
  if (queue_.meta()) return;
  std::vector<float> whole;
  std::string held;  // the parameter in `whole`
  for (Group& g : groups_) {
    for (ParamPiece& p : g.pieces) {
      if (p.value.dtype == DType::f32) continue;
      const Parameter& parameter = params_.at(std::string(p.name));
      if (held != parameter.name) {
        whole.resize(static_cast<size_t>(parameter.shape.numel()));
        ParamStore::initial_value(queue_, parameter, seed, whole.data());
        held = parameter.name;
      }
      kernels::upload(queue_, p.master, whole.data() + p.begin);
    }
  }
}

void Updater::step(const Tensor& control, uint64_t seed) {
  for (const Group& g : groups_)
    g.optimizer->step(queue_, g.pieces, {.control = control, .seed = seed, .workspace = scratch_});
}

void Updater::assign(const Parameter& parameter, std::span<const float> values) {
  require(static_cast<int64_t>(values.size()) == parameter.shape.numel(), "updater",
          "{} has {} elements, got {}", parameter.name, parameter.shape.numel(), values.size());
  for (const Group& g : groups_)
    for (const ParamPiece& p : g.pieces)
      if (p.name == parameter.name) kernels::upload(queue_, p.master, values.data() + p.begin);
}

void Updater::round_values() {
  for (const Group& g : groups_)
    for (const ParamPiece& p : g.pieces)
      if (p.value.dtype != DType::f32) kernels::copy(queue_, {.y = p.value, .x = p.master});
}

}  // namespace osprey
