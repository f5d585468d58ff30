#include <algorithm>

#include "kernels/cuda/packed_spans.h"
#include "kernels/numerics/block_codec.h"

namespace osprey::cuda {

namespace {

constexpr int sums = static_cast<int>(kernels::quantization_sums);
constexpr int64_t most_chunks = 256;

struct MeasureShared {
  double sums[warps];
};

/// Counts rows whose scales span more than 2^3, and more than 2^14.
__device__ void count_span(double (&total)[sums], const Blocks& y, int64_t row) {
  float least = bits_float(float_infinity), most = 0;
  for (int64_t col = 0; col < y.cols; col += y.by_block ? y.block : y.cols) {
    const uint32_t stored = y.stored_scale(y.scale_place(row, col));
    const float scale = decode_scale(y.scale_type(), stored);
    if (stored == 0 || !(scale < bits_float(float_infinity))) continue;
    least = scale < least ? scale : least;
    most = scale > most ? scale : most;
  }
  const double ratio = most > 0 ? static_cast<double>(most) / static_cast<double>(least) : 1;
  total[6] += ratio > 8;
  total[7] += ratio > 16384;
}

/// Block i sums over a run of rows, into partial[i].
template <class T>
__global__ void __launch_bounds__(threads)
    measure(Dense<T> x, Turn turned, Blocks y, int64_t rule, double* partial) {
  MeasureShared& shared = block_shared<MeasureShared>();
  const int64_t begin = y.rows * blockIdx.x / gridDim.x, end = y.rows * (blockIdx.x + int64_t{1}) / gridDim.x;
  const int64_t spans = (y.cols + span - 1) / span;
  const float limit =
      clip_limit(static_cast<Element>(y.element), y.scale_type(), static_cast<ScaleRule>(rule));
  double total[sums] = {};
  for (int64_t item = threadIdx.x / warp_size; item < (end - begin) * spans; item += warps) {
    const int64_t row = begin + item / spans, col = item % spans * span + threadIdx.x % warp_size * per_lane,
                  left = y.cols - col;
    Four f = x.four(row, col, left);
    turned(f.v, col);
    if (left <= 0) continue;
    const Four q = y.four(row, col, left);
    const float inverse = inverse_scale(y.scale_type(), y.stored_scale(y.scale_place(row, col)), y.whole());
    for (int i = 0; i < per_lane && i < left; ++i) {
      const float v = f.v[i], off = q.v[i] - v;
      total[0] += static_cast<double>(v) * static_cast<double>(v);
      total[1] += static_cast<double>(off) * static_cast<double>(off);
      total[2] += 1;
      total[3] += fabsf(v * inverse) > limit;
      total[4] += v != 0 && q.v[i] == 0;
    }
  }
  for (int64_t row = begin + threadIdx.x; row < end; row += threads) {
    total[5] += 1;
    count_span(total, y, row);
  }
  for (int s = 0; s < sums; ++s) {
    const double sum = block_sum(total[s], shared.sums);
    if (threadIdx.x == 0) partial[blockIdx.x * sums + s] = sum;
  }
}

__global__ void add_partials(const double* partial, int64_t count, double* out, int64_t add) {
  double total = 0;
  for (int64_t i = 0; i < count; ++i) total += partial[i * sums + threadIdx.x];
  out[threadIdx.x] = add ? out[threadIdx.x] + total : total;
}

}  // namespace

void measure_quantization(const Queue& queue, const kernels::MeasureQuantization& a) {
  const int64_t chunks = std::min(a.y.rows, most_chunks);
  // Scratch: signs first, then the sums of the chunks.
  char* scratch = static_cast<char*>(
      stream_of(queue).scratch(sign_bytes + most_chunks * sums * static_cast<int64_t>(sizeof(double))));
  double* partial = reinterpret_cast<double*>(scratch + sign_bytes);
  const Turn turned = turn(queue, a.rotation, a.prescale, 0, reinterpret_cast<uint64_t*>(scratch));
  const auto run = [&](const auto& x, auto kernel) {
    launch(
        "measure_quantization", queue,
        {.blocks = static_cast<unsigned>(chunks), .threads = threads, .shared_bytes = sizeof(MeasureShared)},
        kernel, x, turned, blocks(a.y), static_cast<int64_t>(a.rule), partial);
  };
  if (a.x.dtype == DType::bf16)
    run(dense<bf16>(a.x), measure<bf16>);
  else
    run(dense<float>(a.x), measure<float>);
  launch("measure_quantization", queue, {.blocks = 1, .threads = sums}, add_partials, partial, chunks,
         a.sums.as<double>(), int64_t{a.add});
}

}  // namespace osprey::cuda
