#include "kernels/cpu/convert.h"

#include <cstring>

#include "kernels/cpu/isa/convert.h"

namespace osprey::cpu {

void copy_matrix(const Queue& queue, const Tensor& to, const Tensor& from) {
  require_shape("copy", "source", from, to.shape);
  const int64_t cols = to.shape[-1], rows = to.shape[-2], batch = to.shape.rank == 3 ? to.shape[0] : 1;
  const auto row = [&](const Tensor& t, int64_t i) {
    const size_t last = static_cast<size_t>(t.shape.rank) - 1;
    const int64_t outer = t.shape.rank == 3 ? t.strides[0] * (i / rows) : 0;
    return static_cast<char*>(t.data) + (outer + t.strides[last - 1] * (i % rows)) * size_bytes(t.dtype);
  };
  const ConvertTable& table = convert_table();
  parallel_for(queue, rows * batch, 1 + 16384 / (cols + 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      void* dst = row(to, i);
      const void* src = row(from, i);
      if (to.dtype == from.dtype)
        std::memcpy(dst, src, static_cast<size_t>(cols * size_bytes(to.dtype)));
      else if (to.dtype == DType::f32)
        table.widen(static_cast<float*>(dst), static_cast<const bf16*>(src), cols);
      else
        table.narrow(static_cast<bf16*>(dst), static_cast<const float*>(src), cols);
    }
  });
}

}  // namespace osprey::cpu
