#include "tests/support/test_bed.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/random.h"

namespace osprey::test {

static void store(const Tensor& t, int64_t element, double v) {
  if (t.dtype == DType::bf16)
    static_cast<bf16*>(t.data)[element] = to_bf16(static_cast<float>(v));
  else if (t.dtype == DType::f32)
    static_cast<float*>(t.data)[element] = static_cast<float>(v);
  else
    static_cast<int32_t*>(t.data)[element] = static_cast<int32_t>(v);
}

static double load(const Tensor& t, int64_t element) {
  if (t.dtype == DType::bf16) return static_cast<double>(to_float(static_cast<const bf16*>(t.data)[element]));
  if (t.dtype == DType::f32) return static_cast<double>(static_cast<const float*>(t.data)[element]);
  return static_cast<const int32_t*>(t.data)[element];
}

void write(const Tensor& t, const Values& values) {
  require(static_cast<int64_t>(values.size()) == t.numel(), "test", "{} values for {}", values.size(),
          t.str());
  for (int64_t r = 0, i = 0; r < t.rows(); ++r)
    for (int64_t c = 0; c < t.cols(); ++c, ++i)
      store(t, r * t.row_stride() + c, values[static_cast<size_t>(i)]);
}

Values read(const Tensor& t) {
  Values values;
  values.reserve(static_cast<size_t>(t.numel()));
  for (int64_t r = 0; r < t.rows(); ++r)
    for (int64_t c = 0; c < t.cols(); ++c) values.push_back(load(t, r * t.row_stride() + c));
  return values;
}

Tensor make(Arena& arena, const Shape& shape, DType dtype, const Values& values) {
  const Tensor t = arena.alloc(shape, dtype);
  write(t, values);
  return t;
}

Tensor make_i32(Arena& arena, const Shape& shape, const std::vector<int>& values) {
  return make(arena, shape, DType::i32, Values(values.begin(), values.end()));
}

Values random_values(const std::string& name, int64_t count, DType dtype, double scale) {
  Values values(static_cast<size_t>(count));
  const uint64_t stream = stream_of(name);
  for (int64_t i = 0; i < count; ++i) {
    const float v = static_cast<float>(scale) * random_normal(7, stream, static_cast<uint64_t>(i));
    values[static_cast<size_t>(i)] = static_cast<double>(dtype == DType::bf16 ? to_float(to_bf16(v)) : v);
  }
  return values;
}

double relative_error(const Values& a, const Values& b) {
  require(a.size() == b.size(), "test", "comparing {} values with {}", a.size(), b.size());
  double largest = 1e-12, error = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::abs(b[i]));
    if (!(std::abs(a[i] - b[i]) <= error)) error = std::abs(a[i] - b[i]);  // NaN sticks
    if (std::isnan(error)) return error;
  }
  return error / largest;
}

}  // namespace osprey::test
