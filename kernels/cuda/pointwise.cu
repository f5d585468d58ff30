#include "kernels/pointwise.h"

#include "kernels/cuda/column_sums.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/pack.h"

namespace osprey::cuda {

namespace {

constexpr int threads = 256;

/// One thread for `width` columns of a row: op(row, first column).
template <class Op>
__global__ void each_element_kernel(Op op, int64_t rows, int64_t cols) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, in_row = cols / Op::width,
                row = i / in_row;
  if (row < rows) op(row, (i - row * in_row) * Op::width);
}

template <class Op>
void each_element(const char* name, const Queue& queue, int64_t rows, int64_t cols, const Op& op) {
  const int64_t count = rows * (cols / Op::width);
  if (count == 0) return;
  launch(name, queue, {.blocks = static_cast<unsigned>((count + threads - 1) / threads), .threads = threads},
         each_element_kernel<Op>, op, rows, cols);
}

/// A matrix in memory.
template <class T>
struct Matrix {
  T* data;
  int64_t stride;
  __host__ __device__ T* at(int64_t row, int64_t col) const { return data + row * stride + col; }
};
template <class T>
Matrix<T> matrix(const Tensor& t) {
  return {t.as<T>(), t.row_stride()};
}
/// Whatever its type, as units of `T`.
template <class T>
Matrix<T> units(const Tensor& t) {
  return {static_cast<T*>(t.data), t.row_stride() * size_bytes(t.dtype) / static_cast<int64_t>(sizeof(T))};
}

template <class T, class... Tensors>
bool vectors(int64_t cols, const Tensors&... tensors) {
  return (vectorizable(tensors.template as<T>(), tensors.row_stride(), cols) && ...);
}
/// Whether rows of `bytes` bytes can be moved 16 bytes at a time.
template <class... Tensors>
bool moves_by_16(int64_t bytes, const Tensors&... tensors) {
  const auto aligned = [](const Tensor& t) {
    return reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && t.row_stride() * size_bytes(t.dtype) % 16 == 0;
  };
  return bytes % 16 == 0 && (aligned(tensors) && ...);
}

template <class Unit>
struct CopyBits {
  static constexpr int width = 1;
  Matrix<Unit> y, x;
  __device__ void operator()(int64_t row, int64_t col) const { *y.at(row, col) = *x.at(row, col); }
};

template <class To, class From, int V>
struct ConvertElements {
  static constexpr int width = V;
  Matrix<To> y;
  Matrix<From> x;
  __device__ void operator()(int64_t row, int64_t col) const {
    const auto in = Pack<From, V>::load(x.at(row, col));
    float v[V];
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] = in[i];
    Pack<To, V>::from(v).store(y.at(row, col));
  }
};

template <class Unit>
struct FillUnits {
  static constexpr int width = 1;
  Matrix<Unit> y;
  uint4 pattern;  // starts with the unit
  __device__ void operator()(int64_t row, int64_t col) const {
    memcpy(y.at(row, col), &pattern, sizeof(Unit));
  }
};

/// Rows of `b` may be the same one again and again: its stride is 0.
template <class T, int V>
struct AddElements {
  static constexpr int width = V;
  Matrix<T> y, a, b;
  __device__ void operator()(int64_t row, int64_t col) const {
    const auto p = Pack<T, V>::load(a.at(row, col)), q = Pack<T, V>::load(b.at(row, col));
    float v[V];
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] = p[i] + q[i];
    Pack<T, V>::from(v).store(y.at(row, col));
  }
};

/// sigmoid(x) with the GPU's own exponential. exp2 of a large number is infinite, and 1 / infinity is 0.
__device__ inline float quick_sigmoid(float x) { return 1.0f / (1.0f + fast_exp2(x * -1.44269504f)); }

template <class T, int V>
struct Swiglu {
  static constexpr int width = V;
  Matrix<T> h, gate_up;
  int64_t cols;
  __device__ void operator()(int64_t row, int64_t col) const {
    const auto gate = Pack<T, V>::load(gate_up.at(row, col)),
               up = Pack<T, V>::load(gate_up.at(row, cols + col));
    float v[V];
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] = gate[i] * quick_sigmoid(gate[i]) * up[i];
    Pack<T, V>::from(v).store(h.at(row, col));
  }
};

template <class T, int V>
struct SwigluGradient {
  static constexpr int width = V;
  Matrix<T> dgate_up, dh, gate_up;
  int64_t cols;
  __device__ void operator()(int64_t row, int64_t col) const {
    const auto gate = Pack<T, V>::load(gate_up.at(row, col)),
               up = Pack<T, V>::load(gate_up.at(row, cols + col));
    const auto d = Pack<T, V>::load(dh.at(row, col));
    float dgate[V], dup[V];
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const float g = gate[i], s = quick_sigmoid(g);
      dup[i] = d[i] * g * s;
      dgate[i] = d[i] * up[i] * s * (1.0f + g * (1.0f - s));
    }
    Pack<T, V>::from(dgate).store(dgate_up.at(row, col));
    Pack<T, V>::from(dup).store(dgate_up.at(row, cols + col));
  }
};

template <class T, int V>
struct Activate {
  static constexpr int width = V;
  Matrix<T> y, x;
  Activation activation;
  __device__ void operator()(int64_t row, int64_t col) const {
    const auto in = Pack<T, V>::load(x.at(row, col));
    float v[V];
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] = activation == Activation::relu ? relu(in[i]) : gelu(in[i]);
    Pack<T, V>::from(v).store(y.at(row, col));
  }
};

template <class T, int V>
struct ActivationGradient {
  static constexpr int width = V;
  Matrix<T> dx, dy, x;
  Activation activation;
  __device__ void operator()(int64_t row, int64_t col) const {
    const auto in = Pack<T, V>::load(x.at(row, col)), d = Pack<T, V>::load(dy.at(row, col));
    float v[V];
#pragma unroll
    for (int i = 0; i < V; ++i)
      v[i] = d[i] * (activation == Activation::relu ? relu_slope(in[i]) : gelu_slope(in[i]));
    Pack<T, V>::from(v).store(dx.at(row, col));
  }
};

/// A unit of NaNs: all bits set is one in f32 and in bf16.
template <class Unit>
__device__ Unit nans() {
  if constexpr (sizeof(Unit) == sizeof(uint4))
    return make_uint4(~0u, ~0u, ~0u, ~0u);
  else
    return static_cast<Unit>(~0u);
}

template <class Unit>
struct Gather {
  static constexpr int width = 1;
  Matrix<Unit> y, weight;
  const int32_t* tokens;
  int64_t vocabulary;
  __device__ void operator()(int64_t row, int64_t col) const {
    const int32_t token = tokens[row];
    *y.at(row, col) = 0 <= token && token < vocabulary ? *weight.at(token, col) : nans<Unit>();
  }
};

template <class Unit>
void copy_bits(const Queue& queue, const kernels::Copy& c, int64_t bytes) {
  each_element("copy", queue, c.x.rows(), bytes / static_cast<int64_t>(sizeof(Unit)),
               CopyBits<Unit>{units<Unit>(c.y), units<Unit>(c.x)});
}

template <class To, class From>
void convert(const Queue& queue, const kernels::Copy& c) {
  const int64_t cols = c.x.cols();
  if (vectors<To>(cols, c.y) && vectors<From>(cols, c.x) && cols % 8 == 0)
    each_element("copy", queue, c.x.rows(), cols,
                 ConvertElements<To, From, 8>{matrix<To>(c.y), matrix<From>(c.x)});
  else
    each_element("copy", queue, c.x.rows(), cols,
                 ConvertElements<To, From, 1>{matrix<To>(c.y), matrix<From>(c.x)});
}

/// `value` as it lies in memory, 16 bytes at a time where rows allow it.
template <class T>
void fill(const Queue& queue, const kernels::Fill& f, T value) {
  const int64_t bytes = f.y.cols() * size_bytes(f.y.dtype);
  uint4 pattern;
  for (size_t i = 0; i < sizeof(pattern); i += sizeof(T))
    memcpy(reinterpret_cast<char*>(&pattern) + i, &value, sizeof(T));
  if (moves_by_16(bytes, f.y))
    each_element("fill", queue, f.y.rows(), bytes / 16, FillUnits<uint4>{units<uint4>(f.y), pattern});
  else
    each_element("fill", queue, f.y.rows(), f.y.cols(), FillUnits<T>{matrix<T>(f.y), pattern});
}

/// y = a + b, where b may have one row only.
template <class T>
void add(const char* op, const Queue& queue, const Tensor& y, const Tensor& a, const Tensor& b) {
  Matrix<T> rows = matrix<T>(b);
  if (b.rows() == 1) rows.stride = 0;
  const int64_t cols = y.cols();
  if (vectors<T>(cols, y, a, b))
    each_element(op, queue, y.rows(), cols,
                 AddElements<T, vector_length<T>>{matrix<T>(y), matrix<T>(a), rows});
  else
    each_element(op, queue, y.rows(), cols, AddElements<T, 1>{matrix<T>(y), matrix<T>(a), rows});
}

/// Partial sums of fixed chunks of rows, then their sum.
template <class T>
void bias_backward(const Queue& queue, const kernels::BiasBackward& b) {
  const int64_t rows = b.dy.rows(), cols = b.dy.cols(),
                row_bytes = cols * static_cast<int64_t>(sizeof(float));
  const int64_t chunks =
      std::max<int64_t>(1, std::min({rows / 64, int64_t{264}, Stream::scratch_bytes / row_bytes}));
  float* partial = static_cast<float*>(stream_of(queue).scratch(chunks * row_bytes));
  column_sums<T>("bias backward", queue,
                 {.out = partial,
                  .base = nullptr,
                  .out_stride = cols,
                  .x = b.dy.as<T>(),
                  .x_stride = b.dy.row_stride(),
                  .rows = rows,
                  .cols = cols,
                  .chunks = chunks});
  sum_partials("bias backward", queue, b.dbias, partial, chunks, cols);
}

template <class T>
void swiglu_forward(const Queue& queue, const kernels::SwigluForward& f) {
  const int64_t cols = f.h.cols();
  const Matrix<T> h = matrix<T>(f.h), gate_up = matrix<T>(f.gate_up);
  if (vectors<T>(cols, f.h, f.gate_up))
    each_element("swiglu", queue, f.h.rows(), cols, Swiglu<T, vector_length<T>>{h, gate_up, cols});
  else
    each_element("swiglu", queue, f.h.rows(), cols, Swiglu<T, 1>{h, gate_up, cols});
}

template <class T>
void swiglu_backward(const Queue& queue, const kernels::SwigluBackward& b) {
  const int64_t cols = b.dh.cols();
  const Tensor& to = b.dgate_up.tensor;
  const Matrix<T> dgate_up = matrix<T>(to), dh = matrix<T>(b.dh), gate_up = matrix<T>(b.gate_up);
  if (vectors<T>(cols, to, b.dh, b.gate_up))
    each_element("swiglu backward", queue, b.dh.rows(), cols,
                 SwigluGradient<T, vector_length<T>>{dgate_up, dh, gate_up, cols});
  else
    each_element("swiglu backward", queue, b.dh.rows(), cols,
                 SwigluGradient<T, 1>{dgate_up, dh, gate_up, cols});
}

template <class T>
void activation_forward(const Queue& queue, const kernels::ActivationForward& f) {
  const Matrix<T> y = matrix<T>(f.y), x = matrix<T>(f.x);
  if (vectors<T>(f.y.cols(), f.y, f.x))
    each_element("activation", queue, f.y.rows(), f.y.cols(),
                 Activate<T, vector_length<T>>{y, x, f.activation});
  else
    each_element("activation", queue, f.y.rows(), f.y.cols(), Activate<T, 1>{y, x, f.activation});
}

template <class T>
void activation_backward(const Queue& queue, const kernels::ActivationBackward& b) {
  const Tensor& to = b.dx.tensor;
  const Matrix<T> dx = matrix<T>(to), dy = matrix<T>(b.dy), x = matrix<T>(b.x);
  if (vectors<T>(b.x.cols(), to, b.dy, b.x))
    each_element("activation backward", queue, b.x.rows(), b.x.cols(),
                 ActivationGradient<T, vector_length<T>>{dx, dy, x, b.activation});
  else
    each_element("activation backward", queue, b.x.rows(), b.x.cols(),
                 ActivationGradient<T, 1>{dx, dy, x, b.activation});
}

template <class Unit>
void gather(const Queue& queue, const kernels::EmbeddingForward& f, int64_t bytes) {
  each_element(
      "embedding", queue, f.y.rows(), bytes / static_cast<int64_t>(sizeof(Unit)),
      Gather<Unit>{units<Unit>(f.y), units<Unit>(f.weight), f.tokens.as<int32_t>(), f.weight.rows()});
}

}  // namespace

void copy(const Queue& queue, const kernels::Copy& c) {
  const int64_t bytes = c.x.cols() * size_bytes(c.x.dtype);
  if (c.y.dtype == DType::f32 && c.x.dtype == DType::bf16) return convert<float, bf16>(queue, c);
  if (c.y.dtype == DType::bf16 && c.x.dtype == DType::f32) return convert<bf16, float>(queue, c);
  require(c.y.dtype == c.x.dtype, "copy", "no conversion from {} to {}", name(c.x.dtype), name(c.y.dtype));
  if (moves_by_16(bytes, c.y, c.x)) return copy_bits<uint4>(queue, c, bytes);
  switch (size_bytes(c.x.dtype)) {
    case 2:
      return copy_bits<uint16_t>(queue, c, bytes);
    case 4:
      return copy_bits<uint32_t>(queue, c, bytes);
    default:
      return copy_bits<uint64_t>(queue, c, bytes);
  }
}

void fill(const Queue& queue, const kernels::Fill& f) {
  const float value = static_cast<float>(f.value);
  if (f.y.dtype == DType::f64)
    fill<double>(queue, f, f.value);
  else if (f.y.dtype == DType::bf16)
    fill<bf16>(queue, f, to_bf16(value));
  else
    fill<float>(queue, f, value);
}

void add(const Queue& queue, const kernels::Add& a) {
  if (a.y.dtype == DType::bf16)
    add<bf16>("add", queue, a.y, a.a, a.b);
  else
    add<float>("add", queue, a.y, a.a, a.b);
}

void add_bias(const Queue& queue, const kernels::AddBias& a) {
  if (a.y.dtype == DType::bf16)
    add<bf16>("add_bias", queue, a.y, a.x, a.bias);
  else
    add<float>("add_bias", queue, a.y, a.x, a.bias);
}

void bias_backward(const Queue& queue, const kernels::BiasBackward& b) {
  b.dy.dtype == DType::bf16 ? bias_backward<bf16>(queue, b) : bias_backward<float>(queue, b);
}

void swiglu_forward(const Queue& queue, const kernels::SwigluForward& f) {
  f.h.dtype == DType::bf16 ? swiglu_forward<bf16>(queue, f) : swiglu_forward<float>(queue, f);
}

void swiglu_backward(const Queue& queue, const kernels::SwigluBackward& b) {
  b.dh.dtype == DType::bf16 ? swiglu_backward<bf16>(queue, b) : swiglu_backward<float>(queue, b);
}

void activation_forward(const Queue& queue, const kernels::ActivationForward& f) {
  f.y.dtype == DType::bf16 ? activation_forward<bf16>(queue, f) : activation_forward<float>(queue, f);
}

void activation_backward(const Queue& queue, const kernels::ActivationBackward& b) {
  b.x.dtype == DType::bf16 ? activation_backward<bf16>(queue, b) : activation_backward<float>(queue, b);
}

void embedding_forward(const Queue& queue, const kernels::EmbeddingForward& f) {
  const int64_t bytes = f.y.cols() * size_bytes(f.y.dtype);
  if (moves_by_16(bytes, f.y, f.weight))
    gather<uint4>(queue, f, bytes);
  else if (f.y.dtype == DType::bf16)
    gather<uint16_t>(queue, f, bytes);
  else
    gather<uint32_t>(queue, f, bytes);
}

}  // namespace osprey::cuda
