#pragma once
// Owned test tensors with guard zones: memory around the rows must keep its pattern.

#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/core/random.h"
#include "kernels/core/tensor.h"

namespace osprey::test {

/// An owned matrix whose rows are `row_stride` apart, with 64 guard elements before and after and
/// between the rows, all of a NaN pattern.
class Buffer {
 public:
  Buffer(const Shape& shape, DType dtype, int64_t row_padding = 0) : dtype_(dtype) {
    const int64_t cols = shape[-1], rows = cols == 0 ? 0 : shape.numel() / cols, stride = cols + row_padding;
    bytes_.assign(static_cast<size_t>((rows * stride + 2 * guard) * size_bytes(dtype)), pattern);
    view_ = make_tensor(bytes_.data() + guard * size_bytes(dtype), shape, dtype);
    int64_t s = stride;
    for (int i = shape.rank - 2; i >= 0; --i) {
      view_.strides[static_cast<size_t>(i)] = s;
      s *= shape[i];
    }
  }
  Buffer(Buffer&&) = default;
  operator const Tensor&() const { return view_; }
  const Tensor& tensor() const { return view_; }
  /// All of its memory, guards included, for copies to a device and back.
  const std::vector<char>& bytes() const { return bytes_; }
  std::vector<char>& bytes() { return bytes_; }

  double get(int64_t row, int64_t col) const {
    const char* p = at(row, col);
    if (dtype_ == DType::bf16) return to_float(*reinterpret_cast<const bf16*>(p));
    if (dtype_ == DType::i32) return *reinterpret_cast<const int32_t*>(p);
    if (dtype_ == DType::f64) return *reinterpret_cast<const double*>(p);
    return *reinterpret_cast<const float*>(p);
  }
  double get(int64_t i) const { return get(i / view_.cols(), i % view_.cols()); }
  void set(int64_t row, int64_t col, double value) {
    char* p = const_cast<char*>(at(row, col));
    if (dtype_ == DType::bf16)
      *reinterpret_cast<bf16*>(p) = to_bf16(static_cast<float>(value));
    else if (dtype_ == DType::i32)
      *reinterpret_cast<int32_t*>(p) = static_cast<int32_t>(value);
    else if (dtype_ == DType::f64)
      *reinterpret_cast<double*>(p) = value;
    else
      *reinterpret_cast<float*>(p) = static_cast<float>(value);
  }
  /// Standard normal times `scale`.
  Buffer& fill(uint64_t stream, double scale = 1.0) {
    for (int64_t i = 0; i < view_.numel(); ++i)
      set(i / view_.cols(), i % view_.cols(), scale * random_normal(7, stream, static_cast<uint64_t>(i)));
    return *this;
  }
  Buffer& fill_value(double value) {
    for (int64_t i = 0; i < view_.numel(); ++i) set(i / view_.cols(), i % view_.cols(), value);
    return *this;
  }
  std::vector<double> values() const {
    std::vector<double> v(static_cast<size_t>(view_.numel()));
    for (size_t i = 0; i < v.size(); ++i) v[i] = get(static_cast<int64_t>(i));
    return v;
  }
  /// Every byte that is not an element still holds the pattern.
  bool guards_intact() const {
    std::vector<char> seen(bytes_.size(), 0);
    for (int64_t r = 0; r < view_.rows(); ++r)
      memset(seen.data() + (at(r, 0) - bytes_.data()), 1,
             static_cast<size_t>(view_.cols() * size_bytes(dtype_)));
    for (size_t i = 0; i < bytes_.size(); ++i)
      if (!seen[i] && bytes_[i] != pattern) return false;
    return true;
  }
  bool same_bits(const Buffer& other) const {
    for (int64_t r = 0; r < view_.rows(); ++r)
      if (memcmp(at(r, 0), other.at(r, 0), static_cast<size_t>(view_.cols() * size_bytes(dtype_))) != 0)
        return false;
    return true;
  }

 private:
  static constexpr int64_t guard = 64;
  static constexpr char pattern = '\xff';  // a NaN in bf16 and f32
  const char* at(int64_t row, int64_t col) const {
    const int64_t stride =
        view_.shape.rank <= 1 ? 0 : view_.strides[static_cast<size_t>(view_.shape.rank) - 2];
    return static_cast<const char*>(view_.data) + (row * stride + col) * size_bytes(dtype_);
  }
  std::vector<char> bytes_;
  Tensor view_;
  DType dtype_;
};

}  // namespace osprey::test
