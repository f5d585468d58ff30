#include "kernels/oscillation.h"

#include <array>

namespace osprey::cpu {

namespace {

struct Counts {
  int64_t oscillated = 0, oscillating = 0;
};

Counts look_at_row(const kernels::TrackOscillation& a, int64_t row) {
  const Element element = a.y.format.element;
  const int64_t cols = a.y.cols, block = a.scales.defined() ? a.y.format.block : cols;
  const uint8_t* codes = a.y.codes.as<uint8_t>() + row * a.y.codes.row_stride();
  uint8_t* last = a.last.as<uint8_t>() + row * cols;
  float* rate = a.rate.as<float>() + row * cols;
  Counts counts;
  for (int64_t begin = 0; begin < cols; begin += block) {
    bool same = true;
    if (a.scales.defined()) {
      uint8_t& before = a.scales.as<uint8_t>()[row * (cols / block) + begin / block];
      const uint8_t now = a.y.scales.as<uint8_t>()[row * a.y.scales.row_stride() + begin / block];
      same = before == now;
      before = now;
    }
    for (int64_t c = begin; c < begin + block; ++c) {
      const uint32_t code = codes[c / 2] >> c % 2 * 4 & 15u;
      const OscillationLook look = look_at_code(element, code, same, last[c], rate[c]);
      last[c] = static_cast<uint8_t>(look.last);
      rate[c] = look.rate;
      counts.oscillated += look.oscillated;
      counts.oscillating += look.rate > oscillation_threshold;
    }
  }
  return counts;
}

}  // namespace

void track_oscillation(const Queue& queue, const kernels::TrackOscillation& a) {
  const int64_t rows = a.y.rows, chunks = std::min<int64_t>(rows, 256);
  std::array<Counts, 256> parts{};
  parallel_for(queue, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t r = rows * i / chunks; r < rows * (i + 1) / chunks; ++r) {
        const Counts row = look_at_row(a, r);
        parts[static_cast<size_t>(i)].oscillated += row.oscillated;
        parts[static_cast<size_t>(i)].oscillating += row.oscillating;
      }
  });
  Counts all;
  for (const Counts& c : parts) {
    all.oscillated += c.oscillated;
    all.oscillating += c.oscillating;
  }
  a.sums.as<double>()[0] = static_cast<double>(all.oscillated);
  a.sums.as<double>()[1] = static_cast<double>(all.oscillating);
}

}  // namespace osprey::cpu
