#include "framework/telemetry/outliers.h"

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cmath>
#include <vector>

namespace osprey {
namespace {

constexpr int64_t rows_per_chunk = 32;

/// Central power sums of a set; `merge` is the pairwise update of Chan, Golub & LeVeque, extended to the
/// fourth power by Pebay.
struct Moments {
  double n = 0, mean = 0, m2 = 0, m3 = 0, m4 = 0;
};

Moments merged(const Moments& a, const Moments& b) {
  if (a.n == 0) return b;
  if (b.n == 0) return a;
  Moments r;
  r.n = a.n + b.n;
  const double d = b.mean - a.mean, dn = d / r.n, ab = a.n * b.n;
  r.mean = a.mean + dn * b.n;
  r.m2 = a.m2 + b.m2 + d * dn * ab;
  r.m3 = a.m3 + b.m3 + d * dn * dn * ab * (a.n - b.n) + 3.0 * dn * (a.n * b.m2 - b.n * a.m2);
  r.m4 = a.m4 + b.m4 + d * dn * dn * dn * ab * (a.n * a.n - ab + b.n * b.n) +
         6.0 * dn * dn * (a.n * a.n * b.m2 + b.n * b.n * a.m2) + 4.0 * dn * (a.n * b.m3 - b.n * a.m3);
  return r;
}

double median_of(std::vector<float>& v) {  // reorders v
  const auto middle = v.begin() + static_cast<ptrdiff_t>(v.size() / 2);
  std::nth_element(v.begin(), middle, v.end());
  if (v.size() % 2 == 1) return *middle;
  return 0.5 * (static_cast<double>(*middle) + *std::max_element(v.begin(), middle));
}

/// Adds one token. `row` holds its channels, `scratch` is overwritten.
void add_row(OutlierSums& s, Moments& all, const std::vector<float>& row, std::vector<float>& scratch) {
  const int64_t n = static_cast<int64_t>(row.size());
  const double count = static_cast<double>(n);
  ++s.tokens;
  double sum = 0, abs_sum = 0;
  float largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float v = row[static_cast<size_t>(i)], a = std::fabs(v);
    scratch[static_cast<size_t>(i)] = a;
    sum += v;
    abs_sum += a;
    largest = std::max(largest, a);
  }
  if (!std::isfinite(abs_sum)) {
    ++s.nonfinite_tokens;
    return;
  }
  Moments one;
  one.n = count;
  one.mean = sum / count;
  double raw4 = 0;
  for (const float f : row) {
    const double v = f, d = v - one.mean, d2 = d * d, v2 = v * v;
    one.m2 += d2;
    one.m3 += d2 * d;
    one.m4 += d2 * d2;
    raw4 += v2 * v2;
  }
  // A constant row can leave a residue of rounding of the mean; that is no spread.
  const double residue = count * std::pow(std::fabs(one.mean) * 1e-14, 2);
  if (n > 1 && one.m2 > residue) {
    ++s.spread_tokens;
    const double variance = one.m2 / (count - 1.0);
    s.osp_kurtosis += std::max(0.0, raw4 / count / (variance * variance) - 3.0);
    s.kurtosis += count * one.m4 / (one.m2 * one.m2) - 3.0;
  }
  s.abs_sum += abs_sum;
  s.abs_max = std::max(s.abs_max, static_cast<double>(largest));
  if (const double median = median_of(scratch); median > 0) {
    ++s.median_tokens;
    s.max_to_median += static_cast<double>(largest) / median;
  }
  all = merged(all, one);
}

template <class T>
OutlierSums measure_rows(const T* data, int64_t stride, int64_t cols, int64_t begin, int64_t end) {
  OutlierSums s;
  Moments all;
  std::vector<float> row(static_cast<size_t>(cols)), scratch(row.size());
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t c = 0; c < cols; ++c) row[static_cast<size_t>(c)] = to_float(data[r * stride + c]);
    add_row(s, all, row, scratch);
  }
  s.count = all.n, s.mean = all.mean, s.m2 = all.m2, s.m3 = all.m3, s.m4 = all.m4;
  return s;
}

template <class T>
OutlierSums measure(const Queue& queue, const Tensor& x) {
  const int64_t rows = x.rows(), cols = x.cols(), stride = x.row_stride();
  const T* data = x.as<T>();
  std::vector<OutlierSums> parts(static_cast<size_t>((rows + rows_per_chunk - 1) / rows_per_chunk));
  parallel_for(queue, static_cast<int64_t>(parts.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      parts[static_cast<size_t>(p)] =
          measure_rows(data, stride, cols, p * rows_per_chunk, std::min(rows, (p + 1) * rows_per_chunk));
  });
  OutlierSums total;
  for (const OutlierSums& p : parts) total.merge(p);
  return total;
}

}  // namespace

void OutlierSums::merge(const OutlierSums& o) {
  tokens += o.tokens;
  nonfinite_tokens += o.nonfinite_tokens;
  spread_tokens += o.spread_tokens;
  osp_kurtosis += o.osp_kurtosis;
  kurtosis += o.kurtosis;
  median_tokens += o.median_tokens;
  max_to_median += o.max_to_median;
  abs_sum += o.abs_sum;
  abs_max = std::max(abs_max, o.abs_max);
  const Moments m = merged({count, mean, m2, m3, m4}, {o.count, o.mean, o.m2, o.m3, o.m4});
  count = m.n, mean = m.mean, m2 = m.m2, m3 = m.m3, m4 = m.m4;
}

OutlierMetrics OutlierSums::metrics() const {
  OutlierMetrics r;
  r.tokens = tokens;
  r.nonfinite_tokens = nonfinite_tokens;
  if (spread_tokens > 0) {
    r.osp_kurtosis = osp_kurtosis / static_cast<double>(spread_tokens);
    r.kurtosis = kurtosis / static_cast<double>(spread_tokens);
  }
  if (count > 0) {
    r.max_abs = abs_max;
    if (abs_sum > 0) r.max_to_mean = abs_max / (abs_sum / count);
    const double residue = count * std::pow(std::fabs(mean) * 1e-14, 2);
    if (m2 > residue) r.pooled_kurtosis = count * m4 / (m2 * m2) - 3.0;
  }
  if (median_tokens > 0) r.max_to_median = max_to_median / static_cast<double>(median_tokens);
  return r;
}

std::string OutlierSums::pack() const {
  return fmt::format("{} {} {} {} {:x} {:x} {:x} {:x} {:x} {:x} {:x} {:x} {:x} {:x}", tokens,
                     nonfinite_tokens, spread_tokens, median_tokens, std::bit_cast<uint64_t>(osp_kurtosis),
                     std::bit_cast<uint64_t>(kurtosis), std::bit_cast<uint64_t>(max_to_median),
                     std::bit_cast<uint64_t>(abs_sum), std::bit_cast<uint64_t>(abs_max),
                     std::bit_cast<uint64_t>(count), std::bit_cast<uint64_t>(mean),
                     std::bit_cast<uint64_t>(m2), std::bit_cast<uint64_t>(m3), std::bit_cast<uint64_t>(m4));
}

OutlierSums OutlierSums::unpack(std::string_view text) {
  OutlierSums s;
  size_t at = 0;
  const auto next = [&](auto& value, int base) {
    while (at < text.size() && text[at] == ' ') ++at;
    const auto [end, error] = std::from_chars(text.data() + at, text.data() + text.size(), value, base);
    require(error == std::errc{}, "outliers", "'{}' is not a packed set of sums", text);
    at = static_cast<size_t>(end - text.data());
  };
  for (int64_t* v : {&s.tokens, &s.nonfinite_tokens, &s.spread_tokens, &s.median_tokens}) next(*v, 10);
  for (double* v : {&s.osp_kurtosis, &s.kurtosis, &s.max_to_median, &s.abs_sum, &s.abs_max, &s.count, &s.mean,
                    &s.m2, &s.m3, &s.m4}) {
    uint64_t bits = 0;
    next(bits, 16);
    *v = std::bit_cast<double>(bits);
  }
  require(at == text.size(), "outliers", "'{}' is not a packed set of sums", text);
  return s;
}

OutlierSums measure_outliers(const Queue& queue, const Tensor& x) {
  require(x.defined() && x.device.kind != DeviceKind::cuda, "outliers",
          "a tensor on the host is wanted, got {} on {}", x.str(), name(x.device.kind));
  require(x.dtype == DType::f32 || x.dtype == DType::bf16, "outliers", "f32 or bf16 is wanted, got {}",
          x.str());
  if (queue.meta() || x.data == nullptr || x.numel() == 0) return {};
  return x.dtype == DType::bf16 ? measure<bf16>(queue, x) : measure<float>(queue, x);
}

}  // namespace osprey
