#include "kernels/outlier_rows.h"

#include "kernels/cuda/launch.h"
#include "kernels/cuda/row.h"
#include "kernels/numerics/outlier_rows.h"

namespace osprey::cuda {

namespace {

constexpr int warps = 8, threads = warps * warp_size;
constexpr int selecting_warps = 32, selecting_threads = selecting_warps * warp_size;
static_assert(row_sums == warp_size, "a lane for each sum");

/// A warp a row.
template <class T>
__global__ void __launch_bounds__(threads)
    squares_of_rows(const T* x, int64_t stride, int64_t rows, int64_t cols, float* squares) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const int64_t row = int64_t{blockIdx.x} * warps + threadIdx.x / warp_size;
  if (row >= rows) return;
  double sum = 0;
  for (int64_t c = lane; c < cols; c += warp_size) {
    const double v = static_cast<double>(to_float(x[row * stride + c]));
    sum += v * v;
  }
  sum = warp_sum(sum);
  if (lane == 0) squares[row] = static_cast<float>(sum);
}

struct Selecting {
  int counts[selecting_warps];
  int larger[selecting_warps], equal[selecting_warps];
};

/// How many keys are at least `bound`; the same in all threads.
__device__ int at_least(uint32_t bound, const float* squares, int64_t n, Selecting& room) {
  int count = 0;
  for (int64_t i = threadIdx.x; i < n; i += selecting_threads) count += row_key(squares[i]) >= bound;
  return block_sum(count, room.counts);
}

/// One block: the k-th largest key bit by bit from the highest, then the rows above it and the first of those
/// that equal it, a thread a row.
__global__ void __launch_bounds__(selecting_threads)
    select_rows(const float* squares, int64_t n, int64_t k, int32_t* rows) {
  Selecting& room = block_shared<Selecting>();
  uint32_t last = 0;  // the key of the last row that is taken
  for (int bit = 30; bit >= 0; --bit) {
    const uint32_t trial = last | 1u << bit;
    if (at_least(trial, squares, n, room) >= k) last = trial;
  }
  const int64_t equal_wanted = k - at_least(last + 1, squares, n, room);
  const int lane = static_cast<int>(threadIdx.x) % warp_size,
            warp = static_cast<int>(threadIdx.x) / warp_size;
  const unsigned before = (1u << lane) - 1;
  int64_t larger_so_far = 0, equal_so_far = 0;
  for (int64_t begin = 0; begin < n; begin += selecting_threads) {
    const int64_t row = begin + threadIdx.x;
    const uint32_t key = row < n ? row_key(squares[row]) : 0;
    const bool larger = row < n && key > last, equal = row < n && key == last;
    const unsigned all_larger = __ballot_sync(full_warp, larger), all_equal = __ballot_sync(full_warp, equal);
    if (lane == 0) room.larger[warp] = __popc(all_larger), room.equal[warp] = __popc(all_equal);
    __syncthreads();
    int64_t larger_before = larger_so_far + __popc(all_larger & before),
            equal_before = equal_so_far + __popc(all_equal & before);
    for (int w = 0; w < selecting_warps; ++w) {
      if (w < warp) larger_before += room.larger[w], equal_before += room.equal[w];
      larger_so_far += room.larger[w], equal_so_far += room.equal[w];
    }
    if (larger || (equal && equal_before < equal_wanted))
      rows[larger_before + (equal_before < equal_wanted ? equal_before : equal_wanted)] =
          static_cast<int32_t>(row);
    __syncthreads();
  }
}

template <class T>
void find(const Queue& queue, const kernels::LargestRows& a) {
  const int64_t n = a.x.rows();
  launch("largest_rows", queue,
         {.blocks = static_cast<unsigned>((n + warps - 1) / warps), .threads = threads}, squares_of_rows<T>,
         a.x.as<T>(), a.x.row_stride(), n, a.x.cols(), a.squares.as<float>());
  launch("largest_rows", queue,
         {.blocks = 1, .threads = selecting_threads, .shared_bytes = sizeof(Selecting)}, select_rows,
         a.squares.as<float>(), n, a.rows.numel(), a.rows.as<int32_t>());
}

/// A block for each row that moves.
template <class T>
__global__ void __launch_bounds__(threads) move_rows(T* y, int64_t y_stride, int64_t y_rows, const T* x,
                                                     int64_t x_stride, int64_t cols, const int32_t* rows) {
  const int64_t to = rows[blockIdx.x];
  if (to < 0 || to >= y_rows) __trap();
  for (int64_t c = threadIdx.x; c < cols; c += threads) y[to * y_stride + c] = x[blockIdx.x * x_stride + c];
}

template <class T>
void scatter(const Queue& queue, const kernels::ScatterRows& a) {
  launch("scatter_rows", queue, {.blocks = static_cast<unsigned>(a.x.rows()), .threads = threads},
         move_rows<T>, a.y.as<T>(), a.y.row_stride(), a.y.rows(), a.x.as<T>(), a.x.row_stride(), a.x.cols(),
         a.rows.as<int32_t>());
}

}  // namespace

void largest_rows(const Queue& queue, const kernels::LargestRows& a) {
  a.x.dtype == DType::bf16 ? find<bf16>(queue, a) : find<float>(queue, a);
}

void scatter_rows(const Queue& queue, const kernels::ScatterRows& a) {
  a.x.dtype == DType::bf16 ? scatter<bf16>(queue, a) : scatter<float>(queue, a);
}

}  // namespace osprey::cuda
