#pragma once
// An owned packed matrix on the device under test.

#include <algorithm>
#include <optional>

#include "kernels/block_format.h"
#include "tests/support/device_copy.h"

namespace osprey::test {

/// Between guard zones; filled with bytes that are neither zero nor what a kernel writes. With `padding`,
/// rows lie so many elements further apart and begin that far behind an aligned address.
class PackedCopy {
 public:
  PackedCopy(const BlockFormat& format, int64_t rows, int64_t cols, int64_t padding = 0)
      : format_(format),
        rows_(rows),
        cols_(cols),
        padding_(padding),
        shapes_(packed_shapes(format, rows, cols, "a test's matrix")),
        codes_(stale<uint8_t>(shapes_.codes)),
        small_scales_(stale<uint8_t>(is_small() ? shapes_.scales : Shape{1, 1})),
        scales_(stale<float>(is_small() ? Shape{1, 1} : shapes_.scales)),
        tensor_scale_(std::vector<float>{-1}) {}

  Packed packed() const {
    Packed p{.format = format_, .rows = rows_, .cols = cols_, .codes = view(codes_, shapes_.codes)};
    p.scales = is_small() ? view(small_scales_, shapes_.scales) : view(scales_, shapes_.scales);
    if (shapes_.has_tensor_scale) p.tensor_scale = tensor_scale_.flat();
    return p;
  }
  /// Row by row, without what lies between the rows.
  std::vector<uint8_t> codes() const { return dense(codes_.values(), shapes_.codes); }
  /// Codes of scales, or bits of those that are f32.
  std::vector<uint32_t> scales() const {
    std::vector<uint32_t> v;
    if (is_small())
      for (uint8_t s : dense(small_scales_.values(), shapes_.scales)) v.push_back(s);
    else
      for (float s : dense(scales_.values(), shapes_.scales)) v.push_back(float_bits(s));
    return v;
  }
  float tensor_scale() const { return tensor_scale_.values()[0]; }
  void set(const std::vector<uint8_t>& codes, const std::vector<uint8_t>& small_scales) {
    require(padding_ == 0, "test", "codes are set in dense matrices");
    codes_.set(codes);
    small_scales_.set(small_scales);
  }
  /// Nothing was written around the rows and between them.
  bool surroundings_intact() const {
    return codes_.guards_intact() && small_scales_.guards_intact() && scales_.guards_intact() &&
           tensor_scale_.guards_intact() && stale_between(codes_.values(), shapes_.codes);
  }

 private:
  static constexpr uint8_t stale_byte = 0xab;
  bool is_small() const { return shapes_.scale_dtype == DType::u8; }
  template <class T>
  DeviceCopy<T> stale(const Shape& shape) const {
    T value;
    memset(&value, stale_byte, sizeof value);
    return DeviceCopy<T>(std::vector<T>(static_cast<size_t>(shape[0] * (shape[1] + padding_)), value),
                         padding_);
  }
  template <class T>
  Tensor view(const DeviceCopy<T>& copy, const Shape& shape) const {
    return copy.tensor({shape[0], shape[1] + padding_}).columns(0, shape[1]);
  }
  template <class T>
  std::vector<T> dense(const std::vector<T>& v, const Shape& shape) const {
    std::vector<T> d;
    for (int64_t r = 0; r < shape[0]; ++r) {
      const auto begin = v.begin() + r * (shape[1] + padding_);
      d.insert(d.end(), begin, begin + shape[1]);
    }
    return d;
  }
  bool stale_between(const std::vector<uint8_t>& v, const Shape& shape) const {
    for (size_t i = 0; i < v.size(); ++i)
      if (static_cast<int64_t>(i) % (shape[1] + padding_) >= shape[1] && v[i] != stale_byte) return false;
    return true;
  }

  BlockFormat format_;
  int64_t rows_, cols_, padding_;
  PackedShapes shapes_;
  DeviceCopy<uint8_t> codes_, small_scales_;
  DeviceCopy<float> scales_, tensor_scale_;
};

}  // namespace osprey::test
