#include "kernels/pointwise.h"

#include <cstring>

#include "kernels/cpu/convert.h"
#include "kernels/cpu/isa/pointwise.h"

namespace osprey::cpu {

namespace {

char* row(const Tensor& t, int64_t r) {
  return static_cast<char*>(t.data) + r * t.row_stride() * size_bytes(t.dtype);
}

template <class T>
T* row_of(const Tensor& t, int64_t r) {
  return reinterpret_cast<T*>(row(t, r));
}

/// Rows that are worth a thread.
int64_t grain_rows(int64_t cols) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, cols)); }

}  // namespace

void copy(const Queue& queue, const kernels::Copy& c) {
  const int64_t rows = c.x.rows();
  copy_matrix(queue, c.y.row_range(0, rows), c.x.row_range(0, rows));
}

template <class T>
static void fill_rows(const Queue& queue, const Tensor& y, T value) {
  parallel_for(queue, y.rows(), grain_rows(y.cols()), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) std::fill_n(row_of<T>(y, r), y.cols(), value);
  });
}

void fill(const Queue& queue, const kernels::Fill& f) {
  if (f.y.dtype == DType::f64) return fill_rows(queue, f.y, f.value);
  const float value = static_cast<float>(f.value);
  if (f.y.dtype == DType::f32) return fill_rows(queue, f.y, value);
  fill_rows(queue, f.y, to_bf16(value));
}

void add(const Queue& queue, const kernels::Add& a) {
  const int64_t n = a.y.cols();
  parallel_for(queue, a.y.rows(), grain_rows(n), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      if (a.y.dtype == DType::bf16)
        pointwise_table().add_bf16(row_of<bf16>(a.y, r), row_of<bf16>(a.a, r), row_of<bf16>(a.b, r), n);
      else
        pointwise_table().add_f32(row_of<float>(a.y, r), row_of<float>(a.a, r), row_of<float>(a.b, r), n);
    }
  });
}

void add_bias(const Queue& queue, const kernels::AddBias& a) {
  const int64_t n = a.y.cols();
  parallel_for(queue, a.y.rows(), grain_rows(n), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      if (a.y.dtype == DType::bf16)
        pointwise_table().add_bf16(row_of<bf16>(a.y, r), row_of<bf16>(a.x, r), a.bias.as<bf16>(), n);
      else
        pointwise_table().add_f32(row_of<float>(a.y, r), row_of<float>(a.x, r), a.bias.as<float>(), n);
    }
  });
}

void bias_backward(const Queue&, const kernels::BiasBackward& b) {
  float* sum = b.dbias.tensor.as<float>();
  const int64_t n = b.dy.cols();
  if (!b.dbias.add) std::memset(sum, 0, static_cast<size_t>(n) * sizeof(float));
  for (int64_t r = 0; r < b.dy.rows(); ++r) {
    if (b.dy.dtype == DType::bf16)
      pointwise_table().accumulate_bf16(sum, row_of<bf16>(b.dy, r), n);
    else
      pointwise_table().accumulate_f32(sum, row_of<float>(b.dy, r), n);
  }
}

void swiglu_forward(const Queue& queue, const kernels::SwigluForward& f) {
  const int64_t n = f.h.cols();
  parallel_for(queue, f.h.rows(), grain_rows(n), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      if (f.h.dtype == DType::bf16) {
        const bf16* gate = row_of<bf16>(f.gate_up, r);
        pointwise_table().swiglu_forward_bf16(row_of<bf16>(f.h, r), gate, gate + n, n);
      } else {
        const float* gate = row_of<float>(f.gate_up, r);
        pointwise_table().swiglu_forward_f32(row_of<float>(f.h, r), gate, gate + n, n);
      }
    }
  });
}

void swiglu_backward(const Queue& queue, const kernels::SwigluBackward& b) {
  const int64_t n = b.dh.cols();
  parallel_for(queue, b.dh.rows(), grain_rows(n), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      if (b.dh.dtype == DType::bf16) {
        bf16* dgate = row_of<bf16>(b.dgate_up.tensor, r);
        const bf16* gate = row_of<bf16>(b.gate_up, r);
        pointwise_table().swiglu_backward_bf16(dgate, dgate + n, row_of<bf16>(b.dh, r), gate, gate + n, n);
      } else {
        float* dgate = row_of<float>(b.dgate_up.tensor, r);
        const float* gate = row_of<float>(b.gate_up, r);
        pointwise_table().swiglu_backward_f32(dgate, dgate + n, row_of<float>(b.dh, r), gate, gate + n, n);
      }
    }
  });
}

void activation_forward(const Queue& queue, const kernels::ActivationForward& f) {
  const int64_t n = f.y.cols();
  parallel_for(queue, f.y.rows(), grain_rows(n), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      if (f.y.dtype == DType::bf16)
        pointwise_table().activation_bf16(row_of<bf16>(f.y, r), row_of<bf16>(f.x, r), n, f.activation);
      else
        pointwise_table().activation_f32(row_of<float>(f.y, r), row_of<float>(f.x, r), n, f.activation);
    }
  });
}

void activation_backward(const Queue& queue, const kernels::ActivationBackward& b) {
  const int64_t n = b.x.cols();
  const Tensor& dx = b.dx.tensor;
  parallel_for(queue, b.x.rows(), grain_rows(n), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      if (dx.dtype == DType::bf16)
        pointwise_table().activation_backward_bf16(row_of<bf16>(dx, r), row_of<bf16>(b.dy, r),
                                                   row_of<bf16>(b.x, r), n, b.activation);
      else
        pointwise_table().activation_backward_f32(row_of<float>(dx, r), row_of<float>(b.dy, r),
                                                  row_of<float>(b.x, r), n, b.activation);
    }
  });
}

void embedding_forward(const Queue& queue, const kernels::EmbeddingForward& f) {
  const int32_t* tokens = f.tokens.as<int32_t>();
  const int64_t vocabulary = f.weight.rows();
  for (int64_t r = 0; r < f.y.rows(); ++r)
    require(0 <= tokens[r] && tokens[r] < vocabulary, "embedding", "token {} is outside the vocabulary of {}",
            tokens[r], vocabulary);
  const size_t bytes = static_cast<size_t>(f.y.cols() * size_bytes(f.y.dtype));
  parallel_for(queue, f.y.rows(), grain_rows(f.y.cols()), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) std::memcpy(row(f.y, r), row(f.weight, tokens[r]), bytes);
  });
}

void embedding_backward(const Queue& queue, const kernels::EmbeddingBackward& b) {
  const int32_t* tokens = b.tokens.as<int32_t>();
  const int64_t n = b.dy.cols(), vocabulary = b.dweight.tensor.rows();
  // Every thread owns a range of the vocabulary, so each row is summed in the order of the tokens.
  parallel_for(queue, vocabulary, 256, [&](int64_t begin, int64_t end) {
    if (!b.dweight.add)
      std::memset(row(b.dweight.tensor, begin), 0, static_cast<size_t>((end - begin) * n) * sizeof(float));
    for (int64_t r = 0; r < b.dy.rows(); ++r) {
      const int64_t at = tokens[r] - b.first_row;
      if (at < begin || at >= end) continue;
      float* sum = row_of<float>(b.dweight.tensor, at);
      if (b.dy.dtype == DType::bf16)
        pointwise_table().accumulate_bf16(sum, row_of<bf16>(b.dy, r), n);
      else
        pointwise_table().accumulate_f32(sum, row_of<float>(b.dy, r), n);
    }
  });
}

}  // namespace osprey::cpu
