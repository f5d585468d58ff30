#pragma once
// Plain loops in double precision.

#include <vector>

#include "tests/support/buffer.h"

namespace osprey::oracle {

struct Product {
  std::vector<double> value;      // (M, N)
  std::vector<double> magnitude;  // sum of |a||b|: what the rounding error is relative to
};

/// op(a) op(b) for matrices.
Product matmul(const test::Buffer& a, bool transpose_a, const test::Buffer& b, bool transpose_b);

}  // namespace osprey::oracle
