#include "kernels/outlier_rows.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "kernels/cpu/scratch.h"
#include "kernels/numerics/outlier_rows.h"

namespace osprey::cpu {

namespace {

constexpr int64_t grain = 16;  // rows

template <class T>
double squares_of(const T* x, int64_t n) {
  std::array<double, row_sums> sums{};
  const auto add = [&](const T* from, size_t count) {
    for (size_t i = 0; i < count; ++i) {
      const double v = static_cast<double>(to_float(from[i]));
      sums[i] += v * v;
    }
  };
  int64_t c = 0;
  for (; c + row_sums <= n; c += row_sums) add(x + c, row_sums);
  add(x + c, static_cast<size_t>(n - c));
  for (size_t half = row_sums / 2; half > 0; half /= 2)
    for (size_t i = 0; i < half; ++i) sums[i] += sums[i + half];
  return sums[0];
}

template <class T>
void all_squares(const Queue& queue, const kernels::LargestRows& a) {
  const T* x = a.x.as<T>();
  float* squares = a.squares.as<float>();
  const int64_t cols = a.x.cols(), stride = a.x.row_stride();
  parallel_for(queue, a.x.rows(), grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) squares[r] = static_cast<float>(squares_of(x + r * stride, cols));
  });
}

char* row(const Tensor& t, int64_t r) {
  return static_cast<char*>(t.data) + r * t.row_stride() * size_bytes(t.dtype);
}

}  // namespace

void largest_rows(const Queue& queue, const kernels::LargestRows& a) {
  a.x.dtype == DType::bf16 ? all_squares<bf16>(queue, a) : all_squares<float>(queue, a);
  const int64_t n = a.squares.numel(), k = a.rows.numel();
  const float* squares = a.squares.as<float>();
  // The greater key first, then the lower row: one number for both.
  uint64_t* order = scratch_of<uint64_t>(Scratch::quantize, static_cast<size_t>(n));
  for (int64_t r = 0; r < n; ++r)
    order[r] = static_cast<uint64_t>(~row_key(squares[r])) << 32 | static_cast<uint64_t>(r);
  std::nth_element(order, order + k - 1, order + n);
  int32_t* rows = a.rows.as<int32_t>();
  for (int64_t i = 0; i < k; ++i) rows[i] = static_cast<int32_t>(order[i] & 0xffffffffu);
  std::sort(rows, rows + k);
}

void scatter_rows(const Queue& queue, const kernels::ScatterRows& a) {
  const int32_t* rows = a.rows.as<int32_t>();
  const int64_t k = a.x.rows(), n = a.y.rows();
  for (int64_t i = 0; i < k; ++i)
    require(0 <= rows[i] && rows[i] < n, "scatter_rows", "row {} is outside the {} of y", rows[i], n);
  const auto bytes = static_cast<size_t>(a.x.cols() * size_bytes(a.x.dtype));
  parallel_for(queue, k, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) std::memcpy(row(a.y, rows[i]), row(a.x, i), bytes);
  });
}

}  // namespace osprey::cpu
