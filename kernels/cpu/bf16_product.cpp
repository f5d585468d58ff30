#include "kernels/cpu/bf16_product.h"

#include "kernels/cpu/convert.h"
#include "kernels/cpu/scratch.h"

namespace osprey::cpu {

namespace {

using kernels::Op;

const bf16* row(const Tensor& t, int64_t r) { return static_cast<const bf16*>(t.data) + r * t.row_stride(); }

// The product reads pairs of k: rows of odd length are copied to even ones, ending in zero.
Tensor even_rows(const Queue& queue, const Tensor& t) {
  if (t.cols() % 2 == 0) return matrix(t);
  const int64_t rows = t.rows(), stride = t.cols() + 1;
  bf16* copy = scratch_of<bf16>(Scratch::gemm_a, static_cast<size_t>(rows * stride));
  Tensor even = make_tensor(copy, {rows, t.cols()}, DType::bf16, t.device);
  even.strides[0] = stride;
  copy_matrix(queue, even, matrix(t));
  for (int64_t r = 0; r < rows; ++r) copy[r * stride + stride - 1] = bf16{0};
  return even;
}

// Whole panels [first, last) of some rows of c.
struct Part {
  int64_t row_begin, row_end, panel_begin, panel_end;
};

Bf16Gemm gemm_of(const PanelProduct& p, int64_t k, const Part& part) {
  const int64_t column = part.panel_begin * panel_columns, width = size_bytes(p.c.dtype);
  const auto at = [&](const Tensor& t) {
    return t.defined() ? static_cast<char*>(t.data) + (part.row_begin * t.row_stride() + column) * width
                       : nullptr;
  };
  Bf16Gemm g{};
  g.b = static_cast<const char*>(p.panels) + part.panel_begin * panel_bytes(k);
  g.k = k;
  g.rows = part.row_end - part.row_begin;
  g.columns = std::min(p.c.cols(), part.panel_end * panel_columns) - column;
  g.c = at(p.c);
  g.c_row_bytes = p.c.row_stride() * width;
  g.addend = at(p.addend);
  g.addend_row_bytes = p.addend.defined() ? p.addend.row_stride() * width : 0;
  g.c_is_f32 = p.c.dtype == DType::f32;
  g.alpha = p.alpha;
  g.beta = p.beta;
  g.upper = p.blocks == Blocks::upper;
  g.first_row = part.row_begin - column;
  g.buffer =
      scratch_of<float>(Scratch::gemm_c, static_cast<size_t>(bf16_gemm_table().buffer_floats(k, g.columns)));
  return g;
}

void multiply_rows(const PanelProduct& p, const Tensor& a, const Part& part) {
  Bf16Gemm g = gemm_of(p, a.cols(), part);
  g.a = row(a, part.row_begin);
  g.a_row_bytes = a.row_stride() * 2;
  bf16_gemm_table().gemm(g);
}

// A transposed a becomes slabs block by block, each in L2 when it is used.
void multiply_slabs(const PanelProduct& p, const Tensor& a, const Part& part) {
  constexpr int64_t most = 32 * slab_rows;
  const Bf16GemmTable& table = bf16_gemm_table();
  const int64_t k = a.rows(), rows = part.row_end - part.row_begin, blocks = (rows + most - 1) / most;
  const int64_t size = ((rows + blocks - 1) / blocks + slab_rows - 1) / slab_rows * slab_rows;
  char* slabs = scratch_of<char>(Scratch::gemm_a, static_cast<size_t>(size / slab_rows * slab_bytes(k)));
  for (int64_t begin = part.row_begin; begin < part.row_end; begin += size) {
    Part block = part;
    block.row_begin = begin;
    block.row_end = std::min(part.row_end, begin + size);
    const int64_t count = block.row_end - begin;
    table.pack_slabs(slabs, row(a, 0) + begin, a.row_stride(), k, count, 0,
                     (count + slab_rows - 1) / slab_rows);
    Bf16Gemm g = gemm_of(p, k, block);
    g.a = slabs;
    table.gemm(g);
  }
}

}  // namespace

bool own_product(DType dtype) {
  static const bool able = active_isa() == Isa::avx512_bf16 && !has_amx();
  return able && dtype == DType::bf16;
}

void multiply_panels(const Queue& queue, const PanelProduct& product) {
  PanelProduct p = product;
  p.c = matrix(p.c);
  if (p.addend.defined()) p.addend = matrix(p.addend);
  const bool transposed = p.op_a == Op::transpose;
  const Tensor a = transposed ? matrix(p.a) : even_rows(queue, p.a);
  const int64_t rows = p.c.rows(), panels = panels_of(p.c.cols());
  const auto run = [&](const Part& part) {
    transposed ? multiply_slabs(p, a, part) : multiply_rows(p, a, part);
  };
  if (p.blocks == Blocks::upper && queue.threads > 1) {
    // Block rows get shorter: taken alternately from both ends, neighbours cost the same together.
    return parallel_for(queue, panels, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t block = (i % 2 ? panels - 1 - i / 2 : i / 2), first = block * panel_columns;
        run({first, std::min(rows, first + panel_columns), block, panels});
      }
    });
  }
  const int64_t tiles = (rows + slab_rows - 1) / slab_rows;
  if (tiles >= 4 * queue.threads || p.blocks == Blocks::upper) {
    parallel_for(queue, tiles, 1, [&](int64_t begin, int64_t end) {
      run({begin * slab_rows, std::min(rows, end * slab_rows), 0, panels});
    });
  } else {
    parallel_for(queue, panels, 1, [&](int64_t begin, int64_t end) { run({0, rows, begin, end}); });
  }
}

const void* pack_b(const Queue& queue, const Tensor& b, kernels::Op op_b) {
  const bool transposed = op_b == Op::transpose;
  const int64_t k = transposed ? b.cols() : b.rows(), n = transposed ? b.rows() : b.cols();
  const Bf16GemmTable& table = bf16_gemm_table();
  char* to = scratch_of<char>(Scratch::gemm_b, static_cast<size_t>(panels_of(n) * panel_bytes(k)));
  parallel_for(queue, panels_of(n), 1, [&](int64_t begin, int64_t end) {
    (transposed ? table.pack_panels_transposed : table.pack_panels)(to, panel_bytes(k), row(b, 0),
                                                                    b.row_stride(), k, n, begin, end);
  });
  return to;
}

}  // namespace osprey::cpu
