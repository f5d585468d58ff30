#include "framework/telemetry/oscillation.h"

#include "kernels/device.h"
#include "kernels/oscillation.h"
#include "kernels/pointwise.h"

namespace osprey {
namespace {

constexpr int64_t alignment = 64;  // of an arena's tensors
int64_t aligned(int64_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }

int64_t scales_of(const WeightInFormat& w) {
  const Shape& s = w.parameter->shape;
  return w.format.scale == ScaleType::f32 ? 0 : s[0] * w.format.scales_per_row(s[1]);
}

}  // namespace

int64_t OscillationTracker::bytes(std::span<const WeightInFormat> weights) {
  int64_t sum = aligned(static_cast<int64_t>(weights.size()) * 2 * 8);
  for (const WeightInFormat& w : weights) {
    const int64_t elements = w.parameter->shape.numel();
    sum += aligned(elements) + aligned(4 * elements) + aligned(scales_of(w));
  }
  return sum;
}

OscillationTracker::OscillationTracker(const Queue& queue, std::span<const WeightInFormat> weights)
    : queue_(queue) {
  if (weights.empty()) return;
  memory_ = std::make_unique<Arena>("oscillation", queue.device, bytes(weights));
  const auto zeros = [&](const Shape& shape, DType dtype) {
    const Tensor t = memory_->alloc(shape, dtype);
    kernels::fill_bytes(queue_, t, 0);
    return t;
  };
  sums_ = zeros({static_cast<int64_t>(weights.size()), 2}, DType::f64);
  int64_t row = 0;
  for (const WeightInFormat& w : weights) {
    const Shape& shape = w.parameter->shape;
    State s{.last = zeros(shape, DType::u8), .rate = zeros(shape, DType::f32), .scales = {}, .sums = {}};
    if (scales_of(w) > 0) s.scales = zeros({shape[0], w.format.scales_per_row(shape[1])}, DType::u8);
    s.sums = sums_.row_range(row, row + 1).view({2});
    ++row;
    states_.emplace(w.parameter->name, s);
  }
}

void OscillationTracker::begin_step() {
  for (auto& [name, s] : states_) s.looked_at = false;
}

void OscillationTracker::look(const std::string& weight, const Packed& codes) {
  const auto at = states_.find(weight);
  if (at == states_.end() || std::exchange(at->second.looked_at, true)) return;
  const State& s = at->second;
  kernels::track_oscillation(
      queue_, {.y = codes, .last = s.last, .rate = s.rate, .scales = s.scales, .sums = s.sums});
}

std::map<std::string, OscillationTracker::Shares> OscillationTracker::result() const {
  std::map<std::string, Shares> all;
  if (states_.empty()) return all;
  std::vector<double> sums(static_cast<size_t>(sums_.numel()));
  kernels::download(queue_, sums.data(), sums_);
  for (const auto& [name, s] : states_) {
    const double* counts = &sums[static_cast<size_t>(s.sums.as<double>() - sums_.as<double>())];
    const double elements = static_cast<double>(s.last.numel());
    all[name] = {counts[0] / elements, counts[1] / elements};
  }
  return all;
}

}  // namespace osprey
