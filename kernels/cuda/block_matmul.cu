#include "kernels/block_matmul.h"

#include "kernels/cuda/launch.h"
#include "kernels/cuda/row.h"
#include "kernels/numerics/block_product.h"

namespace osprey::cuda {

namespace {

constexpr int side = 16;  // of the square of y that a block of threads makes, an element each

/// A packed matrix. Arguments have eight bytes a member; enumerations travel as int64_t, floats as double.
struct Matrix {
  const uint8_t* codes;
  const void* scales;
  const float* tensor_scale;  // null where there is none
  int64_t code_stride, scale_stride, element, scale;

  __device__ Element kind() const { return static_cast<Element>(element); }
  __device__ uint32_t code(int64_t row, int64_t col) const {
    const int bits = element_bits(kind());
    const int64_t bit = col * bits;
    const uint8_t* at = codes + row * code_stride + bit / 8;
    const auto shift = static_cast<int>(bit % 8);
    const uint32_t next = shift + bits > 8 ? at[1] : 0u;
    return (at[0] | next << 8) >> shift & ((1u << bits) - 1);
  }
  __device__ float scale_at(int64_t row, int64_t i) const {
    const int64_t at = row * scale_stride + i;
    const auto type = static_cast<ScaleType>(scale);
    return type == ScaleType::f32 ? static_cast<const float*>(scales)[at]
                                  : decode_scale(type, static_cast<const uint8_t*>(scales)[at]);
  }
  __device__ float whole() const { return tensor_scale ? *tensor_scale : 1.0f; }
};

Matrix matrix(const Packed& p) {
  return {.codes = p.codes.as<uint8_t>(),
          .scales = p.scales.data,
          .tensor_scale = p.tensor_scale.defined() ? p.tensor_scale.as<float>() : nullptr,
          .code_stride = p.codes.row_stride(),
          .scale_stride = p.format.granularity == Granularity::tensor ? 0 : p.scales.row_stride(),
          .element = static_cast<int64_t>(p.format.element),
          .scale = static_cast<int64_t>(p.format.scale)};
}

template <class T>
struct Product {
  Matrix a, b;
  T* y;
  int64_t y_stride, rows, columns, k, block, one_scale, add;
  double factor;
};

struct Tables {
  float a[256], b[256];  // elements in their units
};

/// The definition, an element of y in a thread.
template <class T>
__global__ void block_matmul_kernel(Product<T> p) {
  Tables& tables = block_shared<Tables>();
  const Element a_kind = p.a.kind(), b_kind = p.b.kind();
  for (unsigned code = threadIdx.x; code < 256; code += blockDim.x) {
    tables.a[code] =
        decode_element(a_kind, code & ((1u << element_bits(a_kind)) - 1)) * (1 / unit_of(a_kind));
    tables.b[code] =
        decode_element(b_kind, code & ((1u << element_bits(b_kind)) - 1)) * (1 / unit_of(b_kind));
  }
  __syncthreads();
  const int64_t row = blockIdx.y * int64_t{side} + threadIdx.x / side,
                column = blockIdx.x * int64_t{side} + threadIdx.x % side;
  if (row >= p.rows || column >= p.columns) return;
  float sum = 0;
  for (int64_t k = 0, i = 0; k < p.k; i += p.one_scale ? 0 : 1) {
    float s = 0;
    for (const int64_t end = k + p.block; k < end && k < p.k; ++k)
      s += tables.a[p.a.code(row, k)] * tables.b[p.b.code(column, k)];
    const float scale = scaled_units(p.a.scale_at(row, i), a_kind, b_kind) * p.b.scale_at(column, i);
    sum = fmaf(s, scale, sum);
  }
  T& y = p.y[row * p.y_stride + column];
  const float f = static_cast<float>(p.factor) * p.a.whole() * p.b.whole();
  y = Convert<T>::from(p.add ? fmaf(sum, f, to_float(y)) : sum * f);
}

template <class T>
void run(const Queue& queue, const kernels::BlockMatmul& args) {
  const BlockFormat& format = args.a.format;
  const bool block = format.granularity == Granularity::block;
  int64_t before = 0;
  for (const Packed& b : args.b) {
    const Product<T> p{.a = matrix(args.a),
                       .b = matrix(b),
                       .y = args.y.tensor.as<T>() + before,
                       .y_stride = args.y.tensor.row_stride(),
                       .rows = args.a.rows,
                       .columns = b.rows,
                       .k = b.cols,
                       .block = block ? format.block : whole_row_block,
                       .one_scale = !block,
                       .add = args.y.add,
                       .factor = static_cast<double>(args.factor)};
    const auto cuts = [](int64_t n) { return static_cast<unsigned>((n + side - 1) / side); };
    launch(
        "block_matmul", queue,
        {.blocks = {cuts(p.columns), cuts(p.rows)}, .threads = side * side, .shared_bytes = sizeof(Tables)},
        block_matmul_kernel<T>, p);
    before += b.rows;
  }
}

}  // namespace

int64_t block_pack_bytes(std::span<const Packed>) { return 0; }

void block_pack(const Queue&, const kernels::BlockPack&) {}

void block_matmul(const Queue& queue, const kernels::BlockMatmul& args) {
  args.y.tensor.dtype == DType::f32 ? run<float>(queue, args) : run<bf16>(queue, args);
}

}  // namespace osprey::cuda
