#include "framework/telemetry/quantization_observer.h"

#include <array>

#include "kernels/device.h"
#include "kernels/pointwise.h"
#include "kernels/quantize.h"

namespace osprey {
namespace {

using Role = QuantizationWatch::Role;

/// "layers.3.attn.q.weight" as "attn.q".
std::string short_name(const Parameter& p) {
  std::string text = p.name;
  const std::string head = fmt::format("layers.{}.", p.layer), tail = ".weight";
  if (text.starts_with(head)) text.erase(0, head.size());
  if (text.ends_with(tail)) text.erase(text.size() - tail.size());
  return text;
}

QuantizationRow row_of(const Parameter& p, Role role, const double* sums) {
  QuantizationRow r;
  r.role = role;
  r.layer = p.layer;
  r.weight = short_name(p);
  const double squares = sums[0], errors = sums[1], elements = sums[2], clipped = sums[3],
               underflow = sums[4], rows = sums[5], wide_3 = sums[6], wide_14 = sums[7];
  r.elements = static_cast<int64_t>(elements);
  if (squares != 0) r.relative_error = errors / squares;
  r.clipped = clipped / elements;
  r.underflow = underflow / elements;
  r.wide_rows_3 = wide_3 / rows;
  r.wide_rows_14 = wide_14 / rows;
  return r;
}

}  // namespace

const char* name(Role role) {
  return role == Role::weights ? "weights" : role == Role::activations ? "activations" : "gradients";
}

QuantizationObserver::QuantizationObserver(const Queue& queue, const ParamStore& params,
                                           OscillationTracker* oscillation, const WeightFreezer* freezer)
    : queue_(queue), oscillation_(oscillation), freezer_(freezer) {
  for (const auto& p : params.all()) {
    if (p->layer < 0 || !p->matrix()) continue;
    places_[p->name] = weights_.size();
    weights_.push_back(p.get());
  }
  const int64_t slots = static_cast<int64_t>(weights_.size() * roles);
  seen_.resize(static_cast<size_t>(slots));
  if (slots == 0) return;
  memory_ = std::make_unique<Arena>("quantization figures", queue.device,
                                    slots * kernels::quantization_sums * 8 + 128);
  sums_ = memory_->alloc({slots, kernels::quantization_sums}, DType::f64);
}

void QuantizationObserver::begin_step(bool measured) {
  measured_ = measured;
  if (oscillation_) oscillation_->begin_step();
  if (measured) std::fill(seen_.begin(), seen_.end(), char{0});
}

void QuantizationObserver::quantized(int, const std::string& weight, Role role,
                                     const kernels::MeasureQuantization& what) {
  if (oscillation_ && role == Role::weights) oscillation_->look(weight, what.y);
  if (!measured_) return;
  const size_t at = slot(places_.at(weight), role);
  const bool again = seen_[at] != 0;
  if (again && role == Role::weights) return;  // the same in all micro batches
  kernels::MeasureQuantization args = what;
  const auto row = static_cast<int64_t>(at);
  args.sums = sums_.row_range(row, row + 1).view({kernels::quantization_sums});
  args.add = again;
  kernels::measure_quantization(queue_, args);
  seen_[at] = 1;
}

std::vector<QuantizationRow> QuantizationObserver::result(Communicator& world) {
  if (weights_.empty()) return {};
  constexpr auto width = static_cast<size_t>(kernels::quantization_sums);
  std::vector<double> all(seen_.size() * width), sums;
  kernels::download(queue_, all.data(), sums_);
  const auto each = [&](const auto& f) {
    for (const Role role : {Role::weights, Role::activations, Role::gradients})
      for (size_t w = 0; w < weights_.size(); ++w)
        if (seen_[slot(w, role)]) f(w, role);
  };
  each([&](size_t w, Role role) {
    const bool counts = role != Role::weights || world.rank() == 0;
    for (size_t i = 0; i < width; ++i) sums.push_back(counts ? all[slot(w, role) * width + i] : 0.0);
  });
  // Of each weight: is its oscillation followed, and how much is there? Rank 0 knows. Then what stands still
  // of the elements that ranks update.
  constexpr size_t figures = 5;
  const size_t shares = sums.size();
  sums.resize(shares + figures * weights_.size());
  if (oscillation_ && world.rank() == 0)
    for (const auto& [name, s] : oscillation_->result()) {
      const size_t at = shares + figures * places_.at(name);
      sums[at] = 1, sums[at + 1] = s.oscillated, sums[at + 2] = s.oscillating;
    }
  if (freezer_)
    for (const WeightFreezer::Count& c : freezer_->counts()) {
      const size_t at = shares + figures * places_.at(c.weight);
      sums[at + 3] += c.frozen, sums[at + 4] += c.elements;
    }
  world.sum(sums);
  std::vector<QuantizationRow> rows;
  each([&](size_t w, Role role) {
    QuantizationRow r = row_of(*weights_[w], role, &sums[rows.size() * width]);
    const size_t at = shares + figures * w;
    if (role == Role::weights && sums[at] > 0) r.oscillated = sums[at + 1], r.oscillating = sums[at + 2];
    if (role == Role::weights && sums[at + 4] > 0) r.frozen = sums[at + 3] / sums[at + 4];
    rows.push_back(std::move(r));
  });
  return rows;
}

MetricsEntry quantization_entry(const QuantizationRow& r, int64_t step, int64_t tokens) {
  MetricsEntry e("quantization", step, tokens);
  e.add("role", name(r.role)).add("layer", r.layer).add("weight", r.weight);
  e.add("relative_error", r.relative_error).add("clipped", r.clipped).add("underflow", r.underflow);
  e.add("wide_rows_3", r.wide_rows_3).add("wide_rows_14", r.wide_rows_14);
  e.add("oscillated", r.oscillated).add("oscillating", r.oscillating).add("frozen", r.frozen);
  return e.add("elements_measured", r.elements);
}

void write_quantization(TfEventsWriter& writer, int64_t step, const std::vector<QuantizationRow>& rows) {
  std::vector<std::pair<std::string, double>> points;
  for (const QuantizationRow& r : rows)
    if (r.relative_error)
      points.emplace_back(
          fmt::format("quantization/{}/layer_{:02}/{}/relative_error", name(r.role), r.layer, r.weight),
          *r.relative_error);
  for (const Role role : {Role::weights, Role::activations, Role::gradients}) {
    const auto mean = [&](const char* figure, auto field) {
      double sum = 0, count = 0;
      for (const QuantizationRow& r : rows)
        if (const std::optional<double> v = r.*field; v && r.role == role) sum += *v, ++count;
      if (count > 0)
        points.emplace_back(fmt::format("quantization/{}/mean/{}", name(role), figure), sum / count);
    };
    mean("clipped", &QuantizationRow::clipped);
    mean("underflow", &QuantizationRow::underflow);
    mean("wide_rows_3", &QuantizationRow::wide_rows_3);
    mean("wide_rows_14", &QuantizationRow::wide_rows_14);
    mean("oscillated", &QuantizationRow::oscillated);
    mean("oscillating", &QuantizationRow::oscillating);
    mean("frozen", &QuantizationRow::frozen);
  }
  std::vector<TfScalar> scalars;
  for (const auto& [tag, value] : points) scalars.push_back({tag, value});
  writer.scalars(step, scalars);
}

}  // namespace osprey
