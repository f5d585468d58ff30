#include "kernels/matmul.h"

#include <array>
#include <cstring>
#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>

#include "kernels/cpu/convert.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/scratch.h"

namespace osprey::cpu {

namespace {

using dnnl::memory;

// What distinguishes one oneDNN primitive from another: shapes, strides, types, scales, threads.
using Key = std::array<int64_t, 16>;
struct HashKey {
  size_t operator()(const Key& key) const {
    uint64_t h = 1469598103934665603ull;
    for (int64_t v : key) h = (h ^ static_cast<uint64_t>(v)) * 1099511628211ull;
    return static_cast<size_t>(h ^ (h >> 29));
  }
};

struct Product {
  dnnl::matmul primitive;
  memory a, b, c, scratchpad;
  size_t scratchpad_bytes = 0;
  std::unordered_map<int, memory> args;
};

// oneDNN's own dispatch follows OSPREY_ISA, so that a test of a lower level tests all of it.
dnnl::engine make_engine() {
  using dnnl::cpu_isa;
  switch (active_isa()) {
    case Isa::portable:
      dnnl::set_max_cpu_isa(cpu_isa::sse41);
      break;
    case Isa::avx2:
      dnnl::set_max_cpu_isa(cpu_isa::avx2);
      break;
    case Isa::avx512:
      dnnl::set_max_cpu_isa(cpu_isa::avx512_core_vnni);
      break;
    case Isa::avx512_bf16:
      break;
  }
  return dnnl::engine(dnnl::engine::kind::cpu, 0);
}

const dnnl::engine& engine() {
  static const dnnl::engine one = make_engine();
  return one;
}

memory::data_type type_of(DType dtype) {
  return dtype == DType::bf16 ? memory::data_type::bf16 : memory::data_type::f32;
}

// The view as oneDNN sees it: always (batch, rows, cols) of op(t).
memory::desc describe(const Tensor& t, kernels::Op op) {
  const int last = t.shape.rank - 1;
  int64_t rows = t.shape[-2], cols = t.shape[-1];
  int64_t row_stride = t.strides[static_cast<size_t>(last) - 1], col_stride = 1;
  // The stride of a dimension of size one is arbitrary; give oneDNN one that it recognises.
  if (rows == 1) row_stride = cols;
  if (op == kernels::Op::transpose) {
    std::swap(rows, cols);
    std::swap(row_stride, col_stride);
  }
  if (t.shape.rank == 2) return memory::desc({rows, cols}, type_of(t.dtype), {row_stride, col_stride});
  return memory::desc({t.shape[0], rows, cols}, type_of(t.dtype), {t.strides[0], row_stride, col_stride});
}

Key key_of(int threads, const kernels::Matmul& m) {
  const auto bits = [](float f) {
    int32_t i;
    std::memcpy(&i, &f, 4);
    return static_cast<int64_t>(i);
  };
  const auto row_stride = [](const Tensor& t) { return t.strides[static_cast<size_t>(t.shape.rank) - 2]; };
  const bool batched = m.c.shape.rank == 3;
  const int64_t types = static_cast<int64_t>(m.a.dtype) | static_cast<int64_t>(m.c.dtype) << 4 |
                        static_cast<int64_t>(m.op_a) << 8 | static_cast<int64_t>(m.op_b) << 9;
  return {types,
          batched ? m.c.shape[0] : -1,
          m.a.shape[-2],
          m.a.shape[-1],
          m.b.shape[-2],
          m.b.shape[-1],
          row_stride(m.a),
          row_stride(m.b),
          row_stride(m.c),
          batched ? m.a.strides[0] : 0,
          batched ? m.b.strides[0] : 0,
          batched ? m.c.strides[0] : 0,
          bits(m.alpha),
          bits(m.beta),
          threads,
          0};
}

Product build(const kernels::Matmul& m) {
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (m.alpha != 1.0f) attr.set_output_scales(0, {m.alpha});
  if (m.beta != 0.0f) {
    dnnl::post_ops ops;
    ops.append_sum(m.beta);
    attr.set_post_ops(ops);
  }
  const dnnl::matmul::primitive_desc desc(
      dnnl::matmul::desc(describe(m.a, m.op_a), describe(m.b, m.op_b), describe(m.c, kernels::Op::none)),
      attr, engine());
  Product p;
  p.primitive = dnnl::matmul(desc);
  p.a = memory(desc.src_desc(), engine(), nullptr);
  p.b = memory(desc.weights_desc(), engine(), nullptr);
  p.c = memory(desc.dst_desc(), engine(), nullptr);
  p.scratchpad = memory(desc.scratchpad_desc(), engine(), nullptr);
  p.scratchpad_bytes = desc.scratchpad_desc().get_size();
  p.args = {
      {DNNL_ARG_SRC, p.a}, {DNNL_ARG_WEIGHTS, p.b}, {DNNL_ARG_DST, p.c}, {DNNL_ARG_SCRATCHPAD, p.scratchpad}};
  return p;
}

// Products are kept per thread: nothing is shared, so nothing is locked.
Product& find(int threads, const kernels::Matmul& m) {
  thread_local std::unordered_map<Key, Product, HashKey> cache;
  const Key key = key_of(threads, m);
  const auto found = cache.find(key);
  if (found != cache.end()) return found->second;
  constexpr size_t most = 1024;  // generation asks for ever new lengths
  if (cache.size() >= most) cache.clear();
  return cache.emplace(key, build(m)).first->second;
}

// oneDNN splits the inner dimension when the result has too few blocks for the threads, and then
// the result depends on their number; so a small result gets fewer threads.
int threads_for(const Queue& queue, const kernels::Matmul& m) {
  const Shape& c = m.c.shape;
  const int64_t blocks = (c.rank == 3 ? c[0] : 1) * (c[-2] / 128) * (c[-1] / 128);
  return static_cast<int>(std::clamp<int64_t>(blocks, 1, queue.threads));
}

void run_whole(const Queue& queue, const kernels::Matmul& m) {
  thread_local dnnl::stream stream(engine());
  const int before = omp_get_max_threads(), threads = threads_for(queue, m);
  if (before != threads) omp_set_num_threads(threads);  // oneDNN takes what OpenMP says
  Product& p = find(threads, m);
  p.a.set_data_handle(m.a.data);
  p.b.set_data_handle(m.b.data);
  p.c.set_data_handle(m.c.data);
  if (p.scratchpad_bytes > 0) p.scratchpad.set_data_handle(scratch(Scratch::onednn, p.scratchpad_bytes));
  p.primitive.execute(stream, p.args);
  if (before != threads) omp_set_num_threads(before);
}

// One product of a batch, as a batch of one.
kernels::Matmul product_of(const kernels::Matmul& m, int64_t index) {
  kernels::Matmul one = m;
  for (Tensor* t : {&one.c, &one.a, &one.b}) {
    t->data = static_cast<char*>(t->data) + index * t->strides[0] * size_bytes(t->dtype);
    t->shape.dims[0] = 1;
  }
  return one;
}

// Block `index` of the longer side of c, and what it is the product of; or a product of a batch.
kernels::Matmul block_of(const kernels::Matmul& m, int64_t index, int64_t length) {
  if (m.c.shape.rank == 3) return product_of(m, index);
  const bool rows = m.c.shape[-2] >= m.c.shape[-1];
  const int64_t begin = index * length, end = std::min(begin + length, m.c.shape[rows ? -2 : -1]);
  const auto cut = [&](const Tensor& t, bool by_rows) {
    return by_rows ? t.row_range(begin, end) : t.columns(begin, end);
  };
  kernels::Matmul part = m;
  part.c = cut(m.c, rows);
  if (rows)
    part.a = cut(m.a, m.op_a == kernels::Op::none);
  else
    part.b = cut(m.b, m.op_b == kernels::Op::transpose);
  return part;
}

// With AMX oneDNN splits the inner dimension of large results as well, by the number of threads. There each
// thread takes whole blocks, whose bounds follow from the shape alone.
void run(const Queue& queue, const kernels::Matmul& m) {
  constexpr int64_t length = 256;
  static const bool cuts_inner = active_isa() == Isa::avx512_bf16 && has_amx();
  if (!cuts_inner) return run_whole(queue, m);
  const int64_t blocks =
      m.c.shape.rank == 3 ? m.c.shape[0] : (std::max(m.c.shape[-2], m.c.shape[-1]) + length - 1) / length;
  Queue alone = queue;
  alone.threads = 1;
  parallel_for(queue, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) run_whole(alone, block_of(m, i, length));
  });
}

// A contiguous f32 copy of `t` in scratch memory.
Tensor widen(const Queue& queue, const Tensor& t, Scratch purpose) {
  Tensor copy =
      make_tensor(scratch(purpose, static_cast<size_t>(t.numel()) * 4), t.shape, DType::f32, t.device);
  copy_matrix(queue, copy, t);
  return copy;
}

}  // namespace

void library_matmul(const Queue& queue, const kernels::Matmul& args) {
  const bool bf16_in = args.a.dtype == DType::bf16, bf16_out = args.c.dtype == DType::bf16;
  const bool other_addend = args.beta != 0.0f && args.addend.defined();
  if (bf16_in ? has_bf16_instructions() : !bf16_out) {
    if (other_addend) copy_matrix(queue, args.c, args.addend);  // oneDNN adds to c
    return run(queue, args);
  }
  kernels::Matmul wide = args;
  if (bf16_in) {
    wide.a = widen(queue, args.a, Scratch::gemm_a);
    wide.b = widen(queue, args.b, Scratch::gemm_b);
  }
  if (!bf16_out) {
    if (other_addend) copy_matrix(queue, args.c, args.addend);
    return run(queue, wide);
  }
  wide.c = make_tensor(scratch(Scratch::gemm_c, static_cast<size_t>(args.c.numel()) * 4), args.c.shape,
                       DType::f32, args.c.device);
  if (args.beta != 0.0f) copy_matrix(queue, wide.c, other_addend ? args.addend : args.c);
  run(queue, wide);
  copy_matrix(queue, args.c, wide.c);
}

}  // namespace osprey::cpu
