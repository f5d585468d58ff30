#pragma once
// Block formats: small numbers, some of which share a scale. What a quantized matrix is made of, and the
// registry of the formats by name. The arithmetic of one element is in kernels/numerics/block_codec.h.

#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "kernels/core/tensor.h"
#include "kernels/numerics/block_codec.h"

namespace osprey {

/// How many elements share a scale: a block of a row, the whole row, or the whole matrix.
enum class Granularity : uint8_t { block, row, tensor };

struct BlockFormat {
  Element element = Element::e2m1;
  ScaleType scale = ScaleType::e8m0;
  Granularity granularity = Granularity::block;
  int block =
      32;  // elements of a row, along the dimension that products sum over; 0 unless granularity says block

  bool operator==(const BlockFormat&) const = default;
  int bits() const { return element_bits(element); }
  /// Scales in a row of `cols` elements.
  int64_t scales_per_row(int64_t cols) const { return granularity == Granularity::block ? cols / block : 1; }
};

struct NamedFormat {
  std::string_view name;
  BlockFormat format;
  std::string_view about;  // one line for `osprey fields`
};

/// Every format there is: mxfp4, mxfp6_e2m3, mxfp6_e3m2, mxfp8_e4m3, mxfp8_e5m2, mxint8, mxint4, nvfp4,
/// nvint4, and {int8,int4}_{tensor,row,g32,g64,g128}.
/// Reference: OCP Microscaling Formats (MX) v1.0 for mx*; NVIDIA, arXiv 2509.25149 for nvfp4.
std::span<const NamedFormat> block_formats();
/// Errors: throws on an unknown name; the message lists the known ones.
const BlockFormat& block_format(std::string_view name);
std::string_view name(const BlockFormat& format);

/// A quantized matrix of (rows, cols) values; a view, like Tensor. value = element * scale (* tensor_scale).
struct Packed {
  BlockFormat format;
  int64_t rows = 0, cols = 0;
  Tensor codes;  // (rows, cols * bits / 8) u8: element i is bits [i * bits, (i + 1) * bits) of its row,
                 // lowest bits first, so of two 4-bit elements in a byte the even one is in the low half
  Tensor
      scales;  // (rows, scales_per_row) u8 for e8m0 and e4m3, f32 for f32; (1, 1) for one of the whole matrix
  Tensor tensor_scale = {};  // (1) f32, for formats whose scales are e4m3

  bool defined() const { return codes.defined(); }
  /// Rows [begin, end), with the same scale of the whole matrix where there is one.
  Packed row_range(int64_t begin, int64_t end) const;
  /// Columns [begin, end), whole blocks of a format with a scale for each block.
  Packed column_range(int64_t begin, int64_t end) const;
};

/// Shapes of the parts of a packed matrix. Errors: throws when `cols` is not a multiple of the block (or of
/// what fills whole bytes); the message names `what` and the nearest width that is.
struct PackedShapes {
  Shape codes, scales;
  DType scale_dtype;
  bool has_tensor_scale;
};
PackedShapes packed_shapes(const BlockFormat& format, int64_t rows, int64_t cols, std::string_view what);
/// A packed matrix in memory from `alloc(shape, dtype)`; its values are undefined.
template <class Alloc>
Packed make_packed(const BlockFormat& format, int64_t rows, int64_t cols, const Alloc& alloc) {
  const PackedShapes s = packed_shapes(format, rows, cols, "a quantized matrix");
  return {.format = format,
          .rows = rows,
          .cols = cols,
          .codes = alloc(s.codes, DType::u8),
          .scales = alloc(s.scales, s.scale_dtype),
          .tensor_scale = s.has_tensor_scale ? alloc(Shape{1}, DType::f32) : Tensor{}};
}
/// Bytes of all parts, each rounded up to 64.
int64_t packed_bytes(const BlockFormat& format, int64_t rows, int64_t cols);

/// Throws unless the parts of `p` fit together and lie on `device`, blocks have 16, 32, 64 or 128 elements,
/// and scales of rows and matrices are f32; `where` and `what` begin the message.
void require_packed(const char* where, const char* what, const Packed& p, Device device);

/// What no quantization of finite numbers leaves in a matrix: scales that are NaN, infinite or negative, the
/// most negative integer, codes for NaN and Inf. In words ("scale 3 of row 7 is NaN"), or nothing when all is
/// well. `p` lies in host memory and is packed as require_packed() wants it.
std::optional<std::string> find_impossible(const Packed& p);

}  // namespace osprey
