#include "kernels/oscillation.h"

#include "kernels/cuda/launch.h"
#include "kernels/cuda/sums.h"

namespace osprey::cuda {

namespace {

constexpr int threads = 256, warps = threads / warp_size;
constexpr int64_t most_blocks = 1024, run = 128;  // elements of a warp where no scale bounds them

// Eight bytes a member.
struct Look {
  const uint8_t* codes;
  const uint8_t* scales;  // or null
  uint8_t* last;
  float* rate;
  uint8_t* last_scales;
  double* oscillated;  // of the blocks
  double* oscillating;
  int64_t codes_stride, scales_stride, rows, cols, block, element;
};

/// A warp looks at the elements that share a scale.
__global__ void __launch_bounds__(threads) track(const Look a) {
  SumShared& shared = block_shared<SumShared>();
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const int64_t blocks = (a.cols + a.block - 1) / a.block;
  double oscillated = 0, oscillating = 0;
  for (int64_t i = blockIdx.x * int64_t{warps} + threadIdx.x / warp_size; i < a.rows * blocks;
       i += gridDim.x * int64_t{warps}) {
    const int64_t row = i / blocks, begin = i % blocks * a.block,
                  end = begin + a.block < a.cols ? begin + a.block : a.cols;
    bool same = true;
    if (a.scales) {
      const uint8_t now = a.scales[row * a.scales_stride + i % blocks];
      same = a.last_scales[i] == now;
      __syncwarp();  // all have read it
      if (lane == 0) a.last_scales[i] = now;
    }
    for (int64_t c = begin + lane; c < end; c += warp_size) {
      const uint32_t code = a.codes[row * a.codes_stride + c / 2] >> c % 2 * 4 & 15u;
      const int64_t at = row * a.cols + c;
      const OscillationLook look =
          look_at_code(static_cast<Element>(a.element), code, same, a.last[at], a.rate[at]);
      a.last[at] = static_cast<uint8_t>(look.last);
      a.rate[at] = look.rate;
      oscillated += look.oscillated;
      oscillating += look.rate > oscillation_threshold;
    }
  }
  oscillated = block_sum(oscillated, shared.warps);
  if (threadIdx.x == 0) a.oscillated[blockIdx.x] = oscillated;
  oscillating = block_sum(oscillating, shared.warps);
  if (threadIdx.x == 0) a.oscillating[blockIdx.x] = oscillating;
}

}  // namespace

void track_oscillation(const Queue& queue, const kernels::TrackOscillation& args) {
  const bool remembers = args.scales.defined();
  const int64_t block = remembers ? args.y.format.block : run,
                all = args.y.rows * ((args.y.cols + block - 1) / block),
                blocks = std::min((all + warps - 1) / warps, most_blocks);
  double* partial =
      static_cast<double*>(stream_of(queue).scratch(2 * most_blocks * static_cast<int64_t>(sizeof(double))));
  launch("track_oscillation", queue,
         {.blocks = static_cast<unsigned>(blocks), .threads = threads, .shared_bytes = sizeof(SumShared)},
         track,
         Look{.codes = args.y.codes.as<uint8_t>(),
              .scales = remembers ? args.y.scales.as<uint8_t>() : nullptr,
              .last = args.last.as<uint8_t>(),
              .rate = args.rate.as<float>(),
              .last_scales = remembers ? args.scales.as<uint8_t>() : nullptr,
              .oscillated = partial,
              .oscillating = partial + most_blocks,
              .codes_stride = args.y.codes.row_stride(),
              .scales_stride = args.y.scales.row_stride(),
              .rows = args.y.rows,
              .cols = args.y.cols,
              .block = block,
              .element = static_cast<int64_t>(args.y.format.element)});
  for (int64_t i = 0; i < 2; ++i)
    launch("track_oscillation", queue,
           {.blocks = 1, .threads = sum_final_threads, .shared_bytes = sizeof(SumShared)}, final_sum,
           FinalSum{.partial = partial + i * most_blocks,
                    .count = blocks,
                    .sum = args.sums.as<double>() + i,
                    .into = Into::overwrite});
}

}  // namespace osprey::cuda
