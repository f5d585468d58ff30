// cuBLASLt's place on the CPU: the same products in plain loops, done as device work in stream order.

#include "kernels/cuda/blas.h"

#include <algorithm>
#include <vector>

#include "kernels/numerics/block_codec.h"
#include "tests/support/executor/executor.h"

namespace osprey::cuda {

namespace {

float load(const void* p, DType dtype, int64_t i) {
  if (dtype == DType::u8) return decode_element(Element::e4m3, static_cast<const uint8_t*>(p)[i]);
  return dtype == DType::bf16 ? to_float(static_cast<const bf16*>(p)[i]) : static_cast<const float*>(p)[i];
}

void store(void* p, DType dtype, int64_t i, float v) {
  if (dtype == DType::bf16)
    static_cast<bf16*>(p)[i] = to_bf16(v);
  else
    static_cast<float*>(p)[i] = v;
}

/// op(p) as a dense (rows, cols) matrix of floats.
std::vector<float> dense(const void* p, DType dtype, int64_t offset, int64_t stride, bool transposed,
                         int64_t rows, int64_t cols) {
  std::vector<float> out(static_cast<size_t>(rows * cols));
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c)
      out[static_cast<size_t>(r * cols + c)] =
          load(p, dtype, offset + (transposed ? c * stride + r : r * stride + c));
  return out;
}

/// sum[r] (n) += a_r b for up to four rows of a (., k), so that a row of b is read once for them.
template <int Rows>
void multiply_rows(float* sum, const float* a, const float* b, int64_t n, int64_t k) {
  for (int64_t l = 0; l < k; ++l) {
    float left[Rows];
    for (int r = 0; r < Rows; ++r) left[r] = a[r * k + l];
    const float* right = b + l * n;
#pragma omp simd
    for (int64_t j = 0; j < n; ++j)
      for (int r = 0; r < Rows; ++r) sum[r * n + j] += left[r] * right[j];
  }
}

void multiply(const Gemm& g, int64_t index) {
  const std::vector<float> a =
      dense(g.a, g.input, index * g.a_batch_stride, g.a_stride, g.transpose_a, g.m, g.k);
  const std::vector<float> b =
      dense(g.b, g.input, index * g.b_batch_stride, g.b_stride, g.transpose_b, g.k, g.n);
  const void* c = g.c ? g.c : g.d;
  const int64_t c_stride = g.c ? g.c_stride : g.d_stride;
  const int64_t c_offset = index * (g.c ? g.c_batch_stride : g.d_batch_stride);
  std::vector<float> sum(static_cast<size_t>(4 * g.n));
  for (int64_t first = 0; first < g.m; first += 4) {
    const int64_t rows = std::min<int64_t>(4, g.m - first);
    std::fill(sum.begin(), sum.end(), 0.0f);
    if (rows == 4)
      multiply_rows<4>(sum.data(), a.data() + first * g.k, b.data(), g.n, g.k);
    else
      for (int64_t r = 0; r < rows; ++r)
        multiply_rows<1>(sum.data() + r * g.n, a.data() + (first + r) * g.k, b.data(), g.n, g.k);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = 0; j < g.n; ++j) {
        const int64_t i = first + r;
        const float scale = g.a_scales ? g.a_scales[i] * g.b_scales[j] : 1.0f;
        float v = g.alpha * (scale * sum[static_cast<size_t>(r * g.n + j)]);
        if (g.beta != 0) v += g.beta * load(c, g.output, c_offset + i * c_stride + j);
        store(g.d, g.output, index * g.d_batch_stride + i * g.d_stride + j, v);
      }
  }
}

}  // namespace

struct Blas::State {
  Stream& stream;
};

Blas::Blas(Stream& stream) : state_(new State{stream}) {}
Blas::~Blas() = default;

std::string Blas::label() const { return "plain loops"; }

namespace {

/// What cuBLASLt asks of FP8 operands.
bool fits_fp8(const Gemm& g) {
  const int64_t size = size_bytes(g.output);
  const auto at_sixteen = [](const void* p, int64_t stride_bytes) {
    return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride_bytes % 16 == 0;
  };
  return !g.transpose_a && g.transpose_b && g.batch == 1 && g.k % 16 == 0 && g.n % 16 == 0 &&
         at_sixteen(g.a, g.a_stride) && at_sixteen(g.b, g.b_stride) && at_sixteen(g.d, g.d_stride * size) &&
         (!g.c || at_sixteen(g.c, g.c_stride * size)) && (g.a_scales == nullptr) == (g.b_scales == nullptr);
}

}  // namespace

bool Blas::has(const Gemm& gemm) {
  if (gemm.input == DType::u8) return fits_fp8(gemm);
  return gemm.input == DType::bf16 || gemm.output == DType::f32;
}

void Blas::gemm(const Gemm& gemm) {
  require(gemm.k > 0 && has(gemm), "gemm", "the library has no product {} x {} x {} of {} to {}", gemm.m,
          gemm.n, gemm.k, name(gemm.input), name(gemm.output));
  executor::run_on_device(state_->stream.handle(), [gemm] {
    for (int64_t i = 0; i < gemm.batch; ++i) multiply(gemm, i);
  });
}

}  // namespace osprey::cuda
