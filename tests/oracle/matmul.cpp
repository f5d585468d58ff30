#include "tests/oracle/matmul.h"

#include <cmath>

namespace osprey::oracle {

Product matmul(const test::Buffer& a, bool transpose_a, const test::Buffer& b, bool transpose_b) {
  const Tensor &ta = a.tensor(), &tb = b.tensor();
  const int64_t m = transpose_a ? ta.cols() : ta.rows(), k = transpose_a ? ta.rows() : ta.cols();
  const int64_t n = transpose_b ? tb.rows() : tb.cols();
  const std::vector<double> av = a.values(), bv = b.values();
  Product p;
  p.value.assign(static_cast<size_t>(m * n), 0.0);
  p.magnitude = p.value;
  for (int64_t i = 0; i < m; ++i)
    for (int64_t x = 0; x < k; ++x) {
      const double left = av[static_cast<size_t>(transpose_a ? x * m + i : i * k + x)];
      for (int64_t j = 0; j < n; ++j) {
        const double product = left * bv[static_cast<size_t>(transpose_b ? j * k + x : x * n + j)];
        p.value[static_cast<size_t>(i * n + j)] += product;
        p.magnitude[static_cast<size_t>(i * n + j)] += std::fabs(product);
      }
    }
  return p;
}

}  // namespace osprey::oracle
