#include "tests/support/test_bed.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "kernels/core/random.h"

namespace osprey::test {

Device test_device() {
  const char* name = std::getenv("OSPREY_TEST_DEVICE");
  const std::string text = name ? name : "cpu";
  require(text == "cpu" || text == "cuda", "test", "OSPREY_TEST_DEVICE must be cpu or cuda, got {}", text);
  if (text == "cpu") return {DeviceKind::cpu, 0};
  if (kernels::gpu_count() ==
      0) {  // the whole program is a test of the GPU then, and ctest shows it as skipped
    std::printf("SKIPPED: %s\n", kernels::why_no_gpu().c_str());
    std::fflush(nullptr);
    std::_Exit(77);
  }
  return {DeviceKind::cuda, 0};
}

Queue queue_of(Device device, int threads) {
  if (device.kind != DeviceKind::cuda) return {.device = device, .threads = threads};
  static const kernels::OpenQueue gpu = kernels::open_queue({DeviceKind::cuda, 0}, 1);
  return {.device = device, .threads = threads, .stream = gpu.stream.get()};
}

Queue test_queue(int threads) { return queue_of(test_device(), threads); }

static void store(const Tensor& t, int64_t element, double v) {
  if (t.dtype == DType::bf16)
    static_cast<bf16*>(t.data)[element] = to_bf16(static_cast<float>(v));
  else if (t.dtype == DType::f32)
    static_cast<float*>(t.data)[element] = static_cast<float>(v);
  else if (t.dtype == DType::f64)
    static_cast<double*>(t.data)[element] = v;
  else
    static_cast<int32_t*>(t.data)[element] = static_cast<int32_t>(v);
}

static double load(const Tensor& t, int64_t element) {
  if (t.dtype == DType::bf16) return static_cast<double>(to_float(static_cast<const bf16*>(t.data)[element]));
  if (t.dtype == DType::f32) return static_cast<double>(static_cast<const float*>(t.data)[element]);
  if (t.dtype == DType::f64) return static_cast<const double*>(t.data)[element];
  return static_cast<const int32_t*>(t.data)[element];
}

void write(const Tensor& t, const Values& values) {
  require(static_cast<int64_t>(values.size()) == t.numel(), "test", "{} values for {}", values.size(),
          t.str());
  write_from_host(queue_of(t.device), t, [&](const Tensor& host) {
    for (int64_t r = 0, i = 0; r < t.rows(); ++r)
      for (int64_t c = 0; c < t.cols(); ++c, ++i)
        store(host, r * host.row_stride() + c, values[static_cast<size_t>(i)]);
  });
}

Values read(const Tensor& t) {
  const HostCopy copy(queue_of(t.device), t);
  const Tensor& host = copy.tensor();
  Values values;
  values.reserve(static_cast<size_t>(t.numel()));
  for (int64_t r = 0; r < t.rows(); ++r)
    for (int64_t c = 0; c < t.cols(); ++c) values.push_back(load(host, r * host.row_stride() + c));
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
