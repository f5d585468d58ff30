#include "kernels/reduce_parts.h"

namespace osprey::cpu {

namespace {

float term(float v) { return v; }
float term(bf16 v) { return to_float(v); }
uint32_t term(uint32_t v) { return v; }
double term(double v) { return v; }

template <class T, class Part>
Part rounded(T v) {
  if constexpr (std::is_same_v<Part, bf16>)
    return to_bf16(v);
  else
    return v;
}

template <class T, class Part>
void add_rows(const Queue& queue, const kernels::ReduceParts& args) {
  T* data = static_cast<T*>(args.data.data);
  const auto* parts = static_cast<const Part*>(args.parts.data);
  const int64_t rows = args.parts.rows(), stride = args.parts.row_stride();
  parallel_for(queue, args.data.numel(), 16384, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto row = [&](int64_t r) {
        return term(r == args.own ? rounded<T, Part>(data[i]) : parts[r * stride + i]);
      };
      T sum = row(0);
      for (int64_t r = 1; r < rows; ++r) sum += row(r);
      data[i] = sum;
    }
  });
}

}  // namespace

void reduce_parts(const Queue& queue, const kernels::ReduceParts& args) {
  if (args.parts.dtype == DType::bf16) return add_rows<float, bf16>(queue, args);
  if (args.data.dtype == DType::f64) return add_rows<double, double>(queue, args);
  if (args.data.dtype == DType::i32) return add_rows<uint32_t, uint32_t>(queue, args);
  add_rows<float, float>(queue, args);
}

}  // namespace osprey::cpu
