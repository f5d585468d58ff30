#pragma once
// What a tensor is: a view. It never owns, and it is trivially copyable.
//
// Dimension legend, used everywhere: B batch, T tokens of a sequence, N = B*T, C width, H heads,
// G kv heads, D head size, F mlp width, V vocabulary, L layers.

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "kernels/core/check.h"
#include "kernels/numerics/bf16.h"

namespace osprey {

/// f64 holds sums and the scalars of a step, u8 packed codes and their scales; no op computes on them.
enum class DType : uint8_t { f32, bf16, i32, f64, u8 };

int64_t size_bytes(DType dtype);
const char* name(DType dtype);

/// `meta` tensors have shapes and no memory: the same code plans a run without running it.
enum class DeviceKind : uint8_t { cpu, cuda, meta };
struct Device {
  DeviceKind kind = DeviceKind::cpu;
  int index = 0;
  bool operator==(const Device&) const = default;
};
const char* name(DeviceKind kind);

/// Up to four dimensions, outermost first.
struct Shape {
  std::array<int64_t, 4> dims{};
  int rank = 0;

  Shape() = default;
  Shape(std::initializer_list<int64_t> list);
  int64_t operator[](int i) const { return dims[static_cast<size_t>(i < 0 ? i + rank : i)]; }
  int64_t numel() const;
  bool operator==(const Shape&) const = default;
  std::string str() const;  // "(4096, 768)"
};

/// A view of memory. The innermost dimension has stride 1; outer dimensions may be strided (a column
/// slice of a wider matrix is a view).
struct Tensor {
  void* data = nullptr;
  Shape shape;
  std::array<int64_t, 4> strides{};  // in elements
  DType dtype = DType::f32;
  Device device;

  bool defined() const { return shape.rank > 0; }
  int64_t numel() const { return shape.numel(); }
  int64_t bytes() const { return numel() * size_bytes(dtype); }
  /// Last dimension, and the product of all others: every op that works on rows sees (rows, cols).
  int64_t cols() const { return shape[-1]; }
  int64_t rows() const { return cols() == 0 ? 0 : numel() / cols(); }
  /// Elements from one row to the next. Errors: throws when the outer dimensions do not collapse.
  int64_t row_stride() const;
  bool contiguous() const;

  template <class T>
  T* as() const;

  /// Same memory, other shape. Errors: throws unless contiguous with an equal element count.
  Tensor view(const Shape& shape) const;
  /// Columns [begin, end) of the (rows, cols) matrix: shape (rows, end - begin).
  Tensor columns(int64_t begin, int64_t end) const;
  /// Rows [begin, end) of the (rows, cols) matrix: shape (end - begin, cols).
  Tensor row_range(int64_t begin, int64_t end) const;
  std::string str() const;  // "bf16 (4096, 768)"
};

/// A contiguous view of `data`.
Tensor make_tensor(void* data, const Shape& shape, DType dtype, Device device = {});

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct DTypeOf<bf16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr DType value = DType::i32;
};
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct DTypeOf<uint8_t> {
  static constexpr DType value = DType::u8;
};

template <class T>
T* Tensor::as() const {
  require(DTypeOf<T>::value == dtype, "tensor", "asked for {} of a tensor that is {}",
          name(DTypeOf<T>::value), *this);
  return static_cast<T*>(data);
}

/// Where to put a gradient: BLAS's beta. The first writer overwrites, later ones add; undefined when
/// nobody wants it.
struct Accum {
  Tensor tensor;
  bool add = false;
  explicit operator bool() const { return tensor.defined(); }
};

/// Throws unless `t` has this shape; `what` names it in the message.
void require_shape(const char* where, const char* what, const Tensor& t, const Shape& shape);

/// Formats by str().
template <class T>
struct FormatByStr {
  constexpr auto parse(fmt::format_parse_context& context) { return context.begin(); }
  auto format(const T& value, fmt::format_context& context) const {
    const std::string text = value.str();
    return std::copy(text.begin(), text.end(), context.out());
  }
};

}  // namespace osprey

// Messages name shapes and tensors: `require(ok, "where", "got {}", tensor)` makes text only when it fails.
template <>
struct fmt::formatter<osprey::Shape> : osprey::FormatByStr<osprey::Shape> {};
template <>
struct fmt::formatter<osprey::Tensor> : osprey::FormatByStr<osprey::Tensor> {};
