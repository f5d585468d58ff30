#include "framework/finetune/finetuning.h"

#include <algorithm>
#include <utility>

#include "framework/finetune/leading_subspace.h"
#include "framework/finetune/targets.h"
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
                          .seed = seed,
                          .counting = spec_.reference ? LayerTurns::Setup::Counting::all_turns
                                                      : LayerTurns::Setup::Counting::this_turn};
  if (!spec_.scores.empty()) setup.scores = read_layer_scores(spec_.scores, layers);
  turns_ = std::make_unique<LayerTurns>(setup);
}

void Finetuning::mark_frozen() {
  if (!spec_.takes_turns() && !spec_.in_subspaces() && !spec_.scales_gradients()) return;
  for (const auto& p : params_.all()) {
    if (p->layer >= 0) continue;
    p->trainable = spec_.trains(of_embedding(p->name)         ? spec_.train_embedding
                                : p->name.starts_with("head") ? spec_.train_head
                                                              : spec_.train_final_norm);
  }
}

void Finetuning::mark_subspaces() {
  if (!spec_.in_subspaces()) return;
  projected_ = target_matrices(spec_, params_);
  for (Parameter* p : projected_) {
    p->subspace = std::make_shared<Subspace>();
    p->subspace->side = Subspace::smaller_side(p->shape);
    p->subspace->rank = spec_.rank;
    p->subspace->scale = spec_.scale;
  }
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
    for (int place = 0; place < static_cast<int>(active_.size()); ++place)
      params_.bind_gradients(place, active_[static_cast<size_t>(place)].layer);
    if (!spec_.reference) put_others_to_sleep();
  }
  if (projected_.empty()) return;
  int64_t bytes = 0;
  for (const Parameter* p : projected_)
    if (p->trainable) bytes += p->subspace->basis_shape(p->shape).numel() * size_bytes(params_.dtype()) + 64;
  bases_ = std::make_unique<Arena>("bases of subspaces", queue.device, bytes);
  for (Parameter* p : projected_) {
    if (!p->trainable) continue;
    p->subspace->basis = bases_->alloc(p->subspace->basis_shape(p->shape), params_.dtype());
    // One that no step has chosen yet is saved, too.
    if (spec_.reference && !queue.meta()) kernels::fill_bytes(queue, p->subspace->basis, 0);
  }
}

void Finetuning::put_others_to_sleep() {
  for (Bucket& b : params_.buckets()) {
    const bool awake = b.layer < 0 || std::any_of(active_.begin(), active_.end(),
                                                  [&](const ActiveLayer& t) { return t.layer == b.layer; });
    if (awake) continue;
    for (Parameter* p : b.params) {
      p->trainable = false;
      if (spec_.reference) parts_.updater->rest(*p);
    }
    if (spec_.reference) parts_.plan->buckets[bucket_index(b.layer)] = {};
  }
}

void Finetuning::attach(const Parts& parts) {
  parts_ = parts;
  if (!turns_ || !spec_.reference) return;
  awake_plan_ = parts_.plan->buckets;
  put_others_to_sleep();
}

/// Moves everything that belongs to a place from one layer to another.
void Finetuning::hand_over(int place, int from, int to, int64_t since) {
  Bucket &asleep = params_.bucket(from), &awake = params_.bucket(to);
  for (size_t i = 0; i < asleep.params.size(); ++i) {
    Parameter& p = *asleep.params[i];
    std::swap(p.trainable, awake.params[i]->trainable);
    if (p.subspace) p.subspace->refresh = nullptr;
  }
  params_.bind_gradients(place, to);
  if (spec_.reference)
    switch_state(from, to, since);
  else
    move_state(from, to, since);
}

/// State and bases belong to places: they begin anew with another layer.
void Finetuning::move_state(int from, int to, int64_t since) {
  Bucket &asleep = params_.bucket(from), &awake = params_.bucket(to);
  for (size_t i = 0; i < asleep.params.size(); ++i) {
    Parameter &p = *asleep.params[i], &q = *awake.params[i];
    if (p.subspace) q.subspace->basis = std::exchange(p.subspace->basis, {});
    if (parts_.updater) parts_.updater->pass_on(p, q, since);
  }
  if (parts_.plan)
    std::swap(parts_.plan->buckets[bucket_index(from)], parts_.plan->buckets[bucket_index(to)]);
}

/// State and bases belong to layers: they rest, or go on where they stood.
void Finetuning::switch_state(int from, int to, int64_t since) {
  for (const Parameter* p : params_.bucket(from).params) parts_.updater->rest(*p);
  for (const Parameter* p : params_.bucket(to).params) parts_.updater->go_on(*p, since);
  parts_.plan->buckets[bucket_index(from)] = {};
  parts_.plan->buckets[bucket_index(to)] = awake_plan_[bucket_index(to)];
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
    std::vector<float> basis =
        leading_subspace(queue, {.gradient = gradient,
                                 .side = s.side,
                                 .rank = s.rank,
                                 .exact = spec_.reference || spec_.basis == FinetuneSpec::Basis::exact,
                                 .seed = seed_,
                                 .stream = stream_of(p.name),
                                 .draw = static_cast<uint64_t>(step_)});
    const auto since = std::find_if(active_.begin(), active_.end(),
                                    [&](const ActiveLayer& t) { return t.layer == p.layer; });
    const bool first = step_ == (since == active_.end() ? 0 : since->since);
    if (basis.empty() && first) basis = random_subspace(s.rank, s.basis.shape[1], seed_, stream_of(p.name));
    if (!basis.empty()) {
      if (!first && !spec_.reference) align_signs(basis, floats(queue, s.basis), s.rank);
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
    const Tensor& basis = p->subspace->basis;
    if (!basis.defined()) continue;
    all.push_back({p->name, "basis", basis.shape, 0, basis.numel(), basis});
  }
  return all;
}

}  // namespace osprey
