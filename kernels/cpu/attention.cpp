#include "kernels/attention.h"

#include <atomic>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/cpu/isa/attention.h"
#include "kernels/cpu/scratch.h"

namespace osprey::cpu {

namespace {

/// Tasks are handed out as threads become free: causal rows cost unequal time. A task's result does
/// not depend on who runs it.
template <class Params>
void run_tasks(const Queue& queue, const AttentionPass<Params>& pass, const Params& params, int64_t tasks) {
  const int64_t bytes = pass.scratch_bytes(params);
  std::atomic<int64_t> next{0};
  parallel_for(queue, std::min<int64_t>(queue.threads, tasks), 1, [&](int64_t, int64_t) {
    void* memory = scratch(Scratch::attention, static_cast<size_t>(bytes));
    for (int64_t task = next++; task < tasks; task = next++) pass.run(params, task, memory);
  });
}

RowsIn rows_in(const Tensor& t) { return t.defined() ? RowsIn{t.data, t.row_stride()} : RowsIn{}; }
RowsOut rows_out(const Tensor& t) { return t.defined() ? RowsOut{t.data, t.row_stride(), false} : RowsOut{}; }
RowsOut rows_out(const Accum& a) {
  return a ? RowsOut{a.tensor.data, a.tensor.row_stride(), a.add} : RowsOut{};
}

/// The sink as f32, kept by the calling thread until it asks again.
const float* sink_values(const Tensor& sink) {
  if (!sink.defined()) return nullptr;
  if (sink.dtype == DType::f32) return sink.as<float>();
  thread_local std::vector<float> values;
  values.resize(static_cast<size_t>(sink.numel()));
  for (size_t i = 0; i < values.size(); ++i) values[i] = to_float(sink.as<bf16>()[i]);
  return values.data();
}

void copy_row(const Tensor& to, int64_t to_row, const Tensor& from, int64_t from_row) {
  const int64_t size = size_bytes(to.dtype);
  std::memcpy(static_cast<char*>(to.data) + to_row * to.row_stride() * size,
              static_cast<const char*>(from.data) + from_row * from.row_stride() * size,
              static_cast<size_t>(to.cols() * size));
}

template <class Args>
void set_common(AttentionParams& p, const Args& a) {
  const int64_t size = a.head_size;
  p.heads = a.q.cols() / size;
  p.head_size = size;
  p.q = rows_in(a.q);
  p.window = a.window;
  p.scale = a.scale.value_or(1.0f / std::sqrt(static_cast<float>(size)));
}

template <class Args>
void set_options(AttentionParams& p, const Args& a) {
  if (a.clip) {
    p.clipped = true;
    p.zeta = a.clip->zeta;
    p.gamma = a.clip->gamma;
  }
  p.sink = sink_values(a.sink);
  p.gate = rows_in(a.gate);
  if (a.gate.defined()) p.gate_kind = a.gate.cols() == p.heads ? GateKind::headwise : GateKind::elementwise;
}

template <class Args>
void set_sequences(AttentionParams& p, const Args& a) {
  set_common(p, a);
  p.batch = a.batch;
  p.tokens = a.q.rows() / a.batch;
  p.kv_heads = a.k.cols() / a.head_size;
  p.k = rows_in(a.k);
  p.lse = a.lse.template as<float>();
  p.document_start = a.document_start.defined() ? a.document_start.template as<int32_t>() : nullptr;
}

}  // namespace

void attention_forward(const Queue& queue, const kernels::AttentionForward& a) {
  AttentionForwardParams p{};
  set_sequences(p, a);
  set_options(p, a);
  p.v = rows_in(a.v);
  p.o = rows_out(a.o);
  if (p.tokens == 0) return;
  // As many query blocks as share one packing of keys and values without leaving the second-level
  // cache, but enough tasks to go round. Results do not depend on the choice.
  const int64_t blocks = (p.tokens + 63) / 64, pairs = p.batch * p.kv_heads;
  const int64_t bytes_per_block = (p.heads / p.kv_heads) * 64 * p.head_size * 4;
  p.blocks_per_task = std::clamp<int64_t>((256 << 10) / bytes_per_block, 1, blocks);
  while (p.blocks_per_task > 1 && queue.threads > 1 &&
         pairs * ((blocks + p.blocks_per_task - 1) / p.blocks_per_task) < 4 * queue.threads)
    p.blocks_per_task = (p.blocks_per_task + 1) / 2;
  const int64_t tasks = pairs * ((blocks + p.blocks_per_task - 1) / p.blocks_per_task);
  const AttentionTable& table = attention_table();
  run_tasks(queue, a.q.dtype == DType::bf16 ? table.forward_bf16 : table.forward_f32, p, tasks);
}

void attention_backward(const Queue& queue, const kernels::AttentionBackward& a) {
  AttentionBackwardParams p{};
  set_sequences(p, a);
  set_options(p, a);
  p.v = rows_in(a.v);
  p.o = rows_in(a.o);
  p.dy = rows_in(a.dy);
  p.dq = rows_out(a.dq);
  p.dk = rows_out(a.dk);
  p.dv = rows_out(a.dv);
  p.dgate = rows_out(a.dgate);
  thread_local std::vector<double> parts;
  if (a.dsink) {
    parts.assign(static_cast<size_t>(p.batch * p.heads), 0.0);
    p.dsink_parts = parts.data();
  }
  const AttentionBackwardTable& table = attention_backward_table();
  if (p.tokens > 0)
    run_tasks(queue, a.q.dtype == DType::bf16 ? table.bf16 : table.f32, p, p.batch * p.kv_heads);
  if (!a.dsink) return;
  float* dsink = a.dsink.tensor.as<float>();
  for (int64_t h = 0; h < p.heads; ++h) {
    double sum = a.dsink.add ? dsink[h] : 0.0;
    for (int64_t b = 0; b < p.batch; ++b) sum += parts[static_cast<size_t>(b * p.heads + h)];
    dsink[h] = static_cast<float>(sum);
  }
}

void attention_decode(const Queue& queue, const kernels::AttentionDecode& a) {
  AttentionDecodeParams p{};
  set_common(p, a);
  set_options(p, a);
  p.batch = a.q.rows();
  p.tokens = a.k_cache.shape[1];
  p.kv_heads = a.k_cache.cols() / a.head_size;
  p.k = rows_in(a.k_cache);
  p.v = rows_in(a.v_cache);
  p.o = rows_out(a.o);
  p.lengths = a.lengths.as<int32_t>();
  for (int64_t b = 0; b < p.batch; ++b)
    require(p.lengths[b] >= 1 && p.lengths[b] <= p.tokens, "attention decode",
            "length of sequence {} must be in [1, {}], got {}", b, p.tokens, p.lengths[b]);
  for (int64_t b = 0; b < p.batch && a.k.defined(); ++b) {
    const int64_t row = b * p.tokens + p.lengths[b] - 1;
    copy_row(a.k_cache, row, a.k, b);
    copy_row(a.v_cache, row, a.v, b);
  }
  const AttentionTable& table = attention_table();
  run_tasks(queue, a.q.dtype == DType::bf16 ? table.decode_bf16 : table.decode_f32, p, p.batch * p.heads);
}

}  // namespace osprey::cpu
