#include "kernels/rope.h"

#include <cmath>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels/cpu/isa/rope.h"

namespace osprey::cpu {

namespace {

/// Cosines and sines of every (position, frequency) up to the longest position seen so far.
struct Angles {
  double theta;
  RopeScaling scaling;
  int64_t half, positions;
  std::vector<float> cosines, sines;
};

std::shared_ptr<const Angles> make_angles(double theta, const RopeScaling& scaling, int64_t half,
                                          int64_t positions) {
  auto a = std::make_shared<Angles>(Angles{theta, scaling, half, positions, {}, {}});
  a->cosines.reserve(static_cast<size_t>(positions * half));
  a->sines.reserve(static_cast<size_t>(positions * half));
  std::vector<double> frequencies;
  for (int i = 0; i < static_cast<int>(half); ++i)
    frequencies.push_back(std::pow(theta, -static_cast<double>(i) / static_cast<double>(half)) *
                          rope_stretch(scaling, theta, i, static_cast<int>(half)));
  for (int64_t p = 0; p < positions; ++p)
    for (const double frequency : frequencies) {
      const double angle = static_cast<double>(p) * frequency;
      a->cosines.push_back(static_cast<float>(scaling.magnitude * std::cos(angle)));
      a->sines.push_back(static_cast<float>(scaling.magnitude * std::sin(angle)));
    }
  return a;
}

/// Tables are made once and shared by layers, micro batches and ranks that are threads.
std::shared_ptr<const Angles> angles_for(double theta, const RopeScaling& scaling, int64_t half,
                                         int64_t positions) {
  static std::mutex mutex;
  static std::vector<std::shared_ptr<const Angles>> tables;
  const std::lock_guard lock(mutex);
  for (auto& table : tables)
    if (table->theta == theta && table->half == half && table->scaling == scaling) {
      if (table->positions < positions)
        table = make_angles(theta, scaling, half, std::max(positions, 2 * table->positions));
      return table;
    }
  tables.push_back(make_angles(theta, scaling, half, std::max<int64_t>(positions, 512)));
  return tables.back();
}

int64_t longest_position(const Tensor& positions) {
  const int32_t* p = positions.as<int32_t>();
  int32_t least = 0, most = 0;
  for (int64_t i = 0; i < positions.numel(); ++i) {
    least = std::min(least, p[i]);
    most = std::max(most, p[i]);
  }
  require(least >= 0, "rope", "positions must not be negative, got {}", least);
  return int64_t{most} + 1;
}

/// The rows [begin, end) of one of the two matrices; `column` of `saved` is where its heads begin.
struct Common {
  std::shared_ptr<const Angles> angles;
  const int32_t* positions;
  int64_t head_size;
  float eps;

  RopeRows rows(int64_t begin, int64_t end, int64_t cols, const Tensor& weight, const Tensor& saved,
                int64_t column) const {
    RopeRows m{};
    m.rows = end - begin;
    m.heads = cols / head_size;
    m.head_size = head_size;
    m.positions = positions + begin;
    m.cosines = angles->cosines.data();
    m.sines = angles->sines.data();
    m.weight = weight.defined() ? weight.data : nullptr;
    m.eps = eps;
    if (saved.defined()) {
      const Tensor part = saved.columns(column, column + cols).row_range(begin, end);
      m.saved = part.data;
      m.saved_stride = part.row_stride();
    }
    return m;
  }
};

Common common(const Tensor& positions, int64_t head_size, double theta, const RopeScaling& scaling,
              float eps) {
  return {angles_for(theta, scaling, head_size / 2, longest_position(positions)), positions.as<int32_t>(),
          head_size, eps};
}

}  // namespace

void rope_forward(const Queue& queue, const kernels::RopeForward& a) {
  const Common c = common(a.positions, a.head_size, a.theta, a.scaling, a.eps);
  const auto run = a.q.dtype == DType::bf16 ? rope_table().forward_bf16 : rope_table().forward_f32;
  parallel_for(queue, a.q.rows(), 16, [&](int64_t begin, int64_t end) {
    const auto one = [&](const Tensor& x, const Tensor& weight, int64_t column) {
      RopeRows m = c.rows(begin, end, x.cols(), weight, a.saved, column);
      m.x = x.row_range(begin, end).data;
      m.x_stride = x.row_stride();
      run(m);
    };
    one(a.q, a.q_weight, 0);
    one(a.k, a.k_weight, a.q.cols());
  });
}

void rope_backward(const Queue& queue, const kernels::RopeBackward& a) {
  const Common c = common(a.positions, a.head_size, a.theta, a.scaling, a.eps);
  const auto run = a.dy_q.dtype == DType::bf16 ? rope_table().backward_bf16 : rope_table().backward_f32;
  const int64_t rows = a.dy_q.rows(), chunks = kernels::rope_partials(queue, rows), size = a.head_size;
  const bool norms = a.q_weight.defined() || a.k_weight.defined();
  float* partial = norms ? a.partial.as<float>() : nullptr;
  // Chunks of rows do not depend on threads, and their parts of the weight gradients are summed in
  // order.
  parallel_for(queue, chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = rows * i / chunks, end = rows * (i + 1) / chunks;
      float* mine = norms ? partial + i * 2 * size : nullptr;
      if (mine) std::fill(mine, mine + 2 * size, 0.0f);
      const auto one = [&](const Tensor& dx, const Tensor& dy, const Tensor& weight, int64_t column,
                           float* dweight) {
        RopeRows m = c.rows(begin, end, dy.cols(), weight, a.saved, column);
        m.dy = dy.row_range(begin, end).data;
        m.dy_stride = dy.row_stride();
        m.dweight = dweight;
        if (dx.defined()) {
          m.x = dx.row_range(begin, end).data;
          m.x_stride = dx.row_stride();
        }
        run(m);
      };
      one(a.dx_q, a.dy_q, a.q_weight, 0, mine);
      one(a.dx_k, a.dy_k, a.k_weight, a.dy_q.cols(), mine ? mine + size : nullptr);
    }
  });
  const auto sum = [&](const Accum& out, int64_t column) {
    if (!out) return;
    float* to = out.tensor.as<float>();
    for (int64_t d = 0; d < size; ++d) {
      float total = out.add ? to[d] : 0.0f;
      for (int64_t i = 0; i < chunks; ++i) total += partial[i * 2 * size + column + d];
      to[d] = total;
    }
  };
  sum(a.dq_weight, 0);
  sum(a.dk_weight, size);
}

}  // namespace osprey::cpu
