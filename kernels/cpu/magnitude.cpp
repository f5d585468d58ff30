#include "kernels/numerics/magnitude.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/cpu/isa/sum_of_squares.h"
#include "kernels/magnitude.h"

namespace osprey::cpu {

namespace {

float number(float x) { return x; }
float number(bf16 x) { return to_float(x); }
void set(float& to, float x) { to = x; }
void set(bf16& to, float x) { to = to_bf16(x); }

/// Columns that a thread takes at once.
constexpr int64_t block = 256;
int64_t blocks_of(int64_t cols) { return (cols + block - 1) / block; }

template <class T>
T* row_of(const Tensor& t, int64_t row) {
  return t.as<T>() + row * t.row_stride();
}

template <class T>
void scale(const Queue& queue, const kernels::ScaleLengths& a) {
  parallel_for(queue, blocks_of(a.y.cols()), 1, [&](int64_t first, int64_t last) {
    std::array<float, block> factors;
    for (int64_t at = first * block; at < std::min(last * block, a.y.cols()); at += block) {
      const int64_t n = std::min(block, a.y.cols() - at);
      const float *base = a.base.as<float>() + at, *norm = a.norm.as<float>() + at;
      const T* change = a.change.as<T>() + at;
      for (int64_t i = 0; i < n; ++i)
        factors[static_cast<size_t>(i)] = length_factor(base[i] + number(change[i]), norm[i]);
      for (int64_t r = 0; r < a.y.rows(); ++r) {
        T* y = row_of<T>(a.y, r) + at;
        for (int64_t i = 0; i < n; ++i) set(y[i], number(y[i]) * factors[static_cast<size_t>(i)]);
      }
    }
  });
}

template <class T>
void gradient(const Queue& queue, const kernels::LengthGradient& a) {
  const int64_t rows = a.dy.rows(), cols = a.dy.cols();
  parallel_for(queue, blocks_of(cols), 1, [&](int64_t first, int64_t last) {
    for (int64_t at = first * block; at < std::min(last * block, cols); at += block) {
      const int64_t n = std::min(block, cols - at);
      std::array<double, block> sums{};
      for (int64_t r = 0; r < rows; ++r) {
        const T *dy = row_of<T>(a.dy, r) + at, *y = row_of<T>(a.y, r) + at;
        for (int64_t i = 0; i < n; ++i)
          sums[static_cast<size_t>(i)] +=
              static_cast<double>(number(dy[i])) * static_cast<double>(number(y[i]));
      }
      const float* base = a.base.as<float>() + at;
      const T* change = a.change.as<T>() + at;
      float* out = a.dchange.tensor.as<float>() + at;
      for (int64_t i = 0; i < n; ++i) {
        const float d = gradient_of_length(sums[static_cast<size_t>(i)], base[i] + number(change[i]));
        out[i] = a.dchange.add ? out[i] + d : d;
      }
    }
  });
}

}  // namespace

void row_norms(const Queue& queue, const kernels::RowNorms& a) {
  parallel_for(queue, a.x.rows(), 8, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      a.norms.as<float>()[r] =
          static_cast<float>(std::sqrt(sum_of_squares_table().sum(row_of<float>(a.x, r), a.x.cols())));
  });
}

void scale_lengths(const Queue& queue, const kernels::ScaleLengths& a) {
  a.y.dtype == DType::bf16 ? scale<bf16>(queue, a) : scale<float>(queue, a);
}

void length_gradient(const Queue& queue, const kernels::LengthGradient& a) {
  a.dy.dtype == DType::bf16 ? gradient<bf16>(queue, a) : gradient<float>(queue, a);
}

}  // namespace osprey::cpu
