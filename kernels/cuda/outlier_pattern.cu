#include "kernels/outlier_pattern.h"

#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/row.h"

namespace osprey::cuda {

namespace {

constexpr int warps = 8, threads = warps * warp_size;
constexpr int64_t most_chunks = 64;  // of the rows of a part

// Arguments have eight bytes a member.

template <class T>
struct Part {
  const T* x;
  int64_t stride, rows, cols;
};

/// A warp a row.
template <class T>
__global__ void __launch_bounds__(threads) row_means(Part<T> p, float* out) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const int64_t row = int64_t{blockIdx.x} * warps + threadIdx.x / warp_size;
  if (row >= p.rows) return;
  double sum = 0;
  for (int64_t c = lane; c < p.cols; c += warp_size) {
    const double v = static_cast<double>(to_float(p.x[row * p.stride + c]));
    sum += v * v;
  }
  sum = warp_sum(sum);
  if (lane == 0) out[row] = static_cast<float>(sum / static_cast<double>(p.cols));
}

/// A thread a column; block row i sums chunk i of the rows, into row i of `partial`.
template <class T>
__global__ void __launch_bounds__(threads) column_sums(Part<T> p, double* partial) {
  const int64_t column = int64_t{blockIdx.x} * threads + threadIdx.x, chunk = blockIdx.y;
  if (column >= p.cols) return;
  const int64_t end = p.rows * (chunk + 1) / gridDim.y;
  double sum = 0;
  for (int64_t r = p.rows * chunk / gridDim.y; r < end; ++r) {
    const double v = static_cast<double>(to_float(p.x[r * p.stride + column]));
    sum += v * v;
  }
  partial[chunk * p.cols + column] = sum;
}

__global__ void __launch_bounds__(threads)
    column_means(const double* partial, int64_t chunks, int64_t rows, int64_t cols, float* out) {
  const int64_t column = int64_t{blockIdx.x} * threads + threadIdx.x;
  if (column >= cols) return;
  double sum = 0;
  for (int64_t i = 0; i < chunks; ++i) sum += partial[i * cols + column];
  out[column] = static_cast<float>(sum / static_cast<double>(rows));
}

unsigned blocks_for(int64_t items, int64_t each) { return static_cast<unsigned>((items + each - 1) / each); }

template <class T>
void means(const Queue& queue, const kernels::LineSquares& a) {
  const int64_t cols = a.columns.numel();
  int64_t chunks = 0;
  for (const Tensor& x : a.xs) chunks += std::min(x.rows(), most_chunks);
  double* const partial =
      static_cast<double*>(stream_of(queue).scratch(chunks * cols * static_cast<int64_t>(sizeof(double))));
  double* sums = partial;
  float* rows = a.rows.as<float>();
  for (const Tensor& x : a.xs) {
    const Part<T> part{x.as<T>(), x.row_stride(), x.rows(), cols};
    const int64_t here = std::min(x.rows(), most_chunks);
    launch("line_squares", queue, {.blocks = blocks_for(x.rows(), warps), .threads = threads}, row_means<T>,
           part, rows);
    launch("line_squares", queue,
           {.blocks = dim3(blocks_for(cols, threads), static_cast<unsigned>(here)), .threads = threads},
           column_sums<T>, part, sums);
    rows += x.rows();
    sums += here * cols;
  }
  launch("line_squares", queue, {.blocks = blocks_for(cols, threads), .threads = threads}, column_means,
         partial, chunks, a.rows.numel(), cols, a.columns.as<float>());
}

struct Counting {
  int counts[warps];
};

/// How many of the numbers are below `bound`; the same in all threads of the block.
__device__ int below(const uint32_t* bits, int64_t n, uint32_t bound, Counting& room) {
  int count = 0;
  for (int64_t i = threadIdx.x; i < n; i += threads) count += bits[i] < bound;
  return block_sum(count, room.counts);
}

/// The number that has exactly `smaller` numbers before it in ascending order, bit by bit from the highest.
__device__ uint32_t nth(const uint32_t* bits, int64_t n, int64_t smaller, Counting& room) {
  uint32_t value = 0;
  for (int bit = 30; bit >= 0; --bit) {
    const uint32_t trial = value | 1u << bit;
    if (below(bits, n, trial, room) <= smaller) value = trial;
  }
  return value;
}

__global__ void __launch_bounds__(threads) count(const float* rows, int64_t row_count, const float* columns,
                                                 int64_t column_count, double ratio, double* counts) {
  Counting& room = block_shared<Counting>();
  const auto spread = [&](const float* squares, int64_t n) {
    const uint32_t* bits = reinterpret_cast<const uint32_t*>(squares);
    return LineSpread{nth(bits, n, n - 1, room), nth(bits, n, (n - 1) / 2, room)};
  };
  const LineSpread by_row = spread(rows, row_count), by_column = spread(columns, column_count);
  if (threadIdx.x == 0) counts[static_cast<int64_t>(pattern_of(by_row, by_column, ratio))] += 1;
}

}  // namespace

void line_squares(const Queue& queue, const kernels::LineSquares& a) {
  a.xs[0].dtype == DType::bf16 ? means<bf16>(queue, a) : means<float>(queue, a);
}

void count_pattern(const Queue& queue, const kernels::CountPattern& a) {
  launch("count_pattern", queue, {.blocks = 1, .threads = threads, .shared_bytes = sizeof(Counting)}, count,
         a.rows.as<float>(), a.rows.numel(), a.columns.as<float>(), a.columns.numel(), a.ratio,
         a.counts.as<double>());
}

}  // namespace osprey::cuda
