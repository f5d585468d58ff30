#include "kernels/block_matmul.h"

#include "kernels/cpu/block_product.h"
#include "kernels/cpu/isa/block_gemm.h"
#include "kernels/cpu/quantize_lanes.h"
#include "kernels/cpu/scratch.h"

namespace osprey::cpu {

namespace {

using kernels::BlockMatmul;

// As isa/ sees a format: tensors and rows of one scale differ in a stride only.
BlockLayout layout_of(const BlockFormat& f) {
  return {f.element, f.scale, f.granularity == Granularity::block ? f.block : 0};
}

bool integers(const Packed& p) { return is_integer(p.format.element); }

bool powers_of_two(const Packed& p) { return p.format.scale == ScaleType::e8m0 && p.format.block == 32; }

bool has_dot_products() { return active_isa() == Isa::avx512_bf16; }

int64_t total_rows(std::span<const Packed> b) {
  int64_t n = 0;
  for (const Packed& p : b) n += p.rows;
  return n;
}

int64_t panels_of(int64_t rows) { return (rows + block_columns - 1) / block_columns; }

float tensor_scale(const Packed& p) {
  return p.tensor_scale.defined() ? *static_cast<const float*>(p.tensor_scale.data) : 1.0f;
}

int64_t scale_stride(const Packed& p) {
  return p.format.granularity == Granularity::tensor ? 0 : p.scales.row_stride() * size_bytes(p.scales.dtype);
}

// All rows of all matrices, in this thread's scratch memory.
const BlockColumn* columns_of(std::span<const Packed> b) {
  BlockColumn* const columns =
      scratch_of<BlockColumn>(Scratch::block_rows, static_cast<size_t>(total_rows(b)));
  BlockColumn* at = columns;
  for (const Packed& p : b)
    for (int64_t r = 0; r < p.rows; ++r)
      *at++ = {static_cast<const uint8_t*>(p.codes.data) + r * p.codes.row_stride(),
               static_cast<const uint8_t*>(p.scales.data) + r * scale_stride(p), tensor_scale(p)};
  return columns;
}

void pack_into(const Queue& queue, uint8_t* panels, std::span<const Packed> b, const BlockColumn* columns) {
  const BlockLayout layout = layout_of(b[0].format);
  const int64_t k = b[0].cols, n = total_rows(b), bytes = block_panel_bytes(layout, k);
  parallel_for(queue, panels_of(n), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      block_gemm_table().pack(panels + i * bytes, layout, k, columns + i * block_columns,
                              std::min(block_columns, n - i * block_columns));
  });
}

bool unrotates(BlockEngine engine) {
  return engine == BlockEngine::bf16_tiles || engine == BlockEngine::tiles || engine == BlockEngine::dot;
}

using Gemm = void (*)(const BlockGemm&);
using BufferBytes = int64_t (*)(const BlockGemm&);

struct Grid {
  int64_t rows, columns;
};
// The grid of parts of y, at most one for each thread, whose largest part is done first. A part multiplies
// all of its units with each other, and unpacks its rows once and its columns once for 16 units of rows; to
// unpack a unit takes about as long as two products (`perf`, mxfp4 on tiles).
Grid best_grid(int64_t row_units, int64_t column_units, int threads) {
  constexpr int64_t unpacking = 2, held = 16;
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  Grid best{};
  int64_t least = 0;
  for (int64_t r = 1; r <= std::min<int64_t>(threads, row_units); ++r) {
    const int64_t c = std::min<int64_t>(threads / r, column_units);
    const int64_t high = ceil_div(row_units, r), wide = ceil_div(column_units, c);
    const int64_t cost = high * wide + unpacking * (high + wide * ceil_div(high, held));
    if (best.rows > 0 && cost >= least) continue;
    best = {r, c};
    least = cost;
  }
  return best;
}

void share_out(const Queue& queue, const BlockGemm& whole, Gemm gemm, BufferBytes buffer_bytes) {
  constexpr int64_t rows_unit = 32;
  const int64_t columns_unit = std::max<int64_t>(2 * block_columns, whole.turn_size);
  const auto [row_cuts, column_cuts] =
      best_grid((whole.rows + rows_unit - 1) / rows_unit, (whole.columns + columns_unit - 1) / columns_unit,
                queue.threads);
  const auto cut = [](int64_t n, int64_t unit, int64_t i, int64_t count) {
    const int64_t units = (n + unit - 1) / unit;
    return std::min(n, units * i / count * unit);
  };
  parallel_for(queue, row_cuts * column_cuts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = cut(whole.rows, rows_unit, i / column_cuts, row_cuts),
                    column = cut(whole.columns, columns_unit, i % column_cuts, column_cuts);
      BlockGemm g = whole;
      g.rows = cut(whole.rows, rows_unit, i / column_cuts + 1, row_cuts) - row;
      g.columns = cut(whole.columns, columns_unit, i % column_cuts + 1, column_cuts) - column;
      if (g.rows == 0 || g.columns == 0) continue;
      g.a_codes += row * g.a_code_stride;
      g.a_scales += row * g.a_scale_stride;
      if (g.b_columns) g.b_columns += column;
      if (g.b_panels) g.b_panels += column / block_columns * block_panel_bytes(g.b, g.k);
      g.y += row * g.y_row_bytes + column * (g.y_is_f32 ? 4 : 2);
      if (g.mask) g.mask += row * g.mask_stride + column / 8;
      g.buffer = scratch(Scratch::block_buffer, static_cast<size_t>(buffer_bytes(g)));
      gemm(g);
    }
  });
}

}  // namespace

const char* name(BlockEngine engine) {
  switch (engine) {
    case BlockEngine::definition:
      return "definition";
    case BlockEngine::dot:
      return "dot";
    case BlockEngine::few_rows:
      return "few_rows";
    case BlockEngine::bf16_tiles:
      return "bf16_tiles";
    case BlockEngine::tiles:
      return "tiles";
  }
  return "?";
}

const char* why_not(BlockEngine engine, const Packed& a, const Packed& b) {
  if (engine == BlockEngine::definition) return nullptr;
  if (engine == BlockEngine::bf16_tiles) {
    if (!powers_of_two(a) || !powers_of_two(b)) return "scales are not e8m0 of 32 elements";
    if (!has_dot_products() || !has_bf16_tiles())
      return "no bf16 tiles (AMX) here, or OSPREY_ISA forbids them";
    return nullptr;
  }
  if (!integers(a) || !integers(b)) return "elements are not integers";
  if (!has_dot_products()) return "no AVX512-VNNI and AVX512-BF16 here, or OSPREY_ISA forbids them";
  if (engine == BlockEngine::tiles && !has_int8_tiles()) return "no int8 tiles (AMX) here";
  if (engine == BlockEngine::few_rows && a.rows > most_few_rows) return "too many rows";
  return nullptr;
}

BlockEngine block_engine(const Packed& a, const Packed& b) {
  // By `osprey bench gemm`: docs/measurements.md.
  const bool int8_first = a.format.bits() == 4 && b.format.bits() == 4;
  const BlockEngine tiles[] = {int8_first ? BlockEngine::tiles : BlockEngine::bf16_tiles,
                               int8_first ? BlockEngine::bf16_tiles : BlockEngine::tiles};
  for (const BlockEngine engine : {BlockEngine::few_rows, tiles[0], tiles[1], BlockEngine::dot})
    if (!why_not(engine, a, b)) return engine;
  return BlockEngine::definition;
}

int64_t block_pack_bytes(std::span<const Packed> b) {
  if (!has_dot_products()) return 0;
  if (!integers(b[0]) && !(powers_of_two(b[0]) && has_bf16_tiles())) return 0;
  return panels_of(total_rows(b)) * block_panel_bytes(layout_of(b[0].format), b[0].cols);
}

void block_pack(const Queue& queue, const kernels::BlockPack& args) {
  pack_into(queue, static_cast<uint8_t*>(args.pack.data), args.b, columns_of(args.b));
}

void block_matmul_by(BlockEngine engine, const Queue& queue, const BlockMatmul& args) {
  const Packed& a = args.a;
  const Tensor& y = args.y.tensor;
  const char* why = why_not(engine, a, args.b[0]);
  require(!why, "block_matmul", "the engine {} cannot be had: {}", name(engine), why ? why : "");
  require(unrotates(engine) || !(args.rotation || args.mask.defined()), "block_matmul",
          "the engine {} takes nothing back of a rotation or a mask", name(engine));
  BlockGemm g{};
  g.a = layout_of(a.format);
  g.b = layout_of(args.b[0].format);
  g.k = a.cols;
  g.rows = a.rows;
  g.columns = y.cols();
  g.a_codes = static_cast<const uint8_t*>(a.codes.data);
  g.a_scales = static_cast<const uint8_t*>(a.scales.data);
  g.a_code_stride = a.codes.row_stride();
  g.a_scale_stride = scale_stride(a);
  g.y = static_cast<char*>(y.data);
  g.y_row_bytes = y.row_stride() * size_bytes(y.dtype);
  g.y_is_f32 = y.dtype == DType::f32;
  g.add = args.y.add;
  g.factor = args.factor * tensor_scale(a);
  const Signs signs(args.rotation);
  g.turn_size = args.rotation.size;
  g.turn_factor = kernels::rotation_factor(args.rotation, 1);
  g.signs = signs.bits.data();
  if (args.mask.defined()) {
    g.mask = args.mask.as<uint8_t>();
    g.mask_stride = args.mask.row_stride();
  }
  const BlockGemmTable& table = block_gemm_table();
  if (engine == BlockEngine::definition) {
    g.b_columns = columns_of(args.b);
    return share_out(queue, g, table.by_definition, table.definition_buffer_bytes);
  }
  if (args.pack.defined()) {
    g.b_panels = static_cast<const uint8_t*>(args.pack.data);
  } else {
    uint8_t* panels =
        scratch_of<uint8_t>(Scratch::block_panels, static_cast<size_t>(block_pack_bytes(args.b)));
    pack_into(queue, panels, args.b, columns_of(args.b));
    g.b_panels = panels;
  }
  switch (engine) {
    case BlockEngine::few_rows:
      return share_out(queue, g, table.few_rows, table.few_rows_buffer_bytes);
    case BlockEngine::bf16_tiles:
      return share_out(queue, g, table.bf16_tiles, table.bf16_tiles_buffer_bytes);
    case BlockEngine::tiles:
      return share_out(queue, g, table.tiles, table.tiles_buffer_bytes);
    default:
      return share_out(queue, g, table.dot, table.dot_buffer_bytes);
  }
}

bool block_matmul_unrotates(const BlockMatmul& args) { return unrotates(block_engine(args.a, args.b[0])); }

void block_matmul(const Queue& queue, const BlockMatmul& args) {
  block_matmul_by(block_engine(args.a, args.b[0]), queue, args);
}

std::vector<std::string_view> block_matmul_engines(const Queue&, const BlockMatmul& args) {
  const BlockEngine taken = block_engine(args.a, args.b[0]);
  std::vector<std::string_view> names{name(taken)};
  for (const BlockEngine e : block_engines)
    if (e != taken && !why_not(e, args.a, args.b[0])) names.push_back(name(e));
  return names;
}

void block_matmul_by(std::string_view engine, const Queue& queue, const BlockMatmul& args) {
  for (const BlockEngine e : block_engines)
    if (name(e) == engine) block_matmul_by(e, queue, args);
}

}  // namespace osprey::cpu
