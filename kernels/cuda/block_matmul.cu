#include "kernels/block_matmul.h"

#include "kernels/cuda/block_product.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/packed_matrix.h"
#include "kernels/cuda/row.h"
#include "kernels/numerics/block_product.h"

namespace osprey::cuda {

namespace {

constexpr int side = 16;  // of the square of y that a block of threads makes, an element each

// Arguments have eight bytes a member; enumerations travel as int64_t, floats as double.
template <class T>
struct Product {
  PackedMatrix a, b;
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
    const Product<T> p{.a = packed_matrix(args.a),
                       .b = packed_matrix(b),
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

bool is_mxfp4(const Packed& p) { return p.format == block_format("mxfp4"); }

int compute_capability(const Queue& queue) {
  const cudaDeviceProp& p = stream_of(queue).properties();
  return 10 * p.major + p.minor;
}

void by_tiles(const Queue& queue, const kernels::BlockMatmul& args) {
  int64_t before = 0;
  for (const Packed& b : args.b) {
    multiply_tiles(queue, {.y = {args.y.tensor.columns(before, before + b.rows), args.y.add},
                           .a = args.a,
                           .b = b,
                           .factor = args.factor});
    before += b.rows;
  }
}

}  // namespace

const char* name(BlockEngine engine) {
  switch (engine) {
    case BlockEngine::definition:
      return "definition";
    case BlockEngine::tiles:
      return "tiles";
    case BlockEngine::fp8:
      return "fp8";
    case BlockEngine::fp8_fast:
      return "fp8_fast";
    case BlockEngine::fp8_apart:
      return "fp8_apart";
  }
  return "?";
}

const char* why_not(BlockEngine engine, const Queue& queue, const kernels::BlockMatmul& args) {
  if (engine == BlockEngine::definition) return nullptr;
  const Packed &a = args.a, &b = args.b[0];
  const int gpu = compute_capability(queue);
  for (const Packed* p : {&a, &b})
    if (const char* why = why_no_image(p->format)) return why;
  if (gpu < 80) return "the GPU multiplies no bf16";
  if (engine == BlockEngine::tiles) return nullptr;
  if (!is_mxfp4(a) || !is_mxfp4(b)) return "E4M3 images are of mxfp4 alone";
  if (gpu < 89) return "the GPU multiplies no FP8";
  if (!library_has_e4m3(queue, args, engine))
    return "the library has no such FP8 product: it asks for 16 columns of y at a time at multiples of 16 bytes, and for "
           "scales of rows for Hopper";
  return nullptr;
}

BlockEngine block_engine(const Queue& queue, const kernels::BlockMatmul& args) {
  if (args.a.rows > most_rows_of_tiles)
    for (const BlockEngine engine : {BlockEngine::fp8, BlockEngine::fp8_apart})
      if (!why_not(engine, queue, args)) return engine;
  return why_not(BlockEngine::tiles, queue, args) ? BlockEngine::definition : BlockEngine::tiles;
}

void block_matmul_by(BlockEngine engine, const Queue& queue, const kernels::BlockMatmul& args) {
  const char* why = why_not(engine, queue, args);
  require(!why, "block_matmul", "the engine {} cannot be had: {}", name(engine), why ? why : "");
  if (engine == BlockEngine::tiles) return by_tiles(queue, args);
  if (engine != BlockEngine::definition) return multiply_e4m3(queue, args, engine);
  args.y.tensor.dtype == DType::f32 ? run<float>(queue, args) : run<bf16>(queue, args);
}

int64_t block_pack_bytes(std::span<const Packed>) { return 0; }

void block_pack(const Queue&, const kernels::BlockPack&) {}

void block_matmul(const Queue& queue, const kernels::BlockMatmul& args) {
  block_matmul_by(block_engine(queue, args), queue, args);
}

std::vector<std::string_view> block_matmul_engines(const Queue& queue, const kernels::BlockMatmul& args) {
  const BlockEngine taken = block_engine(queue, args);
  std::vector<std::string_view> names{name(taken)};
  for (const BlockEngine e : block_engines)
    if (e != taken && !why_not(e, queue, args)) names.push_back(name(e));
  return names;
}

void block_matmul_by(std::string_view engine, const Queue& queue, const kernels::BlockMatmul& args) {
  for (const BlockEngine e : block_engines)
    if (name(e) == engine) block_matmul_by(e, queue, args);
}

}  // namespace osprey::cuda
