#include "kernels/symmetric_product.h"

#include "kernels/cuda/blas.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/row.h"

namespace osprey::cuda {

namespace {

constexpr int tile = 64, mirror_threads = 256;

struct Tile {
  float v[tile][tile + 1];  // a column is spread over the banks
};

struct Matrices {
  void* c;
  int64_t size;
};

/// Column of the upper triangle's tile `index`, counted down column after column: 0; 0, 1; 0, 1, 2; ...
__device__ int64_t column_of(int64_t index) {
  auto column = static_cast<int64_t>((sqrt(8.0 * static_cast<double>(index) + 1.0) - 1.0) / 2.0);
  while (column * (column + 1) / 2 > index) --column;
  while ((column + 1) * (column + 2) / 2 <= index) ++column;
  return column;
}

/// c[j][i] = c[i][j] for j > i. A block reads one tile of the upper triangle and writes its mirror image; it
/// writes nothing that another one reads.
template <class T>
__global__ void mirror(Matrices a) {
  constexpr int length = vector_length<T>, across = tile / length;
  Tile& s = block_shared<Tile>();
  const int64_t index = blockIdx.x, column = column_of(index), row = index - column * (column + 1) / 2;
  T* c = static_cast<T*>(a.c) + blockIdx.y * a.size * a.size;
  const bool vectors = vectorizable(c, a.size, a.size);
  const int64_t top = row * tile, left = column * tile;
  for (int k = threadIdx.x; k < tile * across; k += mirror_threads) {
    const int i = k / across, j = k % across * length;
    if (top + i >= a.size || left + j >= a.size) continue;
    const T* from = c + (top + i) * a.size + left + j;
    if (vectors) {
      const Vector<T> x = Vector<T>::load(from);
      for (int e = 0; e < length; ++e) s.v[i][j + e] = x.v[e];
    } else {
      for (int e = 0; e < length && left + j + e < a.size; ++e) s.v[i][j + e] = to_float(from[e]);
    }
  }
  __syncthreads();
  for (int k = threadIdx.x; k < tile * across; k += mirror_threads) {
    const int i = k / across, j = k % across * length;  // in the mirror image
    if (left + i >= a.size || top + j >= a.size) continue;
    T* to = c + (left + i) * a.size + top + j;
    if (vectors && row != column) {
      Vector<T> x;
      for (int e = 0; e < length; ++e) x.v[e] = s.v[j + e][i];
      x.store(to);
    } else {
      for (int e = 0; e < length && top + j + e < a.size; ++e)
        if (left + i > top + j + e) to[e] = Convert<T>::from(s.v[j + e][i]);
    }
  }
}

/// Into how many block rows the upper triangle is cut: 4 compute 10 of 16 blocks, 2 compute 3 of 4. The last
/// product is the smallest, and should have work for a whole GPU: 128 tiles of 128 x 256 or so. Fixed by
/// shape; not measured.
int64_t block_rows(int64_t size, int64_t batch) {
  for (int64_t parts : {4, 2})
    if (batch * (size / parts) * (size / parts) >= 128 * 128 * 256) return parts;
  return 1;
}

}  // namespace

void symmetric_product(const Queue& queue, const kernels::SymmetricProduct& args) {
  const Tensor &a = args.a, &c = args.c;
  const int64_t batch = c.shape.rank == 3 ? c.shape[0] : 1, size = c.shape[-1], inner = a.shape[-1];
  const int64_t bytes = size_bytes(c.dtype), parts = block_rows(size, batch);
  const int64_t height = ((size + parts - 1) / parts + tile - 1) / tile * tile;  // keeps the blocks aligned
  for (int64_t begin = 0; begin < size; begin += height) {
    const char* rows = static_cast<const char*>(a.data) + begin * inner * bytes;
    const int64_t corner = (begin * size + begin) * bytes;
    const char* addend =
        args.addend.defined() ? static_cast<const char*>(args.addend.data) + corner : nullptr;
    stream_of(queue).blas().gemm({.a = rows,
                                  .b = rows,
                                  .c = addend,
                                  .d = static_cast<char*>(c.data) + corner,
                                  .input = a.dtype,
                                  .output = c.dtype,
                                  .transpose_b = true,
                                  .m = std::min(height, size - begin),
                                  .n = size - begin,
                                  .k = inner,
                                  .a_stride = inner,
                                  .b_stride = inner,
                                  .c_stride = size,
                                  .d_stride = size,
                                  .batch = batch,
                                  .a_batch_stride = size * inner,
                                  .b_batch_stride = size * inner,
                                  .c_batch_stride = size * size,
                                  .d_batch_stride = size * size,
                                  .alpha = args.alpha,
                                  .beta = args.beta});
  }
  const int64_t tiles = (size + tile - 1) / tile;
  const Grid grid{dim3(static_cast<unsigned>(tiles * (tiles + 1) / 2), static_cast<unsigned>(batch)),
                  dim3(mirror_threads), sizeof(Tile)};
  const Matrices matrices{c.data, size};
  if (c.dtype == DType::bf16)
    launch("symmetric_product", queue, grid, mirror<bf16>, matrices);
  else
    launch("symmetric_product", queue, grid, mirror<float>, matrices);
}

}  // namespace osprey::cuda
