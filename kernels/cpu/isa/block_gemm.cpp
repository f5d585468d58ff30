#include "kernels/cpu/isa/block_gemm.h"

#include "kernels/cpu/isa/block_gemm_integer.h"
#include "kernels/cpu/isa/vec.h"

namespace osprey::cpu::OSPREY_ISA {

namespace {

constexpr int64_t rows_held = 64;

struct Table {
  float value[256];
};

Table table_of(Element e) {
  Table t;
  const float per_unit = 1 / unit_of(e);
  for (uint32_t code = 0; code < 1u << element_bits(e); ++code)
    t.value[code] = decode_element(e, code) * per_unit;
  return t;
}

void unpack(const Table& table, int bits, const uint8_t* codes, int64_t k, float* to, int64_t stride) {
  if (bits == 8)
    for (int64_t i = 0; i < k; ++i) to[i * stride] = table.value[codes[i]];
  else if (bits == 4)
    for (int64_t i = 0; i < k; i += 2) {
      to[i * stride] = table.value[codes[i / 2] & 15];
      to[(i + 1) * stride] = table.value[codes[i / 2] >> 4];
    }
  else
    for (int64_t i = 0; i < k; i += 4) {
      const uint8_t* c = codes + i / 4 * 3;
      const uint32_t four = c[0] | static_cast<uint32_t>(c[1]) << 8 | static_cast<uint32_t>(c[2]) << 16;
      for (int64_t j = 0; j < 4; ++j) to[(i + j) * stride] = table.value[four >> (6 * j) & 63];
    }
}

void unpack_scales(ScaleType type, const uint8_t* scales, int64_t count, float factor, float* to,
                   int64_t stride) {
  for (int64_t i = 0; i < count; ++i) {
    uint32_t stored = scales[type == ScaleType::f32 ? 0 : i];
    if (type == ScaleType::f32) memcpy(&stored, scales + 4 * i, 4);
    to[i * stride] = decode_scale(type, stored) * factor;
  }
}

int64_t scales_of(const BlockLayout& l, int64_t k) { return l.block ? k / l.block : 1; }

int64_t definition_buffer_bytes(const BlockGemm& g) {
  return 4 * (rows_held + block_columns) * (g.k + scales_of(g.a, g.k));
}

void finish(const BlockGemm& g, int64_t row, int64_t column, float sum) {
  char* at = g.y + row * g.y_row_bytes + column * (g.y_is_f32 ? 4 : 2);
  const float f = g.factor * g.b_columns[column].tensor_scale;
  float old;
  bf16 rounded;
  if (g.y_is_f32) {
    memcpy(&old, at, 4);
  } else {
    memcpy(&rounded, at, 2);
    old = to_float(rounded);
  }
  const float y = g.add ? __builtin_fmaf(sum, f, old) : sum * f;
  rounded = to_bf16(y);
  memcpy(at, g.y_is_f32 ? static_cast<const void*>(&y) : &rounded, g.y_is_f32 ? 4 : 2);
}

void by_definition(const BlockGemm& g) {
  const int64_t scales = scales_of(g.a, g.k), block = g.a.block ? g.a.block : whole_row_block;
  float* a = static_cast<float*>(g.buffer);
  float* a_scales = a + rows_held * g.k;
  float* b = a_scales + rows_held * scales;
  float* b_scales = b + block_columns * g.k;
  const Table a_table = table_of(g.a.element), b_table = table_of(g.b.element);
  const float unit = scaled_units(1, g.a.element, g.b.element);
  for (int64_t r0 = 0; r0 < g.rows; r0 += rows_held) {
    const int64_t rows = g.rows - r0 < rows_held ? g.rows - r0 : rows_held;
    for (int64_t r = 0; r < rows; ++r) {
      unpack(a_table, element_bits(g.a.element), g.a_codes + (r0 + r) * g.a_code_stride, g.k, a + r * g.k, 1);
      unpack_scales(g.a.scale, g.a_scales + (r0 + r) * g.a_scale_stride, scales, unit, a_scales + r * scales,
                    1);
    }
    for (int64_t c0 = 0; c0 < g.columns; c0 += block_columns) {
      const int64_t columns = g.columns - c0 < block_columns ? g.columns - c0 : block_columns;
      if (columns < block_columns) {
        memset(b, 0, static_cast<size_t>(block_columns * g.k) * 4);
        memset(b_scales, 0, static_cast<size_t>(block_columns * scales) * 4);
      }
      for (int64_t c = 0; c < columns; ++c) {
        const BlockColumn& column = g.b_columns[c0 + c];
        unpack(b_table, element_bits(g.b.element), column.codes, g.k, b + c, block_columns);
        unpack_scales(g.b.scale, column.scales, scales, 1, b_scales + c, block_columns);
      }
      for (int64_t r = 0; r < rows; ++r) {
        float sum[block_columns] = {};
        for (int64_t k0 = 0, i = 0; k0 < g.k; k0 += block, i += g.a.block ? 1 : 0) {
          float s[block_columns] = {};
          for (int64_t k = k0; k < g.k && k < k0 + block; ++k) {
            const float left = a[r * g.k + k];
#pragma omp simd
            for (int64_t c = 0; c < block_columns; ++c) s[c] += left * b[k * block_columns + c];
          }
          for (int64_t c = 0; c < block_columns; ++c)
            sum[c] = __builtin_fmaf(s[c], a_scales[r * scales + i] * b_scales[i * block_columns + c], sum[c]);
        }
        for (int64_t c = 0; c < columns; ++c) finish(g, r0 + r, c0 + c, sum[c]);
      }
    }
  }
}

}  // namespace

#if defined(OSPREY_ISA_avx512_bf16)
extern const BlockGemmTable block_gemm_table{
    by_definition, definition_buffer_bytes, dot,       dot_buffer_bytes,
    few_rows,      few_rows_buffer_bytes,   tiles,     tiles_buffer_bytes,
    bf16_tiles,    bf16_tiles_buffer_bytes, pack_panel};
#else
extern const BlockGemmTable block_gemm_table{by_definition, definition_buffer_bytes,
                                             nullptr,       nullptr,
                                             nullptr,       nullptr,
                                             nullptr,       nullptr,
                                             nullptr,       nullptr,
                                             nullptr};
#endif

}  // namespace osprey::cpu::OSPREY_ISA
