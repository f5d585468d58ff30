#include "framework/finetune/finetuning.h"

#include <algorithm>

#include "framework/config/glob.h"
#include "framework/finetune/leading_subspace.h"
#include "kernels/core/random.h"
#include "kernels/device.h"

namespace osprey {

namespace {

std::vector<float> floats(const Queue& queue, const Tensor& t) {
  std::vector<float> values(static_cast<size_t>(t.numel()));
  if (t.dtype == DType::f32) {
    kernels::download(queue, values.data(), t);
    return values;
  }
  std::vector<bf16> rounded(values.size());
  kernels::download(queue, rounded.data(), t);
  for (size_t i = 0; i < values.size(); ++i) values[i] = to_float(rounded[i]);
  return values;
}

void set_floats(const Queue& queue, const Tensor& t, const std::vector<float>& values) {
  if (t.dtype == DType::f32) return kernels::upload(queue, t, values.data());
  std::vector<bf16> rounded(values.size());
  for (size_t i = 0; i < values.size(); ++i) rounded[i] = to_bf16(values[i]);
  kernels::upload(queue, t, rounded.data());
}

/// The table of tokens, or that of positions.
bool of_embedding(const std::string& name) {
  return name.starts_with("embed") || name.starts_with("positions");
}

}  // namespace

Finetuning::Finetuning(const FinetuneSpec& spec, ParamStore& params, uint64_t seed)
    : spec_(spec), params_(params), seed_(seed) {
  if (spec_.adapts()) adapters_ = declare_adapters(spec_, params_);
  mark_frozen();
  mark_subspaces();
  if (!spec_.takes_turns()) return;
  int layers = 0;
  for (const auto& p : params_.all()) layers = std::max(layers, p->layer + 1);
  LayerTurns::Setup setup{.layers = layers,
                          .active = spec_.layers_at_a_time(),
                          .interval = spec_.steps_of_a_turn(),
                          .order = spec_.turn_order(),
                          .scores = {},
                          .seed = seed};
  if (!spec_.scores.empty()) setup.scores = read_layer_scores(spec_.scores, layers);
  turns_ = std::make_unique<LayerTurns>(setup);
}

void Finetuning::mark_frozen() {
  if (!spec_.takes_turns() && !spec_.in_subspaces()) return;
  for (const auto& p : params_.all()) {
    if (p->layer >= 0) continue;
    p->trainable = spec_.trains(of_embedding(p->name)         ? spec_.train_embedding
                                : p->name.starts_with("head") ? spec_.train_head
                                                              : spec_.train_final_norm);
  }
}

void Finetuning::mark_subspaces() {
  if (!spec_.in_subspaces()) return;
  const Glob targets(spec_.targets);
  for (const auto& p : params_.all()) {
    if (p->layer < 0 || !p->matrix() || !targets.matches(p->name)) continue;
    const int64_t smaller = std::min(p->shape[0], p->shape[1]);
    require(spec_.rank <= smaller, "finetune.rank", "{} is more than the smaller side of {} {}; lower it",
            spec_.rank, p->name, p->shape);
    p->subspace = std::make_shared<Subspace>();
    p->subspace->side = Subspace::smaller_side(p->shape);
    p->subspace->rank = spec_.rank;
    p->subspace->scale = spec_.scale;
    projected_.push_back(p.get());
  }
  require(!projected_.empty(), "finetune.targets", "\"{}\" matches no matrix of a layer", spec_.targets);
}

std::optional<int> Finetuning::places() const {
  return turns_ ? std::optional(static_cast<int>(spec_.layers_at_a_time())) : std::nullopt;
}

size_t Finetuning::bucket_index(int layer) const {
  const auto& buckets = params_.buckets();
  for (size_t i = 0; i < buckets.size(); ++i)
    if (buckets[i].layer == layer) return i;
  fail("finetune", "there is no layer {}", layer);
}

void Finetuning::materialize(const Queue& queue) {
  if (turns_) {
    active_ = turns_->at(0);
    std::vector<bool> awake(params_.buckets().size());
    for (int place = 0; place < static_cast<int>(active_.size()); ++place) {
      const int layer = active_[static_cast<size_t>(place)].layer;
      params_.bind_gradients(place, layer);
      awake[bucket_index(layer)] = true;
    }
    for (size_t b = 0; b < awake.size(); ++b)
      if (!awake[b] && params_.buckets()[b].layer >= 0)
        for (Parameter* p : params_.buckets()[b].params) p->trainable = false;
  }
  if (projected_.empty()) return;
  int64_t bytes = 0;
  for (const Parameter* p : projected_)
    if (p->trainable) bytes += p->subspace->basis_shape(p->shape).numel() * size_bytes(params_.dtype()) + 64;
  bases_ = std::make_unique<Arena>("bases of subspaces", queue.device, bytes);
  for (Parameter* p : projected_)
    if (p->trainable) p->subspace->basis = bases_->alloc(p->subspace->basis_shape(p->shape), params_.dtype());
}

/// Moves everything that belongs to a place from one layer to another.
void Finetuning::hand_over(int place, int from, int to, int64_t step) {
  Bucket &asleep = params_.bucket(from), &awake = params_.bucket(to);
  for (size_t i = 0; i < asleep.params.size(); ++i) {
    Parameter &p = *asleep.params[i], &q = *awake.params[i];
    std::swap(p.trainable, q.trainable);
    if (!p.subspace) continue;
    q.subspace->basis = p.subspace->basis;
    p.subspace->basis = {};
    p.subspace->refresh = nullptr;
  }
  params_.bind_gradients(place, to);
  for (size_t i = 0; i < asleep.params.size(); ++i)
    if (parts_.updater) parts_.updater->pass_on(*asleep.params[i], *awake.params[i], step);
  if (parts_.plan)
    std::swap(parts_.plan->buckets[bucket_index(from)], parts_.plan->buckets[bucket_index(to)]);
}

/// Returns whether others are active now.
bool Finetuning::set_turns(const std::vector<ActiveLayer>& turns) {
  bool changed = false;
  for (size_t i = 0; i < turns.size(); ++i) {
    if (active_[i].layer != turns[i].layer) {
      hand_over(static_cast<int>(i), active_[i].layer, turns[i].layer, turns[i].since);
      changed = true;
    }
    active_[i] = turns[i];
  }
  if (changed && parts_.reducer) parts_.reducer->rebind(reduce_buckets(params_));
  return changed;
}

void Finetuning::before_step(Trainer&, int64_t step) {
  const bool changed = turns_ && set_turns(turns_->at(step));
  prepare(step);
  if (!turns_ || (told_ && !changed)) return;
  told_ = true;
  if (on_turn) on_turn(step, active_);
}

void Finetuning::prepare(int64_t step) {
  step_ = step;
  int64_t index = 0;
  for (Parameter* p : projected_) {
    if (!p->trainable) continue;
    int64_t since = 0;
    for (const ActiveLayer& t : active_)
      if (t.layer == p->layer) since = t.since;
    // Matrices take turns, so that no step pays for all of them but the first of a layer.
    const int64_t count = static_cast<int64_t>(projected_.size());
    const int64_t phase = turns_ ? 0 : index++ * spec_.refresh_every / count;
    const bool due = step == since || (step - since) % spec_.refresh_every == phase;
    p->subspace->refresh = due ? this : nullptr;
  }
}

void Finetuning::stand_after(int64_t step) {
  // One choice after the other: between two that are far apart, layers may have changed places with each
  // other.
  for (int64_t at = 0; turns_ && at < step; at += turns_->interval()) set_turns(turns_->at(at));
}

bool Finetuning::wants_gradient() const { return !parts_.device_world || parts_.device_world->rank() == 0; }

/// The first micro batch of a step is the same rows for any number of ranks, and rank 0 computes it: its
/// gradient decides for all.
void Finetuning::refresh(const Queue& queue, Parameter& p, const Tensor& gradient) {
  Subspace& s = *p.subspace;
  if (queue.meta()) return;
  if (wants_gradient()) {
    std::vector<float> basis = leading_subspace(queue, {.gradient = gradient,
                                                        .side = s.side,
                                                        .rank = s.rank,
                                                        .exact = spec_.basis == FinetuneSpec::Basis::exact,
                                                        .seed = seed_,
                                                        .stream = stream_of(p.name),
                                                        .draw = static_cast<uint64_t>(step_)});
    const auto since = std::find_if(active_.begin(), active_.end(),
                                    [&](const ActiveLayer& t) { return t.layer == p.layer; });
    const bool first = step_ == (since == active_.end() ? 0 : since->since);
    if (basis.empty() && first) basis = random_subspace(s.rank, s.basis.shape[1], seed_, stream_of(p.name));
    if (!basis.empty()) {
      if (!first) align_signs(basis, floats(queue, s.basis), s.rank);
      set_floats(queue, s.basis, basis);
    }
  }
  if (!parts_.device_world || parts_.device_world->size() == 1) return;
  parts_.device_world->start_after(queue);
  parts_.device_world->broadcast(s.basis, 0);
  parts_.device_world->finish_before(queue);
}

std::vector<NamedPiece> Finetuning::pieces() const {
  std::vector<NamedPiece> all;
  for (const Parameter* p : projected_) {
    if (!p->trainable) continue;
    const Tensor& basis = p->subspace->basis;
    all.push_back({p->name, "basis", basis.shape, 0, basis.numel(), basis});
  }
  return all;
}

}  // namespace osprey
