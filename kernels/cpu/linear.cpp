// Linear layers on the CPU, by our own bf16 product where the CPU has AVX512-BF16 and no AMX, and
// by oneDNN everywhere else. Measured on two such cores at the shapes of a 512-wide model, as
// fractions of oneDNN's rate on plain layouts: forward and dgrad 1.04 (oneDNN with its own packed
// weights: 1.04), wgrad 1.09 with packing included. Ours also adds the residual in the epilogue and
// allocates nothing.

#include "kernels/linear.h"

#include <cpuid.h>

#include "kernels/cpu/convert.h"
#include "kernels/cpu/isa/bf16_gemm.h"
#include "kernels/cpu/scratch.h"
#include "kernels/matmul.h"

namespace osprey::cpu {

namespace {

using kernels::Op;
using kernels::Weights;

bool cpu_has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1);
}

bool own_product(DType dtype) {
  static const bool able = active_isa() == Isa::avx512_bf16 && !cpu_has_amx();
  return able && dtype == DType::bf16;
}

int64_t total_out(Weights weights) {
  int64_t out = 0;
  for (const Tensor& w : weights) out += w.shape[0];
  return out;
}

int64_t panels_of(int64_t columns) { return (columns + panel_columns - 1) / panel_columns; }

const bf16* row(const Tensor& t, int64_t r) { return static_cast<const bf16*>(t.data) + r * t.row_stride(); }

// (rows, cols) whatever the rank; its row stride is strides[0].
Tensor matrix(const Tensor& t) { return t.row_range(0, t.rows()); }

// The product reads pairs of k: rows of odd length are copied to even ones, ending in zero.
Tensor even_rows(const Queue& queue, const Tensor& t) {
  if (t.cols() % 2 == 0) return matrix(t);
  const int64_t rows = t.rows(), stride = t.cols() + 1;
  bf16* copy = scratch_of<bf16>(Scratch::linear_a, static_cast<size_t>(rows * stride));
  Tensor even = make_tensor(copy, {rows, t.cols()}, DType::bf16, t.device);
  even.strides[0] = stride;
  copy_matrix(queue, even, matrix(t));
  for (int64_t r = 0; r < rows; ++r) copy[r * stride + stride - 1] = bf16{0};
  return even;
}

struct Product {
  Tensor c, a;
  const void* panels;
  Tensor addend;
};

// c = a B (+ addend) with B in panels; rows or, when they are few, panels are split among the
// threads.
void multiply(const Queue& queue, const Product& p) {
  const Bf16GemmTable& table = bf16_gemm_table();
  const Tensor a = even_rows(queue, p.a), c = matrix(p.c);
  const int64_t k = a.cols(), rows = c.rows(), columns = c.cols(), width = size_bytes(c.dtype);
  const auto part = [&](int64_t row_begin, int64_t row_end, int64_t panel_begin, int64_t panel_end) {
    const int64_t column = panel_begin * panel_columns,
                  count = std::min(columns, panel_end * panel_columns) - column;
    const auto at = [&](const Tensor& t) {
      return t.defined() ? static_cast<char*>(t.data) + (row_begin * t.row_stride() + column) * width
                         : nullptr;
    };
    Bf16Gemm g{};
    g.a = row(a, row_begin);
    g.a_row_bytes = a.strides[0] * 2;
    g.b = static_cast<const char*>(p.panels) + panel_begin * panel_bytes(k);
    g.k = k;
    g.rows = row_end - row_begin;
    g.columns = count;
    g.c = at(c);
    g.c_row_bytes = c.strides[0] * width;
    g.addend = at(p.addend);
    g.addend_row_bytes = p.addend.defined() ? p.addend.row_stride() * width : 0;
    g.c_is_f32 = c.dtype == DType::f32;
    g.buffer = scratch_of<float>(Scratch::gemm_c, static_cast<size_t>(table.buffer_floats(k, count)));
    table.gemm(g);
  };
  const int64_t tiles = (rows + slab_rows - 1) / slab_rows, panels = panels_of(columns);
  if (tiles >= 4 * queue.threads) {
    parallel_for(queue, tiles, 1, [&](int64_t begin, int64_t end) {
      part(begin * slab_rows, std::min(rows, end * slab_rows), 0, panels);
    });
  } else {
    parallel_for(queue, panels, 1, [&](int64_t begin, int64_t end) { part(0, rows, begin, end); });
  }
}

// Weights below each other in one matrix, copied only when they are not one already.
Tensor stacked(const Queue& queue, Weights weights) {
  if (weights.size() == 1) return weights[0];
  Tensor all =
      make_tensor(nullptr, {total_out(weights), weights[0].shape[1]}, DType::bf16, weights[0].device);
  all.data = scratch(Scratch::linear_b, static_cast<size_t>(all.bytes()));
  int64_t offset = 0;
  for (const Tensor& w : weights) {
    copy_matrix(queue, all.row_range(offset, offset + w.shape[0]), w);
    offset += w.shape[0];
  }
  return all;
}

Tensor columns_of(const Tensor& t, int64_t begin, int64_t count) {
  return matrix(t).columns(begin, begin + count);
}

}  // namespace

int64_t linear_pack_bytes(Weights weights, kernels::PackFor use) {
  if (!own_product(weights[0].dtype)) return 0;
  const int64_t out = total_out(weights), in = weights[0].shape[1];
  return use == kernels::PackFor::forward ? panels_of(out) * panel_bytes(in)
                                          : panels_of(in) * panel_bytes(out);
}

void linear_pack(const Queue& queue, const kernels::LinearPack& args) {
  if (args.pack.numel() == 0) return;
  const bool forward = args.use == kernels::PackFor::forward;
  // Each weight is packed where it falls, unless it would start inside a panel or a pair.
  const int64_t unit = forward ? panel_columns : 2;
  bool aligned = true;
  for (size_t i = 0; i + 1 < args.weights.size(); ++i)
    aligned = aligned && args.weights[i].shape[0] % unit == 0;
  const Tensor one = aligned ? Tensor{} : stacked(queue, args.weights);
  const Weights parts = aligned ? args.weights : Weights(&one, 1);
  const Bf16GemmTable& table = bf16_gemm_table();
  const int64_t in = args.weights[0].shape[1], out = total_out(args.weights);
  const int64_t stride = panel_bytes(forward ? in : out);
  int64_t before = 0;
  for (const Tensor& w : parts) {
    const int64_t rows = w.shape[0];
    char* to =
        static_cast<char*>(args.pack.data) + (forward ? before / panel_columns * stride : before / 2 * 256);
    parallel_for(queue, panels_of(forward ? rows : in), 1, [&](int64_t begin, int64_t end) {
      if (forward)
        table.pack_panels_transposed(to, stride, row(w, 0), w.strides[0], in, rows, begin, end);
      else
        table.pack_panels(to, stride, row(w, 0), w.strides[0], rows, in, begin, end);
    });
    before += rows;
  }
}

void linear_forward(const Queue& queue, const kernels::LinearForward& args) {
  if (args.pack.defined() && args.pack.numel() > 0)
    return multiply(queue, {.c = args.y, .a = args.x, .panels = args.pack.data, .addend = args.residual});
  int64_t before = 0;
  for (const Tensor& w : args.weights) {
    const Tensor y = columns_of(args.y, before, w.shape[0]);
    if (args.residual.defined() && args.residual.data != args.y.data)
      copy_matrix(queue, y, columns_of(args.residual, before, w.shape[0]));
    kernels::matmul(queue, {.c = y,
                            .a = matrix(args.x),
                            .b = w,
                            .op_b = Op::transpose,
                            .beta = args.residual.defined() ? 1.0f : 0.0f});
    before += w.shape[0];
  }
}

void linear_dgrad(const Queue& queue, const kernels::LinearDgrad& args) {
  const Tensor& dx = args.dx.tensor;
  if (args.pack.defined() && args.pack.numel() > 0)
    return multiply(queue,
                    {.c = dx, .a = args.dy, .panels = args.pack.data, .addend = args.dx.add ? dx : Tensor{}});
  // Several weights add up in fp32 and are rounded once.
  const bool staged = dx.dtype == DType::bf16 && args.weights.size() > 1;
  Tensor sum = matrix(dx);
  if (staged) {
    const Shape shape{dx.rows(), dx.cols()};
    sum = make_tensor(scratch(Scratch::linear_a, static_cast<size_t>(shape.numel()) * 4), shape, DType::f32,
                      dx.device);
    if (args.dx.add) copy_matrix(queue, sum, matrix(dx));
  }
  int64_t before = 0;
  for (const Tensor& w : args.weights) {
    kernels::matmul(queue, {.c = sum,
                            .a = columns_of(args.dy, before, w.shape[0]),
                            .b = w,
                            .beta = args.dx.add || before > 0 ? 1.0f : 0.0f});
    before += w.shape[0];
  }
  if (staged) copy_matrix(queue, matrix(dx), sum);
}

namespace {

// One chunk of rows of x and dy: x becomes panels once, dy becomes slabs block by block in L2.
void wgrad_chunk(const Queue& queue, const kernels::LinearWgrad& args, int64_t begin, int64_t end) {
  constexpr int64_t block_slabs = 32;
  const Bf16GemmTable& table = bf16_gemm_table();
  const Tensor x = args.x, dy = args.dy;
  const int64_t k = end - begin, in = x.cols(), panels = panels_of(in);
  char* b = scratch_of<char>(Scratch::linear_b, static_cast<size_t>(panels * panel_bytes(k)));
  parallel_for(queue, panels, 1, [&](int64_t first, int64_t last) {
    table.pack_panels(b, panel_bytes(k), row(x, begin), x.row_stride(), k, in, first, last);
  });
  int64_t before = 0;
  for (size_t i = 0; i < args.outs.size(); before += args.outs[i++]) {
    if (!args.dweights[i]) continue;
    const Tensor& dw = args.dweights[i].tensor;
    const int64_t out = args.outs[i];
    const bool add = args.dweights[i].add || begin > 0;
    parallel_for(queue, (out + slab_rows - 1) / slab_rows, 1, [&](int64_t first, int64_t last) {
      const int64_t blocks = (last - first + block_slabs - 1) / block_slabs,
                    size = (last - first + blocks - 1) / blocks;
      char* a = scratch_of<char>(Scratch::linear_a, static_cast<size_t>(size * slab_bytes(k)));
      float* buffer = scratch_of<float>(Scratch::gemm_c, static_cast<size_t>(table.buffer_floats(k, in)));
      for (int64_t slab = first; slab < last; slab += size) {
        const int64_t o = slab * slab_rows, rows = std::min(out, std::min(last, slab + size) * slab_rows) - o;
        table.pack_slabs(a, row(dy, begin) + before + o, dy.row_stride(), k, rows, 0,
                         (rows + slab_rows - 1) / slab_rows);
        Bf16Gemm g{};
        g.a = a;
        g.b = b;
        g.k = k;
        g.rows = rows;
        g.columns = in;
        g.c = static_cast<float*>(dw.data) + o * dw.strides[0];
        g.c_row_bytes = dw.strides[0] * 4;
        g.addend = add ? g.c : nullptr;
        g.addend_row_bytes = g.c_row_bytes;
        g.c_is_f32 = 1;
        g.buffer = buffer;
        table.gemm(g);
      }
    });
  }
}

}  // namespace

void linear_wgrad(const Queue& queue, const kernels::LinearWgrad& args) {
  if (own_product(args.x.dtype)) {
    constexpr int64_t most = 2048;  // rows at a time: few passes over dW, and panels that fit L3
    const int64_t n = args.x.rows(), chunks = (n + most - 1) / most,
                  size = ((n + chunks - 1) / chunks + 1) / 2 * 2;
    for (int64_t begin = 0; begin < n; begin += size)
      wgrad_chunk(queue, args, begin, std::min(n, begin + size));
    return;
  }
  int64_t before = 0;
  for (size_t i = 0; i < args.outs.size(); before += args.outs[i++])
    if (args.dweights[i])
      kernels::matmul(queue, {.c = args.dweights[i].tensor,
                              .a = columns_of(args.dy, before, args.outs[i]),
                              .b = matrix(args.x),
                              .op_a = Op::transpose,
                              .beta = args.dweights[i].add ? 1.0f : 0.0f});
}

}  // namespace osprey::cpu
