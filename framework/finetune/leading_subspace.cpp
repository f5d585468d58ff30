#include "framework/finetune/leading_subspace.h"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>

#include "framework/memory/arena.h"
#include "kernels/core/random.h"
#include "kernels/device.h"
#include "kernels/matmul.h"

namespace osprey {

namespace {

constexpr int64_t oversampling = 8;
constexpr int power_iterations = 1;

using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Matrix = Eigen::MatrixXd;

/// An orthonormal basis of the columns.
Matrix orthonormal(const Matrix& y) {
  Eigen::HouseholderQR<Matrix> qr(y);
  return qr.householderQ() * Matrix::Identity(y.rows(), y.cols());
}

bool usable(const Matrix& m) { return m.allFinite() && m.squaredNorm() > 0; }

std::vector<float> as_rows(const Matrix& columns) {
  std::vector<float> rows(static_cast<size_t>(columns.size()));
  Eigen::Map<Rows>(rows.data(), columns.cols(), columns.rows()) = columns.transpose().cast<float>();
  return rows;
}

/// Products of the gradient with few columns that lie on the host.
class Products {
 public:
  Products(const Queue& queue, const LeadingSubspace& a, int64_t columns)
      : queue_(queue),
        gradient_(a.gradient),
        flipped_(a.side == Subspace::Side::left),
        memory_("range finder", queue.device,
                (a.gradient.shape[0] + a.gradient.shape[1]) * columns * 4 + 4096) {}

  /// G x, where G is the gradient, transposed where its left side is wanted.
  Matrix times(const Matrix& x) { return product(x, flipped_); }
  /// G^T x.
  Matrix transposed_times(const Matrix& x) { return product(x, !flipped_); }

 private:
  Matrix product(const Matrix& x, bool transposed) {
    const Rows in = x.cast<float>();
    Rows out(gradient_.shape[transposed ? 1 : 0], x.cols());
    const int64_t mark = memory_.mark();
    const Tensor a = memory_.alloc({in.rows(), in.cols()}, DType::f32);
    const Tensor c = memory_.alloc({out.rows(), out.cols()}, DType::f32);
    kernels::upload(queue_, a, in.data());
    kernels::matmul(
        queue_,
        {.c = c, .a = gradient_, .b = a, .op_a = transposed ? kernels::Op::transpose : kernels::Op::none});
    kernels::download(queue_, out.data(), c);
    memory_.rewind(mark);
    return out.cast<double>();
  }

  Queue queue_;
  Tensor gradient_;
  bool flipped_;
  Arena memory_;
};

std::vector<float> by_range_finder(const Queue& queue, const LeadingSubspace& a) {
  const bool left = a.side == Subspace::Side::left;
  const int64_t rows = a.gradient.shape[left ? 1 : 0], cols = a.gradient.shape[left ? 0 : 1];
  const int64_t k = std::min({a.rank + oversampling, rows, cols});
  Products gradient(queue, a, k);
  Matrix y(rows, k);
  for (int64_t i = 0; i < rows * k; ++i)
    y(i / k, i % k) =
        random_normal(a.seed, a.stream + a.draw * 0x9E3779B97F4A7C15ull, static_cast<uint64_t>(i));
  y = gradient.transposed_times(y);  // (cols, k)
  for (int q = 0; q < power_iterations; ++q) {
    if (!usable(y)) return {};
    const Matrix z = gradient.times(orthonormal(y));
    if (!usable(z)) return {};
    y = gradient.transposed_times(orthonormal(z));
  }
  if (!usable(y)) return {};
  const Matrix q = orthonormal(y), c = gradient.times(q);  // (cols, k), (rows, k)
  if (!usable(c)) return {};
  const Eigen::SelfAdjointEigenSolver<Matrix> gram(c.transpose() * c);  // ascending
  return as_rows(q * gram.eigenvectors().rightCols(a.rank).rowwise().reverse());
}

std::vector<float> by_decomposition(const Queue& queue, const LeadingSubspace& a) {
  Rows g(a.gradient.shape[0], a.gradient.shape[1]);
  kernels::download(queue, g.data(), a.gradient);
  const Matrix wide = g.cast<double>();
  if (!usable(wide)) return {};
  const bool left = a.side == Subspace::Side::left;
  const Eigen::BDCSVD<Matrix> svd(wide, left ? Eigen::ComputeThinU : Eigen::ComputeThinV);
  return as_rows((left ? svd.matrixU() : svd.matrixV()).leftCols(a.rank));
}

}  // namespace

std::vector<float> leading_subspace(const Queue& queue, const LeadingSubspace& a) {
  require(a.gradient.shape.rank == 2 && a.gradient.dtype == DType::f32 && a.gradient.contiguous(), "subspace",
          "the gradient must be an f32 matrix, got {}", a.gradient);
  require(a.rank >= 1 && a.rank <= std::min(a.gradient.shape[0], a.gradient.shape[1]), "subspace",
          "rank {} of a gradient {}", a.rank, a.gradient);
  return a.exact ? by_decomposition(queue, a) : by_range_finder(queue, a);
}

std::vector<float> random_subspace(int64_t rank, int64_t cols, uint64_t seed, uint64_t stream) {
  Matrix y(cols, rank);
  for (int64_t i = 0; i < cols * rank; ++i)
    y(i / rank, i % rank) = random_normal(seed, stream, static_cast<uint64_t>(i));
  return as_rows(orthonormal(y));
}

void align_signs(std::vector<float>& basis, const std::vector<float>& before, int64_t rank) {
  const auto cols = static_cast<int64_t>(basis.size()) / rank;
  Eigen::Map<Rows> now(basis.data(), rank, cols);
  const Eigen::Map<const Rows> old(before.data(), rank, cols);
  for (int64_t i = 0; i < rank; ++i)
    if (now.row(i).dot(old.row(i)) < 0) now.row(i) *= -1;
}

}  // namespace osprey
