#include "kernels/packed_linear.h"

#include <algorithm>

#include "kernels/linear.h"
#include "kernels/quantize.h"

namespace osprey::kernels {

namespace {

/// Rows of weights that are dequantized together: for a GPU to be filled, for a CPU's panel to stay in its
/// cache.
int64_t panel_rows(const Queue& queue) { return queue.target() == DeviceKind::cuda ? 2048 : 256; }

bool reads_codes(const Queue& queue, int64_t rows) {
  return queue.target() == DeviceKind::cpu && rows <= packed_linear_few_rows;
}

int64_t check_weights(const Queue& queue, std::span<const Packed> weights) {
  require(!weights.empty(), "packed_linear", "no weights");
  int64_t out = 0;
  for (const Packed& w : weights) {
    require_packed("packed_linear", "a weight", w, queue.device);
    require(w.format == weights[0].format && w.cols == weights[0].cols, "packed_linear",
            "weights must be of one format and width, got {} {} wide beside {} {} wide", name(w.format),
            w.cols, name(weights[0].format), weights[0].cols);
    out += w.rows;
  }
  return out;
}

/// A panel after the other through the scratch memory.
void by_panels(const Queue& queue, const PackedLinear& a) {
  int64_t before = 0;
  for (const Packed& w : a.weights)
    for (int64_t begin = 0; begin < w.rows; begin += panel_rows(queue)) {
      const int64_t count = std::min(panel_rows(queue), w.rows - begin);
      const Tensor panel = make_tensor(a.scratch.data, {count, w.cols}, a.x.dtype, a.scratch.device);
      dequantize(queue, {.y = panel, .x = w.row_range(begin, begin + count)});
      linear_forward(queue, {.y = a.y.columns(before, before + count),
                             .x = a.x,
                             .weights = {&panel, 1},
                             .pack = {},
                             .residual = {}});
      before += count;
    }
}

}  // namespace

int64_t packed_linear_scratch(const Queue& queue, int64_t rows, std::span<const Packed> weights) {
  check_weights(queue, weights);
  if (reads_codes(queue, rows)) return 0;
  int64_t most = 0;
  for (const Packed& w : weights) most = std::max(most, w.rows);
  return std::min(most, panel_rows(queue)) * weights[0].cols;
}

void packed_linear(const Queue& queue, const PackedLinear& a) {
  const int64_t out = check_weights(queue, a.weights), rows = a.x.rows(), cols = a.weights[0].cols;
  const auto is_float = [](const Tensor& t) { return t.dtype == DType::f32 || t.dtype == DType::bf16; };
  require(a.x.cols() == cols && is_float(a.x) && a.x.device == queue.device, "packed_linear",
          "x must be f32 or bf16 (M, {}) on {}, got {}", cols, name(queue.device.kind), a.x);
  require(a.y.rows() == rows && a.y.cols() == out && is_float(a.y) && a.y.device == queue.device,
          "packed_linear", "y must be f32 or bf16 ({}, {}) on {}, got {}", rows, out, name(queue.device.kind),
          a.y);
  const int64_t needed = packed_linear_scratch(queue, rows, a.weights);
  require(
      needed == 0 || (a.scratch.defined() && a.scratch.dtype == a.x.dtype && a.scratch.numel() >= needed &&
                      a.scratch.contiguous() && a.scratch.device == queue.device),
      "packed_linear", "scratch must be {} elements of {}, got {}", needed, name(a.x.dtype), a.scratch);
  if (rows == 0 || queue.device.kind == DeviceKind::meta) return;
  reads_codes(queue, rows) ? cpu::packed_linear(queue, a) : by_panels(queue, a);
}

}  // namespace osprey::kernels
