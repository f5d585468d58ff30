#include "kernels/reduce_parts.h"

#include "kernels/cuda/launch.h"
#include "kernels/cuda/row.h"

namespace osprey::cuda {

namespace {

constexpr int threads = 256;
constexpr int64_t most_blocks = 1024;  // the step's own kernels run beside this one
constexpr int rows_at_once = 4;        // loads in flight

template <class T, class Part>
struct Sum {
  T* data;
  const Part* parts;
  int64_t stride, n, rows, own;
};

/// `width` neighbours, moved by accesses of 16 bytes when they fill them.
template <class T, int width>
struct alignas(width == 1 ? alignof(T) : 16) Few {
  T v[width];
};

__device__ inline float term(float v) { return v; }
__device__ inline float term(bf16 v) { return to_float(v); }
__device__ inline uint32_t term(uint32_t v) { return v; }
__device__ inline double term(double v) { return v; }

template <class Part>
struct Rounded {
  __device__ static Part of(Part v) { return v; }
};
template <>
struct Rounded<bf16> {
  __device__ static bf16 of(float v) { return to_bf16(v); }
};

template <class T, class Part, int width>
__global__ void sum_rows(Sum<T, Part> a) {
  using Parts = Few<Part, width>;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x * width;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * width; i < a.n;
       i += step) {
    auto* at = reinterpret_cast<Few<T, width>*>(a.data + i);
    Few<T, width> sum = *at;
    Parts mine;
#pragma unroll
    for (int k = 0; k < width; ++k) mine.v[k] = Rounded<Part>::of(sum.v[k]);
    for (int64_t first = 0; first < a.rows; first += rows_at_once) {
      Parts part[rows_at_once];
#pragma unroll
      for (int j = 0; j < rows_at_once; ++j) {
        const int64_t row = first + j;
        part[j] = row < a.rows && row != a.own ? *reinterpret_cast<const Parts*>(a.parts + row * a.stride + i)
                                               : mine;
      }
#pragma unroll
      for (int j = 0; j < rows_at_once; ++j) {
        const int64_t row = first + j;
        if (row < a.rows)
#pragma unroll
          for (int k = 0; k < width; ++k)
            sum.v[k] = row == 0 ? term(part[j].v[k]) : sum.v[k] + term(part[j].v[k]);
      }
    }
    *at = sum;
  }
}

template <class T, class Part, int width>
void launch_part(const Queue& queue, Sum<T, Part> a, int64_t begin, int64_t end) {
  if (begin == end) return;
  a.data += begin;
  a.parts += begin;
  a.n = end - begin;
  const int64_t blocks = (a.n / width + threads - 1) / threads;
  launch("reduce_parts", queue, {dim3(static_cast<unsigned>(std::min(blocks, most_blocks))), dim3(threads)},
         sum_rows<T, Part, width>, a);
}

template <class T, class Part>
void sum_of(const Queue& queue, const kernels::ReduceParts& args) {
  constexpr int width = vector_length<Part>;
  const Sum<T, Part> a{static_cast<T*>(args.data.data),
                       static_cast<const Part*>(args.parts.data),
                       args.parts.row_stride(),
                       args.data.numel(),
                       args.parts.rows(),
                       args.own};
  const bool aligned = vectorizable(a.parts, a.stride, width) && vectorizable(a.data, width, width);
  const int64_t vectors = aligned ? a.n / width * width : 0;
  launch_part<T, Part, width>(queue, a, 0, vectors);
  launch_part<T, Part, 1>(queue, a, vectors, a.n);
}

}  // namespace

void reduce_parts(const Queue& queue, const kernels::ReduceParts& args) {
  if (args.parts.dtype == DType::bf16) return sum_of<float, bf16>(queue, args);
  if (args.data.dtype == DType::f64) return sum_of<double, double>(queue, args);
  if (args.data.dtype == DType::i32) return sum_of<uint32_t, uint32_t>(queue, args);
  sum_of<float, float>(queue, args);
}

}  // namespace osprey::cuda
