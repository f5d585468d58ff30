#pragma once
// Copies of host vectors on the device under test.

#include <cstring>
#include <vector>

#include "kernels/device.h"
#include "kernels/step_control.h"
#include "tests/support/test_bed.h"

namespace osprey::test {

/// A host vector's copy on the device, between guard zones. It begins `offset` elements behind an aligned
/// address: kernels must work on any view.
template <class T>
class DeviceCopy {
 public:
  explicit DeviceCopy(const std::vector<T>& values, int64_t offset = 0)
      : count_(static_cast<int64_t>(values.size())), before_(guard + offset) {
    memory_ = kernels::allocate(test_device(), bytes(), "a test's vector");
    kernels::fill_bytes(test_queue(), all(), pattern);
    set(values);
  }
  ~DeviceCopy() { kernels::release(test_device(), memory_, bytes()); }
  DeviceCopy(const DeviceCopy&) = delete;
  DeviceCopy& operator=(const DeviceCopy&) = delete;
  DeviceCopy(DeviceCopy&& o) noexcept : memory_(o.memory_), count_(o.count_), before_(o.before_) {
    o.memory_ = nullptr;
  }

  Tensor tensor(const Shape& shape) const { return range(0, count_).view(shape); }
  Tensor flat() const { return range(0, count_); }
  Tensor range(int64_t begin, int64_t end) const {
    return make_tensor(static_cast<T*>(memory_) + before_ + begin, {end - begin}, DTypeOf<T>::value,
                       test_device());
  }
  void set(const std::vector<T>& values) {
    require(static_cast<int64_t>(values.size()) == count_, "test", "{} values for {}", values.size(), count_);
    if (count_ > 0) kernels::upload(test_queue(), flat(), values.data());
  }
  std::vector<T> values() const {
    std::vector<T> v(static_cast<size_t>(count_));
    if (count_ > 0) kernels::download(test_queue(), v.data(), flat());
    return v;
  }
  T operator[](size_t i) const { return values()[i]; }
  /// Every byte outside the vector still holds the pattern.
  bool guards_intact() const {
    std::vector<unsigned char> v(static_cast<size_t>(bytes()));
    kernels::download(test_queue(), v.data(), all());
    const size_t begin = static_cast<size_t>(before_) * sizeof(T),
                 end = begin + static_cast<size_t>(count_) * sizeof(T);
    for (size_t i = 0; i < v.size(); ++i)
      if ((i < begin || i >= end) && v[i] != pattern) return false;
    return true;
  }

 private:
  static constexpr int64_t guard = 64;
  static constexpr unsigned char pattern = 0xff;  // a NaN
  int64_t bytes() const { return (before_ + count_ + guard) * static_cast<int64_t>(sizeof(T)); }
  Tensor all() const {
    return make_tensor(memory_, {before_ + count_ + guard}, DTypeOf<T>::value, test_device());
  }
  void* memory_;
  int64_t count_, before_;
};

/// The scalars of a step that is taken.
struct Control {
  int64_t step = 0;
  double learning_rate_factor = 1;
  double grad_scale = 1;
  double apply = 1;
};
inline DeviceCopy<double> control(const Control& c = {}) {
  std::vector<double> v(kernels::step_scalars, 0.0);
  v[kernels::step_number] = static_cast<double>(c.step);
  v[kernels::step_learning_rate_factor] = c.learning_rate_factor;
  v[kernels::step_grad_scale] = c.grad_scale;
  v[kernels::step_apply] = c.apply;
  return DeviceCopy<double>(v);
}

}  // namespace osprey::test
