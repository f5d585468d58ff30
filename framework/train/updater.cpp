#include "framework/train/updater.h"

#include <algorithm>
#include <iterator>

#include "kernels/device.h"
#include "kernels/pointwise.h"

namespace osprey {

/// Elements [begin, end) of a contiguous tensor.
static Tensor flat_range(const Tensor& t, int64_t begin, int64_t end) {
  Tensor flat = t.view({1, t.numel()}).columns(begin, end);
  return make_tensor(flat.data, {end - begin}, t.dtype, t.device);
}

/// Of its gradient, which it may not have now.
static Shape gradient_shape(const Optimizer& optimizer, const ParamPiece& p) {
  if (optimizer.granularity() == ShardGranularity::element) return {p.end - p.begin};
  return p.subspace ? p.subspace->projected_shape(p.full_shape) : p.full_shape;
}

static Shape state_shape(const Optimizer& optimizer, const ParamPiece& p, const StateSpec& s) {
  const Shape shape = optimizer.state_shape(gradient_shape(optimizer, p));
  return s.per == 1 ? shape : Shape{(shape.numel() + s.per - 1) / s.per};
}

Updater::Updater(const Queue& queue, ParamStore& params, const ShardPlan& plan,
                 std::span<const ShardParameter> sharded, int rank,
                 const std::function<const Optimizer&(const Parameter&)>& optimizer_of, Arena::Place place,
                 Masters masters)
    : queue_(queue), params_(params), masters_(masters) {
  for (const UpdateRange& range : plan.updates.at(static_cast<size_t>(rank))) {
    const Parameter& parameter = params.at(sharded[range.parameter].name);
    const Optimizer& optimizer = optimizer_of(parameter);
    auto it = std::find_if(groups_.begin(), groups_.end(),
                           [&](const Group& g) { return g.optimizer == &optimizer; });
    if (it == groups_.end())
      it = groups_.insert(groups_.end(), Group{&optimizer, optimizer.states(), {}, {}});
    ParamPiece piece;
    piece.begin = range.begin;
    piece.end = range.end;
    point(piece, parameter, optimizer);
    it->pieces.push_back(piece);
    it->parameters.push_back(&parameter);
  }
  int64_t state_bytes = 0, workspace_bytes = 0;
  for (const Group& g : groups_) {
    workspace_bytes = std::max(workspace_bytes, g.optimizer->workspace_bytes(queue, g.pieces));
    for (const ParamPiece& p : g.pieces) {
      if (masters_ == Masters::kept && p.value.dtype != DType::f32) state_bytes += p.value.numel() * 4 + 64;
      for (const StateSpec& s : g.states)
        state_bytes += state_shape(*g.optimizer, p, s).numel() * size_bytes(s.dtype) + 64;
    }
  }
  state_ = std::make_unique<Arena>("optimizer state", queue.device, state_bytes + 4096, place);
  workspace_ = std::make_unique<Arena>("optimizer workspace", queue.device, workspace_bytes + 64);
  for (Group& g : groups_) allocate(g);
  if (workspace_bytes > 0) scratch_ = workspace_->alloc({(workspace_bytes + 3) / 4}, DType::f32);
}

/// Makes the piece one of this parameter.
void Updater::point(ParamPiece& piece, const Parameter& p, const Optimizer& optimizer) {
  piece.name = p.name;
  piece.full_shape = p.shape;
  piece.subspace = p.subspace.get();
  const bool whole = optimizer.granularity() == ShardGranularity::matrix;
  piece.value = whole ? p.value : flat_range(p.value, piece.begin, piece.end);
  piece.grad = whole || !p.grad.defined() ? p.grad : flat_range(p.grad, piece.begin, piece.end);
}

void Updater::allocate(Group& group) {
  require(group.states.size() <= max_states, "updater", "{} declares {} states, at most {} are possible",
          group.optimizer->kind(), group.states.size(), max_states);
  for (ParamPiece& p : group.pieces) {
    const bool in_place = p.value.dtype == DType::f32 || masters_ == Masters::none;
    require(p.value.dtype == DType::f32 || masters_ == Masters::kept || group.optimizer->updates_in_place(),
            "train.master_weights",
            "{} needs fp32 masters for {}; set master_weights: fp32, or train it with adamw",
            group.optimizer->kind(), p.name);
    p.master = in_place ? p.value : state_->alloc(p.value.shape, DType::f32);
    for (size_t i = 0; i < group.states.size(); ++i) {
      const StateSpec& s = group.states[i];
      p.state[i] = state_->alloc(state_shape(*group.optimizer, p, s), s.dtype);
    }
  }
}

void Updater::initialize(uint64_t seed) {
  if (queue_.meta()) return;
  std::vector<float> whole;
  std::string held;  // the parameter in `whole`
  for (Group& g : groups_) {
    for (ParamPiece& p : g.pieces) {
      if (!has_master(p)) continue;
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
  for (const Group& g : groups_) {
    some_.clear();
    std::copy_if(g.pieces.begin(), g.pieces.end(), std::back_inserter(some_),
                 [](const ParamPiece& p) { return p.grad.defined(); });
    if (!some_.empty())
      g.optimizer->step(queue_, some_, {.control = control, .seed = seed, .workspace = scratch_});
  }
}

void Updater::step_layer(int layer, const Tensor& control, uint64_t seed) {
  for (const Group& g : groups_) {
    some_.clear();
    for (size_t i = 0; i < g.pieces.size(); ++i)
      if (g.parameters[i]->layer == layer && g.pieces[i].grad.defined()) some_.push_back(g.pieces[i]);
    if (!some_.empty())
      g.optimizer->step(queue_, some_, {.control = control, .seed = seed, .workspace = scratch_});
  }
}

void Updater::step_rows(const Parameter& parameter, int64_t first, const Tensor& gradient,
                        const Tensor& control, uint64_t seed) {
  const int64_t cols = parameter.shape[1], begin = first * cols, end = begin + gradient.numel();
  for (const Group& g : groups_)
    for (size_t i = 0; i < g.pieces.size(); ++i) {
      if (g.parameters[i] != &parameter) continue;
      ParamPiece p = g.pieces[i];
      require(p.begin == 0 && p.end == parameter.shape.numel(), "updater",
              "{} is cut over ranks and cannot be updated by rows", parameter.name);
      p.begin = begin;
      p.end = end;
      p.value = flat_range(p.value, begin, end);
      p.master = flat_range(p.master, begin, end);
      p.grad = gradient.view({gradient.numel()});
      for (size_t s = 0; s < g.states.size(); ++s) {
        const int64_t per = g.states[s].per;
        require(begin % per == 0, "updater", "rows of {} begin inside a block of {} elements", p.name, per);
        p.state[s] = flat_range(p.state[s], begin / per, (end + per - 1) / per);
      }
      g.optimizer->step(queue_, {&p, 1}, {.control = control, .seed = seed, .workspace = scratch_});
    }
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
      if (has_master(p)) kernels::copy(queue_, {.y = p.value, .x = p.master});
}

void Updater::take_masters() {
  for (const Group& g : groups_)
    for (const ParamPiece& p : g.pieces)
      if (has_master(p)) kernels::copy(queue_, {.y = p.master, .x = p.value});
}

void Updater::pass_on(const Parameter& from, const Parameter& to, int64_t step) {
  for (Group& g : groups_)
    for (size_t i = 0; i < g.pieces.size(); ++i) {
      if (g.parameters[i] != &from) continue;
      ParamPiece& p = g.pieces[i];
      const bool in_place = !has_master(p);
      g.parameters[i] = &to;
      point(p, to, *g.optimizer);
      p.since = step;
      for (const Tensor& state : p.state)
        if (state.defined()) kernels::fill_bytes(queue_, state, 0);
      if (in_place)
        p.master = p.value;
      else
        kernels::copy(queue_, {.y = p.master, .x = p.value});
    }
}

void Updater::rest(const Parameter& parameter) {
  for (Group& g : groups_)
    for (size_t i = 0; i < g.pieces.size(); ++i)
      if (g.parameters[i] == &parameter) g.pieces[i].grad = {};
}

void Updater::go_on(const Parameter& parameter, int64_t since) {
  for (Group& g : groups_)
    for (size_t i = 0; i < g.pieces.size(); ++i) {
      if (g.parameters[i] != &parameter) continue;
      point(g.pieces[i], parameter, *g.optimizer);
      g.pieces[i].since = since;
    }
}

}  // namespace osprey
