#include "kernels/cuda/product.h"

#include "kernels/cuda/blas.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/row.h"

namespace osprey::cuda {

namespace {

struct Rows {
  bf16* d;
  const float* sum;
  const bf16* c;
  int64_t d_stride, sum_stride, c_stride;
  int32_t cols;  // as many as fit the scratch memory of a stream
  float beta;
};

/// One thread an element: this path serves mixed dtypes and scattered weights, not the inner loop of
/// training.
__global__ void add_rounded_kernel(Rows a) {
  const int64_t row = blockIdx.x;
  for (int j = static_cast<int>(threadIdx.x); j < a.cols; j += static_cast<int>(blockDim.x)) {
    float v = a.sum[row * a.sum_stride + j];
    if (a.beta != 0) v += a.beta * to_float(a.c[row * a.c_stride + j]);
    a.d[row * a.d_stride + j] = to_bf16(v);
  }
}

int64_t row_stride(const Tensor& t) { return t.strides[static_cast<size_t>(t.shape.rank) - 2]; }
int64_t batch_stride(const Tensor& t) { return t.shape.rank == 3 ? t.strides[0] : 0; }

/// Matrix `index` of a batch.
Tensor slice(const Tensor& t, int64_t index) {
  if (t.shape.rank == 2) return t;
  Tensor s = make_tensor(static_cast<char*>(t.data) + index * t.strides[0] * size_bytes(t.dtype),
                         {t.shape[1], t.shape[2]}, t.dtype, t.device);
  s.strides[0] = t.strides[1];
  return s;
}

/// bf16 of f32 operands: the library has no such product.
void staged(const Queue& queue, const Product& p) {
  const int64_t batch = p.d.shape.rank == 3 ? p.d.shape[0] : 1, rows = p.d.shape[-2], cols = p.d.shape[-1];
  const int64_t most = std::min(rows, scratch_rows(cols));
  void* memory = stream_of(queue).scratch(most * cols * 4);
  for (int64_t i = 0; i < batch; ++i)
    for (int64_t begin = 0; begin < rows; begin += most) {
      const int64_t end = std::min(rows, begin + most);
      const Tensor sum = make_tensor(memory, {end - begin, cols}, DType::f32, p.d.device);
      const Tensor a = slice(p.a, i), d = slice(p.d, i).row_range(begin, end);
      product(queue, {.d = sum,
                      .a = p.op_a == kernels::Op::none ? a.row_range(begin, end) : a.columns(begin, end),
                      .b = slice(p.b, i),
                      .op_a = p.op_a,
                      .op_b = p.op_b,
                      .alpha = p.alpha});
      const Tensor c = p.c.defined() ? slice(p.c, i).row_range(begin, end) : d;
      add_rounded(queue, {.d = d, .sum = sum, .c = c, .beta = p.beta});
    }
}

}  // namespace

int64_t scratch_rows(int64_t cols) {
  const int64_t rows = Stream::scratch_bytes / 4 / cols;
  require(rows > 0, "gemm", "rows of {} floats do not fit the scratch memory of a stream", cols);
  return rows;
}

void add_rounded(const Queue& queue, const AddRounded& args) {
  const auto cols = static_cast<int32_t>(args.d.cols());
  const Rows rows{args.d.as<bf16>(),
                  args.sum.as<float>(),
                  args.c.as<bf16>(),
                  args.d.row_stride(),
                  args.sum.row_stride(),
                  args.c.row_stride(),
                  cols,
                  args.beta};
  const int threads = std::clamp((cols + 31) / 32 * 32, 32, 256);
  launch("rounding a product", queue,
         {dim3(static_cast<unsigned>(args.d.rows())), dim3(static_cast<unsigned>(threads)), 0},
         add_rounded_kernel, rows);
}

void product(const Queue& queue, const Product& p) {
  if (p.a.dtype == DType::f32 && p.d.dtype == DType::bf16) return staged(queue, p);
  const bool transpose_a = p.op_a == kernels::Op::transpose;
  const Tensor& c = p.c.defined() ? p.c : p.d;
  stream_of(queue).blas().gemm({.a = p.a.data,
                                .b = p.b.data,
                                .c = c.data,
                                .d = p.d.data,
                                .input = p.a.dtype,
                                .output = p.d.dtype,
                                .transpose_a = transpose_a,
                                .transpose_b = p.op_b == kernels::Op::transpose,
                                .m = p.d.shape[-2],
                                .n = p.d.shape[-1],
                                .k = p.a.shape[transpose_a ? -2 : -1],
                                .a_stride = row_stride(p.a),
                                .b_stride = row_stride(p.b),
                                .c_stride = row_stride(c),
                                .d_stride = row_stride(p.d),
                                .batch = p.d.shape.rank == 3 ? p.d.shape[0] : 1,
                                .a_batch_stride = batch_stride(p.a),
                                .b_batch_stride = batch_stride(p.b),
                                .c_batch_stride = batch_stride(c),
                                .d_batch_stride = batch_stride(p.d),
                                .alpha = p.alpha,
                                .beta = p.beta});
}

}  // namespace osprey::cuda
