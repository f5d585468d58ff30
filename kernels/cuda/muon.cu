#include "kernels/muon.h"

#include "kernels/cuda/four.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/sums.h"
#include "kernels/numerics/muon.h"

namespace osprey::cuda {

using kernels::Layout;
using kernels::Momentum;

namespace {

constexpr int threads = sum_threads;
constexpr int groups = 4;  // of four elements, whose loads a thread has in flight together
constexpr int pass = threads * groups * 4;
constexpr int64_t chunk = 2 * pass;  // elements of a block where no tiles are needed

unsigned chunks_of(int64_t count) { return static_cast<unsigned>((count + chunk - 1) / chunk); }

// ---- momentum

// Eight bytes a member, as in adamw.cu.
struct MomentumParameters {
  float* momentum;
  const float* grad;
  int64_t count;
  double beta;
  int64_t nesterov;
  const double* control;
  double* partial;
};

__global__ void __launch_bounds__(threads) add_momentum(const MomentumParameters p) {
  if (p.control[kernels::step_apply] == 0) {
    if (threadIdx.x == 0) p.partial[blockIdx.x] = 0;
    return;
  }
  const double scale = p.control[kernels::step_grad_scale];
  const float beta = static_cast<float>(p.beta), grad_scale = static_cast<float>(scale);
  const MuonDirectionFactors f = muon_direction_factors(p.nesterov, p.beta, scale, 1);
  const int64_t begin = blockIdx.x * chunk, end = begin + chunk < p.count ? begin + chunk : p.count;
  double total = 0;
  for (int64_t at = begin + static_cast<int64_t>(threadIdx.x) * 4; at < end; at += pass) {
    Four m[groups], grad[groups];
#pragma unroll
    for (int g = 0; g < groups; ++g) {
      const int64_t i = at + g * threads * 4;
      m[g] = load_four(p.momentum + i, end - i);
      grad[g] = load_four(p.grad + i, end - i);
    }
#pragma unroll
    for (int g = 0; g < groups; ++g) {
      const int64_t i = at + g * threads * 4;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        m[g].v[j] = muon_momentum_element(m[g].v[j], grad[g].v[j], beta, grad_scale);
        const double u = muon_direction_element(m[g].v[j], grad[g].v[j], f);
        total += u * u;
      }
      store_four(p.momentum + i, end - i, m[g]);
    }
  }
  SumShared& shared = block_shared<SumShared>();
  total = block_sum(total, shared.warps);
  if (threadIdx.x == 0) p.partial[blockIdx.x] = total;
}

// ---- direction

template <class T>
struct DirectionParameters {
  T* x;
  const float *momentum, *grad;
  int64_t rows, cols;  // of momentum
  double beta, safety;
  int64_t nesterov;
  const double *control, *sum_of_squares;
};

/// Square tiles go through shared memory to be transposed; one more column keeps a column's elements in
/// different banks.
constexpr int side = 64;
struct Shared {
  MuonDirectionFactors factors;
  float tile[side][side + 1];
};
constexpr int tile_rows = threads * 4 / side;  // that a block moves at a time, four elements a thread
constexpr int tile_passes = side / tile_rows;

struct TileThread {
  int row, col;  // of its first four elements; the others are tile_rows further down each
};
__device__ TileThread tile_thread() {
  const int t = static_cast<int>(threadIdx.x);
  return {t / (side / 4), t % (side / 4) * 4};
}

/// How many elements of a row there are from (row, col) on; none in rows that do not exist.
__device__ int64_t left_in_row(int64_t row, int64_t col, int64_t rows, int64_t cols) {
  return row < rows ? cols - col : 0;
}

dim3 tiles_of(int64_t rows, int64_t cols) {
  return dim3(static_cast<unsigned>((cols + side - 1) / side),
              static_cast<unsigned>((rows + side - 1) / side));
}

/// The factors of this step, formed once a block: double arithmetic is scarce on some GPUs.
template <class T>
__device__ MuonDirectionFactors factors_of(const DirectionParameters<T>& p, MuonDirectionFactors& shared) {
  if (threadIdx.x == 0)
    shared = muon_direction_factors(p.nesterov, p.beta, p.control[kernels::step_grad_scale],
                                    muon_direction_scale(*p.sum_of_squares, p.safety));
  __syncthreads();
  return shared;
}

template <class T>
__global__ void __launch_bounds__(threads) direction(const DirectionParameters<T> p) {
  const MuonDirectionFactors f = factors_of(p, block_shared<MuonDirectionFactors>());
  const int64_t count = p.rows * p.cols;
  const int64_t begin = blockIdx.x * chunk, end = begin + chunk < count ? begin + chunk : count;
  for (int64_t at = begin + static_cast<int64_t>(threadIdx.x) * 4; at < end; at += pass) {
    Four m[groups], grad[groups];
#pragma unroll
    for (int g = 0; g < groups; ++g) {
      const int64_t i = at + g * threads * 4;
      m[g] = load_four(p.momentum + i, end - i);
      grad[g] = load_four(p.grad + i, end - i);
    }
#pragma unroll
    for (int g = 0; g < groups; ++g) {
      const int64_t i = at + g * threads * 4;
      Four u;
#pragma unroll
      for (int j = 0; j < 4; ++j) u.v[j] = muon_direction_element(m[g].v[j], grad[g].v[j], f);
      store_four(p.x + i, end - i, u);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(threads) direction_transposed(const DirectionParameters<T> p) {
  Shared& shared = block_shared<Shared>();
  const MuonDirectionFactors f = factors_of(p, shared.factors);
  const int64_t row0 = static_cast<int64_t>(blockIdx.y) * side,
                col0 = static_cast<int64_t>(blockIdx.x) * side;
  const TileThread t = tile_thread();
  Four m[tile_passes], grad[tile_passes];
#pragma unroll
  for (int k = 0; k < tile_passes; ++k) {
    const int64_t r = row0 + t.row + k * tile_rows, c = col0 + t.col;
    const int64_t left = left_in_row(r, c, p.rows, p.cols);
    m[k] = load_four(p.momentum + r * p.cols + c, left);
    grad[k] = load_four(p.grad + r * p.cols + c, left);
  }
#pragma unroll
  for (int k = 0; k < tile_passes; ++k)
#pragma unroll
    for (int j = 0; j < 4; ++j)
      shared.tile[t.row + k * tile_rows][t.col + j] = muon_direction_element(m[k].v[j], grad[k].v[j], f);
  __syncthreads();
#pragma unroll
  for (int k = 0; k < tile_passes; ++k) {
    const int64_t c = col0 + t.row + k * tile_rows, r = row0 + t.col;
    Four u;
#pragma unroll
    for (int j = 0; j < 4; ++j) u.v[j] = shared.tile[t.col + j][t.row + k * tile_rows];
    store_four(p.x + c * p.rows + r, left_in_row(c, r, p.cols, p.rows), u);
  }
}

template <class T>
void launch_direction(const Queue& queue, const kernels::MuonDirection& a) {
  const DirectionParameters<T> p = {.x = a.x.as<T>(),
                                    .momentum = a.momentum.as<float>(),
                                    .grad = a.grad.as<float>(),
                                    .rows = a.momentum.shape[0],
                                    .cols = a.momentum.shape[1],
                                    .beta = a.beta,
                                    .safety = a.safety,
                                    .nesterov = a.form == Momentum::nesterov,
                                    .control = a.control.as<double>(),
                                    .sum_of_squares = a.sum_of_squares.as<double>()};
  if (a.layout == Layout::same)
    launch("muon_direction", queue,
           {dim3(chunks_of(p.rows * p.cols)), dim3(threads), sizeof(MuonDirectionFactors)}, direction<T>, p);
  else
    launch("muon_direction", queue, {tiles_of(p.rows, p.cols), dim3(threads), sizeof(Shared)},
           direction_transposed<T>, p);
}

// ---- update

template <class T>
struct UpdateParameters {
  bf16* value;  // null: only master is written
  float* master;
  const T* x;
  int64_t rows, cols;  // of master
  double step_size, decay;
  const double* control;
};

struct UpdateFactors {
  float step_size, decay;
};
template <class T>
__device__ UpdateFactors factors_of(const UpdateParameters<T>& p) {
  const double factor = p.control[kernels::step_learning_rate_factor];
  return {static_cast<float>(p.step_size * factor), static_cast<float>(p.decay * factor)};
}

/// Four elements of master that begin at `at`.
template <class T>
__device__ void update_four(const UpdateParameters<T>& p, const UpdateFactors& f, int64_t at, int64_t left,
                            Four master, const Four& x) {
#pragma unroll
  for (int j = 0; j < 4; ++j) master.v[j] = muon_update_element(master.v[j], x.v[j], f.step_size, f.decay);
  store_four(p.master + at, left, master);
  if (p.value) store_four(p.value + at, left, master);
}

template <class T>
__global__ void __launch_bounds__(threads) update(const UpdateParameters<T> p) {
  if (p.control[kernels::step_apply] == 0) return;
  const UpdateFactors f = factors_of(p);
  const int64_t count = p.rows * p.cols;
  const int64_t begin = blockIdx.x * chunk, end = begin + chunk < count ? begin + chunk : count;
  for (int64_t at = begin + static_cast<int64_t>(threadIdx.x) * 4; at < end; at += pass) {
    Four master[groups], x[groups];
#pragma unroll
    for (int g = 0; g < groups; ++g) {
      const int64_t i = at + g * threads * 4;
      master[g] = load_four(p.master + i, end - i);
      x[g] = load_four(p.x + i, end - i);
    }
#pragma unroll
    for (int g = 0; g < groups; ++g) {
      const int64_t i = at + g * threads * 4;
      update_four(p, f, i, end - i, master[g], x[g]);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(threads, 3) update_transposed(const UpdateParameters<T> p) {
  if (p.control[kernels::step_apply] == 0) return;
  Shared& shared = block_shared<Shared>();
  const UpdateFactors f = factors_of(p);
  const int64_t row0 = static_cast<int64_t>(blockIdx.y) * side,
                col0 = static_cast<int64_t>(blockIdx.x) * side;
  const TileThread t = tile_thread();
  Four master[tile_passes], x[tile_passes];
#pragma unroll
  for (int k = 0; k < tile_passes; ++k) {
    const int64_t xc = col0 + t.row + k * tile_rows, xr = row0 + t.col;
    x[k] = load_four(p.x + xc * p.rows + xr, left_in_row(xc, xr, p.cols, p.rows));
    const int64_t r = row0 + t.row + k * tile_rows, c = col0 + t.col;
    master[k] = load_four(p.master + r * p.cols + c, left_in_row(r, c, p.rows, p.cols));
  }
#pragma unroll
  for (int k = 0; k < tile_passes; ++k)
#pragma unroll
    for (int j = 0; j < 4; ++j) shared.tile[t.col + j][t.row + k * tile_rows] = x[k].v[j];
  __syncthreads();
#pragma unroll
  for (int k = 0; k < tile_passes; ++k) {
    const int64_t r = row0 + t.row + k * tile_rows, c = col0 + t.col;
    Four u;
#pragma unroll
    for (int j = 0; j < 4; ++j) u.v[j] = shared.tile[t.row + k * tile_rows][t.col + j];
    update_four(p, f, r * p.cols + c, left_in_row(r, c, p.rows, p.cols), master[k], u);
  }
}

template <class T>
void launch_update(const Queue& queue, const kernels::MuonUpdate& a) {
  const UpdateParameters<T> p = {.value = a.value.dtype == DType::bf16 ? a.value.as<bf16>() : nullptr,
                                 .master = a.master.as<float>(),
                                 .x = a.x.as<T>(),
                                 .rows = a.master.shape[0],
                                 .cols = a.master.shape[1],
                                 .step_size = a.step_size,
                                 .decay = a.decay,
                                 .control = a.control.as<double>()};
  if (a.layout == Layout::same)
    launch("muon_update", queue, {dim3(chunks_of(p.rows * p.cols)), dim3(threads)}, update<T>, p);
  else
    launch("muon_update", queue, {tiles_of(p.rows, p.cols), dim3(threads), sizeof(Shared)},
           update_transposed<T>, p);
}

}  // namespace

void muon_momentum(const Queue& queue, const kernels::MuonMomentum& a) {
  const int64_t blocks = chunks_of(a.momentum.numel());
  const MomentumParameters p = {.momentum = a.momentum.as<float>(),
                                .grad = a.grad.as<float>(),
                                .count = a.momentum.numel(),
                                .beta = a.beta,
                                .nesterov = a.form == Momentum::nesterov,
                                .control = a.control.as<double>(),
                                .partial = static_cast<double*>(
                                    stream_of(queue).scratch(blocks * static_cast<int64_t>(sizeof(double))))};
  launch("muon_momentum", queue, {dim3(static_cast<unsigned>(blocks)), dim3(threads), sizeof(SumShared)},
         add_momentum, p);
  launch("muon_momentum", queue, {dim3(1), dim3(sum_final_threads), sizeof(SumShared)}, final_sum,
         FinalSum{.partial = p.partial,
                  .count = blocks,
                  .sum = a.sum_of_squares.as<double>(),
                  .into = Into::overwrite});
}

void muon_direction(const Queue& queue, const kernels::MuonDirection& a) {
  if (a.x.dtype == DType::bf16)
    launch_direction<bf16>(queue, a);
  else
    launch_direction<float>(queue, a);
}

void muon_update(const Queue& queue, const kernels::MuonUpdate& a) {
  if (a.x.dtype == DType::bf16)
    launch_update<bf16>(queue, a);
  else
    launch_update<float>(queue, a);
}

}  // namespace osprey::cuda
