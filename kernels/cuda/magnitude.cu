#include "kernels/numerics/magnitude.h"

#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/row.h"
#include "kernels/magnitude.h"

namespace osprey::cuda {

namespace {

constexpr int threads = 256;
constexpr int64_t most_chunks = 64;  // of rows of outputs

struct NormShared {
  double sums[threads / warp_size];
};

/// A block for each row.
__global__ void __launch_bounds__(threads)
    norms_of_rows(float* norms, const float* x, int64_t stride, int64_t cols) {
  NormShared& shared = block_shared<NormShared>();
  const float* row = x + blockIdx.x * stride;
  double sum = 0;
  for (int64_t i = threadIdx.x; i < cols; i += threads)
    sum += static_cast<double>(row[i]) * static_cast<double>(row[i]);
  sum = block_sum(sum, shared.sums);
  if (threadIdx.x == 0) norms[blockIdx.x] = static_cast<float>(sqrt(sum));
}

__device__ inline float number(float x) { return x; }
__device__ inline float number(bf16 x) { return to_float(x); }
__device__ inline void set(float& to, float x) { to = x; }
__device__ inline void set(bf16& to, float x) { to = to_bf16(x); }

/// A thread for each column of a run of rows.
template <class T>
__global__ void __launch_bounds__(threads)
    scale_columns(T* y, int64_t stride, int64_t rows, int64_t cols, const float* base, const float* norm,
                  const T* change) {
  const int64_t c = int64_t{blockIdx.x} * threads + threadIdx.x;
  if (c >= cols) return;
  const float factor = length_factor(base[c] + number(change[c]), norm[c]);
  const int64_t begin = rows * blockIdx.y / gridDim.y, end = rows * (blockIdx.y + int64_t{1}) / gridDim.y;
  for (int64_t r = begin; r < end; ++r) {
    T& at = y[r * stride + c];
    set(at, number(at) * factor);
  }
}

/// partial[chunk, column] = the sum of dy y over a run of rows.
template <class T>
__global__ void __launch_bounds__(threads)
    sum_products(double* partial, const T* dy, int64_t dy_stride, const T* y, int64_t y_stride, int64_t rows,
                 int64_t cols) {
  const int64_t c = int64_t{blockIdx.x} * threads + threadIdx.x;
  if (c >= cols) return;
  const int64_t begin = rows * blockIdx.y / gridDim.y, end = rows * (blockIdx.y + int64_t{1}) / gridDim.y;
  double sum = 0;
  for (int64_t r = begin; r < end; ++r)
    sum +=
        static_cast<double>(number(dy[r * dy_stride + c])) * static_cast<double>(number(y[r * y_stride + c]));
  partial[blockIdx.y * cols + c] = sum;
}

template <class T>
__global__ void __launch_bounds__(threads)
    add_products(float* dchange, int64_t add, const double* partial, int64_t chunks, int64_t cols,
                 const float* base, const T* change) {
  const int64_t c = int64_t{blockIdx.x} * threads + threadIdx.x;
  if (c >= cols) return;
  double sum = 0;
  for (int64_t i = 0; i < chunks; ++i) sum += partial[i * cols + c];
  const float d = gradient_of_length(sum, base[c] + number(change[c]));
  dchange[c] = add ? dchange[c] + d : d;
}

unsigned blocks_of(int64_t cols) { return static_cast<unsigned>((cols + threads - 1) / threads); }

template <class T>
void scale(const Queue& queue, const kernels::ScaleLengths& a) {
  const int64_t rows = a.y.rows(), cols = a.y.cols();
  const auto chunks = static_cast<unsigned>(std::clamp<int64_t>(rows / 16, 1, 1024));
  launch("scale_lengths", queue, {.blocks = dim3(blocks_of(cols), chunks), .threads = threads},
         scale_columns<T>, a.y.as<T>(), a.y.row_stride(), rows, cols, static_cast<const float*>(a.base.data),
         static_cast<const float*>(a.norm.data), static_cast<const T*>(a.change.data));
}

template <class T>
void gradient(const Queue& queue, const kernels::LengthGradient& a) {
  const int64_t rows = a.dy.rows(), cols = a.dy.cols(),
                row_bytes = cols * static_cast<int64_t>(sizeof(double));
  const int64_t chunks = std::max<int64_t>(
      1, std::min({rows / 64, most_chunks, Stream::scratch_bytes / std::max<int64_t>(1, row_bytes)}));
  auto* partial = static_cast<double*>(stream_of(queue).scratch(chunks * row_bytes));
  launch("length_gradient", queue,
         {.blocks = dim3(blocks_of(cols), static_cast<unsigned>(chunks)), .threads = threads},
         sum_products<T>, partial, static_cast<const T*>(a.dy.data), a.dy.row_stride(),
         static_cast<const T*>(a.y.data), a.y.row_stride(), rows, cols);
  launch("length_gradient", queue, {.blocks = blocks_of(cols), .threads = threads}, add_products<T>,
         a.dchange.tensor.as<float>(), int64_t{a.dchange.add}, static_cast<const double*>(partial), chunks,
         cols, static_cast<const float*>(a.base.data), static_cast<const T*>(a.change.data));
}

}  // namespace

void row_norms(const Queue& queue, const kernels::RowNorms& a) {
  if (a.x.rows() == 0) return;
  launch(
      "row_norms", queue,
      {.blocks = static_cast<unsigned>(a.x.rows()), .threads = threads, .shared_bytes = sizeof(NormShared)},
      norms_of_rows, a.norms.as<float>(), static_cast<const float*>(a.x.data), a.x.row_stride(), a.x.cols());
}

void scale_lengths(const Queue& queue, const kernels::ScaleLengths& a) {
  if (a.y.numel() == 0) return;
  a.y.dtype == DType::bf16 ? scale<bf16>(queue, a) : scale<float>(queue, a);
}

void length_gradient(const Queue& queue, const kernels::LengthGradient& a) {
  if (a.dy.cols() == 0) return;
  a.dy.dtype == DType::bf16 ? gradient<bf16>(queue, a) : gradient<float>(queue, a);
}

}  // namespace osprey::cuda
