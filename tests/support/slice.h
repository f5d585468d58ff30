#pragma once
// A matrix that is a view: columns of a wider one, so that rows are strided and need not be aligned.

#include <cmath>

#include "tests/support/on_device.h"

namespace osprey::test {

/// How a Slice lies in the matrix around it, in elements.
struct Layout {
  int64_t before = 0, after = 0;
};

class Slice {
 public:
  Slice(int64_t rows, int64_t cols, DType dtype, Layout layout = {})
      : around_({rows, layout.before + cols + layout.after}, dtype),
        before_(layout.before),
        rows_(rows),
        cols_(cols) {}

  Slice& fill(uint64_t stream, double scale = 1, double offset = 0) {
    for (int64_t i = 0; i < rows_ * cols_; ++i)
      set(i / cols_, i % cols_, offset + scale * random_normal(7, stream, static_cast<uint64_t>(i)));
    return *this;
  }
  Tensor on(OnDevice& device) { return device(around_).columns(before_, before_ + cols_); }
  Tensor on_host() const { return around_.tensor().columns(before_, before_ + cols_); }
  /// A matrix of one row as a vector.
  Tensor vector_on(OnDevice& device) { return on(device).view({cols_}); }
  void set(int64_t row, int64_t col, double value) { around_.set(row, before_ + col, value); }
  double get(int64_t row, int64_t col) const { return around_.get(row, before_ + col); }
  std::vector<double> values() const {
    std::vector<double> v;
    v.reserve(static_cast<size_t>(rows_ * cols_));
    for (int64_t i = 0; i < rows_ * cols_; ++i) v.push_back(get(i / cols_, i % cols_));
    return v;
  }
  /// Everything around it is still the pattern of a Buffer: NaN, or -1.
  bool surroundings_intact() const {
    if (!around_.guards_intact()) return false;
    for (int64_t r = 0; r < rows_; ++r)
      for (int64_t c = 0; c < around_.tensor().cols(); ++c)
        if ((c < before_ || c >= before_ + cols_) && !untouched(around_.get(r, c))) return false;
    return true;
  }

 private:
  bool untouched(double v) const { return around_.tensor().dtype == DType::i32 ? v == -1 : std::isnan(v); }
  Buffer around_;
  int64_t before_, rows_, cols_;
};

/// max |got - want| / max |want|; infinite where one of them is not finite.
inline double worst_error(const std::vector<double>& got, const std::vector<double>& want) {
  if (got.size() != want.size()) return INFINITY;
  double worst = 0, top = 1e-30;
  for (size_t i = 0; i < want.size(); ++i) {
    if (!std::isfinite(got[i]) || !std::isfinite(want[i])) return INFINITY;
    worst = std::max(worst, std::abs(got[i] - want[i]));
    top = std::max(top, std::abs(want[i]));
  }
  return worst / top;
}

}  // namespace osprey::test
