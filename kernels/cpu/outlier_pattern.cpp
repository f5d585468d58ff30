#include "kernels/outlier_pattern.h"

#include <algorithm>

#include "kernels/cpu/scratch.h"

namespace osprey::cpu {

namespace {

/// Adds a row's squares to the columns' sums; returns their sum.
template <class T>
double add_row(double* __restrict columns, const T* __restrict x, int64_t n) {
  double sum = 0;
  for (int64_t c = 0; c < n; ++c) {
    const double v = static_cast<double>(to_float(x[c]));
    columns[c] += v * v;
    sum += v * v;
  }
  return sum;
}

LineSpread spread_of(const Tensor& squares) {
  const int64_t n = squares.numel(), middle = (n - 1) / 2;
  uint32_t* bits = scratch_of<uint32_t>(Scratch::quantize, static_cast<size_t>(n));
  std::memcpy(bits, squares.data, static_cast<size_t>(n) * sizeof(uint32_t));
  std::nth_element(bits, bits + middle, bits + n);
  return {*std::max_element(bits + middle, bits + n), bits[middle]};
}

}  // namespace

void line_squares(const Queue& queue, const kernels::LineSquares& a) {
  // At most 64 chunks of rows whose bounds follow from the shapes alone; their sums are added in order.
  const int64_t rows = a.rows.numel(), cols = a.columns.numel(), chunks = std::min<int64_t>(rows, 64);
  double* partial = scratch_of<double>(Scratch::quantize, static_cast<size_t>(chunks * cols));
  parallel_for(queue, chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      double* sums = partial + i * cols;
      std::fill_n(sums, cols, 0.0);
      size_t part = 0;
      int64_t begins = 0;  // the part's first row
      for (int64_t r = rows * i / chunks; r < rows * (i + 1) / chunks; ++r) {
        while (r >= begins + a.xs[part].rows()) begins += a.xs[part++].rows();
        const Tensor& x = a.xs[part];
        const int64_t at = (r - begins) * x.row_stride();
        const double sum = x.dtype == DType::bf16 ? add_row(sums, x.as<bf16>() + at, cols)
                                                  : add_row(sums, x.as<float>() + at, cols);
        a.rows.as<float>()[r] = static_cast<float>(sum / static_cast<double>(cols));
      }
    }
  });
  parallel_for(queue, cols, 256, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      double sum = 0;
      for (int64_t i = 0; i < chunks; ++i) sum += partial[i * cols + c];
      a.columns.as<float>()[c] = static_cast<float>(sum / static_cast<double>(rows));
    }
  });
}

void count_pattern(const Queue&, const kernels::CountPattern& a) {
  const LineSpread rows = spread_of(a.rows), columns = spread_of(a.columns);
  a.counts.as<double>()[static_cast<int64_t>(pattern_of(rows, columns, a.ratio))] += 1;
}

}  // namespace osprey::cpu
