#include "kernels/block_format.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <numeric>

namespace osprey {

namespace {

constexpr BlockFormat mx(Element e) { return {e, ScaleType::e8m0, Granularity::block, 32}; }
constexpr BlockFormat nv(Element e) { return {e, ScaleType::e4m3, Granularity::block, 16}; }
constexpr BlockFormat integer(Element e, Granularity g, int block = 0) {
  return {e, ScaleType::f32, g, block};
}

constexpr std::array registry{
    NamedFormat{"mxfp4", mx(Element::e2m1), "4-bit floats, a power of two for 32: 4.25 bits an element"},
    NamedFormat{"mxfp6_e2m3", mx(Element::e2m3), "6-bit floats, 3 bits of mantissa; 6.25 bits an element"},
    NamedFormat{"mxfp6_e3m2", mx(Element::e3m2), "6-bit floats, 2 bits of mantissa; 6.25 bits an element"},
    NamedFormat{"mxfp8_e4m3", mx(Element::e4m3), "8-bit floats, 3 bits of mantissa; 8.25 bits an element"},
    NamedFormat{"mxfp8_e5m2", mx(Element::e5m2), "8-bit floats, 2 bits of mantissa; 8.25 bits an element"},
    NamedFormat{"mxint8", mx(Element::int8), "8-bit integers, a power of two for 32: 8.25 bits an element"},
    NamedFormat{"mxint4", mx(Element::int4), "4-bit integers, a power of two for 32: 4.25 bits an element"},
    NamedFormat{"nvfp4", nv(Element::e2m1), "4-bit floats, an 8-bit float for 16, an fp32 for all: 4.5 bits"},
    NamedFormat{"nvint4", nv(Element::int4),
                "4-bit integers, an 8-bit float for 16, an fp32 for all: 4.5 bits"},
    NamedFormat{"int8_tensor", integer(Element::int8, Granularity::tensor), "8-bit integers, one scale"},
    NamedFormat{"int8_row", integer(Element::int8, Granularity::row), "8-bit integers, a scale a row"},
    NamedFormat{"int8_g32", integer(Element::int8, Granularity::block, 32), "8-bit integers, an fp32 for 32"},
    NamedFormat{"int8_g64", integer(Element::int8, Granularity::block, 64), "8-bit integers, an fp32 for 64"},
    NamedFormat{"int8_g128", integer(Element::int8, Granularity::block, 128),
                "8-bit integers, an fp32 for 128"},
    NamedFormat{"int4_tensor", integer(Element::int4, Granularity::tensor), "4-bit integers, one scale"},
    NamedFormat{"int4_row", integer(Element::int4, Granularity::row), "4-bit integers, a scale a row"},
    NamedFormat{"int4_g32", integer(Element::int4, Granularity::block, 32), "4-bit integers, an fp32 for 32"},
    NamedFormat{"int4_g64", integer(Element::int4, Granularity::block, 64), "4-bit integers, an fp32 for 64"},
    NamedFormat{"int4_g128", integer(Element::int4, Granularity::block, 128),
                "4-bit integers, an fp32 for 128"},
};

/// What `cols` must be a multiple of.
int64_t width_step(const BlockFormat& f) {
  const int64_t whole_bytes = 8 / std::gcd(8, f.bits());
  return f.granularity == Granularity::block ? std::lcm<int64_t>(f.block, whole_bytes) : whole_bytes;
}

int64_t rounded_to_64(int64_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

std::span<const NamedFormat> block_formats() { return registry; }

const BlockFormat& block_format(std::string_view name) {
  std::string known;
  for (const NamedFormat& f : registry) {
    if (f.name == name) return f.format;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", f.name);
  }
  fail("block_format", "no format is called `{}`; there are {}", name, known);
}

std::string_view name(const BlockFormat& format) {
  for (const NamedFormat& f : registry)
    if (f.format == format) return f.name;
  return "a format without a name";
}

Packed Packed::row_range(int64_t begin, int64_t end) const {
  Packed p = *this;
  p.rows = end - begin;
  p.codes = codes.row_range(begin, end);
  if (format.granularity != Granularity::tensor) p.scales = scales.row_range(begin, end);
  return p;
}

Packed Packed::column_range(int64_t begin, int64_t end) const {
  require(format.granularity == Granularity::block && begin % format.block == 0 && end % format.block == 0,
          "block_format", "columns {} to {} are not whole blocks of {}", begin, end, name(format));
  Packed p = *this;
  p.cols = end - begin;
  p.codes = codes.columns(begin * format.bits() / 8, end * format.bits() / 8);
  p.scales = scales.columns(begin / format.block, end / format.block);
  return p;
}

PackedShapes packed_shapes(const BlockFormat& format, int64_t rows, int64_t cols, std::string_view what) {
  const int64_t step = width_step(format);
  if (cols <= 0 || cols % step != 0)
    fail("block_format", "{} is {} wide, but rows of {} are multiples of {}; the nearest is {}", what, cols,
         name(format), step, std::max((cols + step / 2) / step, int64_t{1}) * step);
  const bool tensor = format.granularity == Granularity::tensor;
  return {.codes = {rows, cols * format.bits() / 8},
          .scales = {tensor ? 1 : rows, format.scales_per_row(cols)},
          .scale_dtype = format.scale == ScaleType::f32 ? DType::f32 : DType::u8,
          .has_tensor_scale = format.scale == ScaleType::e4m3};
}

int64_t packed_bytes(const BlockFormat& format, int64_t rows, int64_t cols) {
  const PackedShapes s = packed_shapes(format, rows, cols, "a matrix");
  return rounded_to_64(s.codes.numel()) + rounded_to_64(s.scales.numel() * size_bytes(s.scale_dtype)) +
         (s.has_tensor_scale ? rounded_to_64(size_bytes(DType::f32)) : 0);
}

void require_packed(const char* where, const char* what, const Packed& p, Device device) {
  const BlockFormat& f = p.format;
  // What kernels have code for; the registry holds nothing else.
  const bool block = f.granularity == Granularity::block;
  require(
      block ? f.block == 16 || f.block == 32 || f.block == 64 || f.block == 128 : f.scale == ScaleType::f32,
      where, "{}: scales are shared by blocks of 16, 32, 64 or 128, or are f32", what);
  const PackedShapes s = packed_shapes(f, p.rows, p.cols, what);
  const auto part = [&](const char* name_of_part, const Tensor& t, const Shape& shape, DType dtype) {
    require(t.shape == shape && t.dtype == dtype, where, "{}: {} of {} ({}, {}) must be {} {}, got {}", what,
            name_of_part, name(f), p.rows, p.cols, name(dtype), shape, t);
    require(t.device == device, where, "{}: {} must lie on {}", what, name_of_part, name(device.kind));
  };
  part("codes", p.codes, s.codes, DType::u8);
  part("scales", p.scales, s.scales, s.scale_dtype);
  if (s.has_tensor_scale) part("tensor_scale", p.tensor_scale, {1}, DType::f32);
}

namespace {

const char* impossible_scale(ScaleType type, const void* scales, int64_t i) {
  if (type == ScaleType::f32) {
    const float f = static_cast<const float*>(scales)[i];
    return std::isnan(f) ? "NaN" : std::isinf(f) ? "infinite" : std::signbit(f) ? "negative" : nullptr;
  }
  const uint8_t code = static_cast<const uint8_t*>(scales)[i];
  if (type == ScaleType::e8m0) return code == 0xff ? "NaN" : nullptr;
  return (code & 0x7f) == 0x7f ? "NaN" : (code & 0x80) != 0 ? "negative" : nullptr;
}

const char* impossible_element(const ElementLayout& layout, uint32_t code) {
  const uint32_t sign = 1u << (layout.bits - 1);
  switch (layout.kind) {
    case ElementLayout::integer:
      return code == sign ? "the most negative integer, which has no opposite" : nullptr;
    case ElementLayout::numbers:
      return nullptr;
    default:
      return (code & (sign - 1)) > layout.largest_code ? "NaN or infinite" : nullptr;
  }
}

}  // namespace

std::optional<std::string> find_impossible(const Packed& p) {
  const int64_t across = p.format.scales_per_row(p.cols);
  for (int64_t i = 0; i < p.scales.numel(); ++i)
    if (const char* what = impossible_scale(p.format.scale, p.scales.data, i))
      return fmt::format("scale {} of row {} is {}", i % across, i / across, what);
  if (p.tensor_scale.defined())
    if (const char* what = impossible_scale(ScaleType::f32, p.tensor_scale.data, 0))
      return fmt::format("the scale of the whole matrix is {}", what);
  const ElementLayout layout = element_layout(p.format.element);
  if (layout.kind == ElementLayout::numbers) return std::nullopt;
  const auto* codes = p.codes.as<uint8_t>();
  for (int64_t i = 0; i < p.rows * p.cols; ++i) {
    const uint32_t code = layout.bits == 8 ? codes[i] : codes[i / 2] >> (i % 2 * 4) & 0xf;
    if (const char* what = impossible_element(layout, code))
      return fmt::format("element {} of row {} is {}", i % p.cols, i / p.cols, what);
  }
  return std::nullopt;
}

}  // namespace osprey
