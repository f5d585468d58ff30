// The part of QuantSchemes that measures: votes, what is decided by them, and how both outlive a run.

#include <algorithm>
#include <utility>

#include "framework/quant/scheme.h"
#include "kernels/device.h"

namespace osprey {

namespace {
constexpr int64_t tensors = 3, counts = tensors * outlier_patterns;  // x, W and dy

/// What was decided once.
void take(QuantScheme& scheme, const LayerPatterns& p) {
  scheme.decided = true;
  scheme.rotated = p.rotated;
  scheme.extracted = p.extracted();
}
}  // namespace

bool QuantSchemes::measures() const {
  return std::any_of(members_.begin(), members_.end(), [](const Member& m) { return m.calibrating; });
}

void QuantSchemes::materialize(const Queue& queue) {
  if (!measures()) return;
  const int64_t matrices =
      std::count_if(members_.begin(), members_.end(), [](const Member& m) { return m.calibrating; });
  memory_ = std::make_unique<Arena>("quantization votes", queue.device, matrices * counts * 8 + 128);
  votes_ = memory_->alloc({matrices, counts}, DType::f64);
  if (!queue.meta()) kernels::fill_bytes(queue, votes_, 0);
  int64_t row = 0;
  for (const Member& m : members_)
    if (m.calibrating)
      m.calibrating->votes = votes_.row_range(row, row + 1).view({tensors, outlier_patterns}), ++row;
}

std::vector<LayerPatterns> QuantSchemes::patterns(const Queue& queue, Communicator& world) const {
  if (!measures()) return {};
  require(votes_.defined(), "quant", "votes were asked for before there was memory for them");
  std::vector<double> all(static_cast<size_t>(votes_.numel()));
  kernels::download(queue, all.data(), votes_);
  world.sum(all);
  std::vector<LayerPatterns> found;
  const double* at = all.data();
  for (const Member& m : members_) {
    if (!m.calibrating) continue;
    LayerPatterns p{.weight = m.parameter->name, .decided = m.scheme->decided, .rotated = m.scheme->rotated};
    for (PatternVotes* votes : {&p.x, &p.w, &p.dy})
      for (int64_t& v : *votes) v = static_cast<int64_t>(*at++);
    if (!m.parameter->first_of_input) found.push_back(p);  // also without votes, where nothing is trained
  }
  return found;
}

void QuantSchemes::decide(const Queue& queue, Communicator& world, int64_t step) {
  const auto due = [&](const Member& m) {
    return m.calibrating && !m.scheme->decided && spans_[m.scheme->group].quantizes() == step;
  };
  if (std::none_of(members_.begin(), members_.end(), due)) return;
  std::vector<LayerPatterns> all = patterns(queue, world), decided;
  for (const Member& m : members_) {
    if (!due(m)) continue;
    const auto p = std::find_if(all.begin(), all.end(),
                                [&](const LayerPatterns& l) { return l.weight == m.parameter->name; });
    m.scheme->decided = true;
    // The first of the weights that read an input decides; the others have no say.
    m.scheme->rotated = p == all.end() ? RotatedProducts{false, false, false} : p->wanted();
    m.scheme->extracted = p == all.end() ? ExtractedProducts{false, false} : p->extracted();
    if (p == all.end()) continue;
    p->decided = true;
    p->rotated = m.scheme->rotated;
    decided.push_back(*p);
  }
  if (on_decision) on_decision(step, decided);
}

void QuantSchemes::decide_as(std::span<const LayerPatterns> state) {
  for (const Member& m : members_) {
    if (!m.calibrating) continue;
    for (const LayerPatterns& p : state)
      if (p.weight == m.parameter->name && p.decided) take(*m.scheme, p);
  }
  for (size_t g = 0; g < specs_.size(); ++g)
    require(
        !specs_[g].measured() ||
            std::any_of(members_.begin(), members_.end(),
                        [&](const Member& m) { return m.scheme->group == g && m.scheme->decided; }),
        "quant",
        "the checkpoint holds no rotations for '{}': none were measured, or calibration was not over; take a "
        "preset that does not measure, such as qat_mxfp4_w4a4",
        specs_[g].match);
}

void QuantSchemes::restore(const Queue& queue, int rank, std::span<const LayerPatterns> state, int64_t step) {
  activate(std::max<int64_t>(step, 1) - 1);
  if (!measures()) return;
  require(votes_.defined(), "quant", "votes came before there was memory for them");
  std::vector<double> all(static_cast<size_t>(votes_.numel()), 0.0);
  double* at = all.data();
  std::vector<bool> known(specs_.size(), false);
  for (const Member& m : members_) {
    if (!m.calibrating) continue;
    const QuantSpan& span = spans_[m.scheme->group];
    const auto p = std::find_if(state.begin(), state.end(),
                                [&](const LayerPatterns& l) { return l.weight == m.parameter->name; });
    double* const votes = std::exchange(at, at + counts);
    const bool over = step > span.quantizes();
    if (p == state.end() || step <= span.begin || (over && !p->decided)) continue;
    known[m.scheme->group] = true;
    if (over) take(*m.scheme, *p);
    if (rank != 0) continue;
    double* to = votes;
    for (const PatternVotes* v : {&p->x, &p->w, &p->dy})
      for (int64_t count : *v) *to++ = static_cast<double>(count);
  }
  for (size_t g = 0; g < specs_.size(); ++g)
    require(!specs_[g].measured() || known[g] || step <= spans_[g].begin, "quant",
            "'{}' measures its rotations from step {} on, and the checkpoint of step {} holds no such "
            "measurement; begin the group at step {} or later",
            specs_[g].match, spans_[g].begin, step, step);
  kernels::upload(queue, votes_, all.data());
}

void QuantSchemes::before_step(Trainer& trainer, int64_t step) {
  decide(trainer.parts().queue, *trainer.parts().world, step);
  begin_steps(trainer, step);
  activate(step);
}

}  // namespace osprey
