#include "kernels/core/tensor.h"

namespace osprey {

int64_t size_bytes(DType dtype) {
  switch (dtype) {
    case DType::u8:
      return 1;
    case DType::bf16:
      return 2;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::f64:
      return 8;
  }
  return 0;
}

const char* name(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "f32";
    case DType::bf16:
      return "bf16";
    case DType::i32:
      return "i32";
    case DType::f64:
      return "f64";
    case DType::u8:
      return "u8";
  }
  return "?";
}

const char* name(DeviceKind kind) {
  switch (kind) {
    case DeviceKind::cpu:
      return "cpu";
    case DeviceKind::cuda:
      return "cuda";
    case DeviceKind::meta:
      return "meta";
  }
  return "?";
}

Shape::Shape(std::initializer_list<int64_t> list) {
  require(list.size() <= 4, "shape", "at most 4 dimensions, got {}", list.size());
  for (int64_t d : list) dims[static_cast<size_t>(rank++)] = d;
}

int64_t Shape::numel() const {
  int64_t n = 1;
  for (int i = 0; i < rank; ++i) n *= (*this)[i];
  return n;
}

std::string Shape::str() const {
  std::string s = "(";
  for (int i = 0; i < rank; ++i) s += fmt::format("{}{}", i ? ", " : "", (*this)[i]);
  return s + ")";
}

int64_t Tensor::row_stride() const {
  if (shape.rank <= 1) return cols();
  for (int i = 0; i + 2 < shape.rank; ++i)
    require(strides[static_cast<size_t>(i)] == strides[static_cast<size_t>(i) + 1] * shape[i + 1], "tensor",
            "rows of {} do not have one stride", *this);
  return strides[static_cast<size_t>(shape.rank) - 2];
}

bool Tensor::contiguous() const {
  int64_t expected = 1;
  for (int i = shape.rank - 1; i >= 0; --i) {
    if (shape[i] != 1 && strides[static_cast<size_t>(i)] != expected) return false;
    expected *= shape[i];
  }
  return true;
}

Tensor Tensor::view(const Shape& other) const {
  require(contiguous() && other.numel() == numel(), "tensor", "{} cannot be viewed as {}", *this, other);
  return make_tensor(data, other, dtype, device);
}

static void* offset(const Tensor& t, int64_t elements) {
  return t.data ? static_cast<char*>(t.data) + elements * size_bytes(t.dtype) : nullptr;
}

Tensor Tensor::columns(int64_t begin, int64_t end) const {
  require(0 <= begin && begin <= end && end <= cols(), "tensor", "columns [{}, {}) of {}", begin, end, *this);
  Tensor t = make_tensor(offset(*this, begin), {rows(), end - begin}, dtype, device);
  t.strides[0] = row_stride();
  return t;
}

Tensor Tensor::row_range(int64_t begin, int64_t end) const {
  require(0 <= begin && begin <= end && end <= rows(), "tensor", "rows [{}, {}) of {}", begin, end, *this);
  Tensor t = make_tensor(offset(*this, begin * row_stride()), {end - begin, cols()}, dtype, device);
  t.strides[0] = row_stride();
  return t;
}

std::string Tensor::str() const { return fmt::format("{} {}", name(dtype), shape.str()); }

Tensor make_tensor(void* data, const Shape& shape, DType dtype, Device device) {
  Tensor t;
  t.data = data;
  t.shape = shape;
  t.dtype = dtype;
  t.device = device;
  int64_t stride = 1;
  for (int i = shape.rank - 1; i >= 0; --i) {
    t.strides[static_cast<size_t>(i)] = stride;
    stride *= shape[i];
  }
  return t;
}

void require_shape(const char* where, const char* what, const Tensor& t, const Shape& shape) {
  if (t.shape == shape) return;  // first, so that a check that holds formats and allocates nothing
  fail(where, "{} must be {}, got {}", what, shape.str(), t.shape.str());
}

}  // namespace osprey
