// mxfp4 x mxfp4 by FP8 tensor cores. Both operands get E4M3 images in the stream's scratch, in panels where
// they do not fit. Wide rows, which have none, are zeros there; tiles then compute what those rows take part
// in. Nobody but the device knows how many they are.

#include <optional>

#include "kernels/cuda/blas.h"
#include "kernels/cuda/block_product.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/row.h"
#include "kernels/e4m3_image.h"

namespace osprey::cuda {

namespace {

constexpr int64_t aligned = 256, panel_unit = 128;

/// What lies in scratch for rows of one side.
struct Images {
  Tensor codes, scales, wide;
  int32_t* list;
};

/// Hands out pieces of the stream's scratch.
class Scratch {
 public:
  explicit Scratch(const Queue& queue)
      : device_(queue.device), next_(stream_of(queue).scratch(Stream::scratch_bytes)) {}
  Tensor take(const Shape& shape, DType dtype) {
    const Tensor t = make_tensor(next_, shape, dtype, device_);
    next_ = static_cast<char*>(next_) + (t.bytes() + aligned - 1) / aligned * aligned;
    return t;
  }
  Images images(int64_t rows, int64_t cols, int64_t lists) {
    return {.codes = take({rows, cols}, DType::u8),
            .scales = take({rows}, DType::f32),
            .wide = take({rows}, DType::i32),
            .list = take({rows + lists}, DType::i32).as<int32_t>()};
  }

 private:
  Device device_;
  void* next_;
};

int64_t total_rows(std::span<const Packed> b) {
  int64_t n = 0;
  for (const Packed& p : b) n += p.rows;
  return n;
}

/// How many rows of a and b have images at a time, and how many rows of sums in fp32, where scales are
/// applied apart.
struct Panels {
  int64_t a, b, sums;
};
/// Nothing where rows are too long for the scratch.
std::optional<Panels> panels(int64_t rows, int64_t columns, int64_t cols, int64_t lists, bool apart,
                             int64_t scratch_bytes) {
  const int64_t room = scratch_bytes / (apart ? 2 : 1) - 8 * aligned - 4 * lists, row = cols + 12;
  const auto whole = [](int64_t n, int64_t most) {
    return n <= most ? n : std::max(most / panel_unit, int64_t{1}) * panel_unit;
  };
  Panels p{};
  p.a = whole(rows, room / 2 / row);
  p.b = whole(columns, (room - p.a * row) / row);
  if ((p.a + p.b) * row > room) return std::nullopt;
  if (!apart) return p;
  const int64_t most = scratch_bytes / 2 / (4 * std::max(p.b, int64_t{1})) - 1;
  p.sums = most < panel_unit ? std::min(p.a, most) : whole(p.a, most);
  return p.sums > 0 || p.a == 0 ? std::optional(p) : std::nullopt;
}

/// What lies between two rows of the stack, of one matrix.
struct Segment {
  Packed rows;
  int64_t begin, index;  // in the panel; how many come before it
};
template <class Body>
void for_each_segment(std::span<const Packed> b, int64_t begin, int64_t end, const Body& body) {
  int64_t before = 0, index = 0;
  for (const Packed& p : b) {
    const int64_t first = std::max(begin, before), last = std::min(end, before + p.rows);
    if (first < last) body(Segment{p.row_range(first - before, last - before), first - begin, index++});
    before += p.rows;
  }
}

WideRows wide_rows(const Images& images, int64_t begin, int64_t lists_before) {
  return {.wide = images.wide.as<int32_t>() + begin, .list = images.list + begin + lists_before};
}

void make_images(const Queue& queue, const Images& images, const Segment& s) {
  const int64_t end = s.begin + s.rows.rows;
  const auto part = [&](const Tensor& t) {
    return make_tensor(static_cast<char*>(t.data) + s.begin * size_bytes(t.dtype), {s.rows.rows}, t.dtype,
                       t.device);
  };
  kernels::e4m3_image(queue, {.codes = images.codes.row_range(s.begin, end),
                              .scales = part(images.scales),
                              .wide = part(images.wide),
                              .x = s.rows});
  list_wide(queue, wide_rows(images, s.begin, s.index), s.rows.rows);
}

Gemm gemm_of(const Images& a, const Images& b, int64_t begin, int64_t m, const Accum& y, float factor,
             BlockEngine engine) {
  const int64_t k = a.codes.cols();
  return {.a = a.codes.as<uint8_t>() + begin * k,
          .b = b.codes.data,
          .d = y.tensor.data,
          .input = DType::u8,
          .output = y.tensor.dtype,
          .transpose_b = true,
          .m = m,
          .n = y.tensor.cols(),
          .k = k,
          .a_stride = k,
          .b_stride = k,
          .d_stride = y.tensor.row_stride(),
          .alpha = factor,
          .beta = y.add ? 1.0f : 0.0f,
          .a_scales = engine == BlockEngine::fp8_apart ? nullptr : a.scales.as<float>() + begin,
          .b_scales = engine == BlockEngine::fp8_apart ? nullptr : b.scales.as<float>(),
          .fast_sums = engine == BlockEngine::fp8_fast};
}

// Eight bytes a member.
template <class T>
struct Scaling {
  T* y;
  const float *sums, *a_scales, *b_scales;
  int64_t y_stride, cols, add;
  double factor;
};

/// A block takes 1024 elements of a row.
constexpr int scalers = 256, per_scaler = 4;
template <class T>
__global__ void __launch_bounds__(scalers) scale_kernel(const Scaling<T> p) {
  const int64_t row = blockIdx.x;
  const float a = p.a_scales[row], factor = static_cast<float>(p.factor);
  for (int i = 0; i < per_scaler; ++i) {
    const int64_t col = (blockIdx.y * int64_t{per_scaler} + i) * scalers + threadIdx.x;
    if (col >= p.cols) return;
    const float sum = p.sums[row * p.cols + col] * (a * p.b_scales[col]);
    T& y = p.y[row * p.y_stride + col];
    y = Convert<T>::from(p.add ? fmaf(sum, factor, to_float(y)) : sum * factor);
  }
}

template <class T>
void scale(const Queue& queue, const Accum& y, const Tensor& sums, const float* a_scales,
           const float* b_scales, float factor) {
  const Scaling<T> p{.y = y.tensor.as<T>(),
                     .sums = sums.as<float>(),
                     .a_scales = a_scales,
                     .b_scales = b_scales,
                     .y_stride = y.tensor.row_stride(),
                     .cols = y.tensor.cols(),
                     .add = y.add,
                     .factor = static_cast<double>(factor)};
  const auto across = static_cast<unsigned>((p.cols + scalers * per_scaler - 1) / (scalers * per_scaler));
  launch("scaling a product", queue,
         {.blocks = {static_cast<unsigned>(y.tensor.rows()), across}, .threads = scalers}, scale_kernel<T>,
         p);
}

/// y (+)= factor * a b^T of images.
void multiply(const Queue& queue, const Images& a, const Images& b, const Accum& y, float factor,
              BlockEngine engine, int64_t most_sums, void* sums_memory) {
  Blas& blas = stream_of(queue).blas();
  const int64_t rows = y.tensor.rows(), cols = y.tensor.cols();
  if (engine != BlockEngine::fp8_apart) return blas.gemm(gemm_of(a, b, 0, rows, y, factor, engine));
  for (int64_t begin = 0; begin < rows; begin += most_sums) {
    const int64_t end = std::min(rows, begin + most_sums);
    const Tensor sums = make_tensor(sums_memory, {end - begin, cols}, DType::f32, y.tensor.device);
    blas.gemm(gemm_of(a, b, begin, end - begin, {sums, false}, 1, engine));
    const Accum part{y.tensor.row_range(begin, end), y.add};
    const auto to = part.tensor.dtype == DType::f32 ? scale<float> : scale<bf16>;
    to(queue, part, sums, a.scales.as<float>() + begin, b.scales.as<float>(), factor);
  }
}

}  // namespace

bool library_has_e4m3(const Queue& queue, const kernels::BlockMatmul& args, BlockEngine engine) {
  const bool apart = engine == BlockEngine::fp8_apart;
  const int64_t n = total_rows(args.b), k = args.a.cols, lists = static_cast<int64_t>(args.b.size()) + 1;
  const std::optional<Panels> p = panels(args.a.rows, n, k, lists, apart, stream_scratch_bytes);
  if (!p || n % 16 != 0) return false;  // the last panel's columns must suit the library as those before do
  Scratch scratch(queue);
  const Images a = scratch.images(p->a, k, 1), b = scratch.images(p->b, k, lists);
  const Tensor y = apart ? scratch.take({p->sums, p->b}, DType::f32) : args.y.tensor.columns(0, p->b);
  return stream_of(queue).blas().has(
      gemm_of(a, b, 0, apart ? p->sums : p->a, {y, !apart && args.y.add}, args.factor, engine));
}

void multiply_e4m3(const Queue& queue, const kernels::BlockMatmul& args, BlockEngine engine,
                   int64_t scratch_bytes) {
  const bool apart = engine == BlockEngine::fp8_apart;
  const int64_t m = args.a.rows, n = total_rows(args.b), k = args.a.cols,
                lists = static_cast<int64_t>(args.b.size()) + 1;
  const std::optional<Panels> fits = panels(m, n, k, lists, apart, scratch_bytes);
  require(fits.has_value(), "block_matmul", "rows of {} elements are too long for the scratch of a stream",
          k);
  const Panels most = *fits;
  Scratch scratch(queue);
  const Images a = scratch.images(most.a, k, 1), b = scratch.images(most.b, k, lists);
  void* const sums = apart ? scratch.take({most.sums, most.b}, DType::f32).data : nullptr;
  for (int64_t row = 0; row < m; row += most.a) {
    const int64_t row_end = std::min(m, row + most.a);
    const Packed a_rows = args.a.row_range(row, row_end);
    make_images(queue, a, {a_rows, 0, 0});
    for (int64_t column = 0; column < n; column += most.b) {
      const int64_t column_end = std::min(n, column + most.b);
      if (row == 0 || most.b < n)
        for_each_segment(args.b, column, column_end, [&](const Segment& s) { make_images(queue, b, s); });
      const Tensor y = args.y.tensor.row_range(row, row_end).columns(column, column_end);
      multiply(queue, a, b, {y, args.y.add}, args.factor, engine, most.sums, sums);
      for_each_segment(args.b, column, column_end, [&](const Segment& s) {
        multiply_tiles(queue, {.y = {y.columns(s.begin, s.begin + s.rows.rows), args.y.add},
                               .a = a_rows,
                               .b = s.rows,
                               .factor = args.factor,
                               .a_wide = wide_rows(a, 0, 0),
                               .b_wide = wide_rows(b, s.begin, s.index)});
      });
    }
  }
}

}  // namespace osprey::cuda
