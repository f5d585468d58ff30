#pragma once
// Attention on raw pointers, compiled for each instruction set; see kernels/cpu/attention.cpp.

#include <stdint.h>

#include "kernels/cpu/isa.h"

namespace osprey::cpu {

enum class GateKind { none, headwise, elementwise };

/// Rows of a matrix; strides in elements.
struct RowsIn {
  const void* data;
  int64_t stride;
};
struct RowsOut {
  void* data;
  int64_t stride;
  bool add;
};

struct AttentionParams {
  int64_t batch, tokens, heads, kv_heads, head_size;
  RowsIn q, k, v;
  const int32_t* document_start;  // (N) or null
  int64_t window;
  float scale;
  bool clipped;
  float zeta, gamma;
  const float* sink;  // (H) or null
  GateKind gate_kind;
  RowsIn gate;
  float* lse;  // (B, H, T); backward only reads it
};

struct AttentionForwardParams : AttentionParams {
  RowsOut o;
  int64_t blocks_per_task;  // query blocks of 64 rows that share one packing of k and v
};

struct AttentionBackwardParams : AttentionParams {
  RowsIn o, dy;
  RowsOut dq, dk, dv, dgate;  // null data: not wanted
  double* dsink_parts;        // (B, H) or null
};

struct AttentionDecodeParams : AttentionParams {  // batch rows of q; tokens is the cache's capacity
  RowsOut o;
  const int32_t* lengths;
};

/// A task of forward is one (sequence, kv head, group of query blocks), of backward one (sequence,
/// kv head), of decode one (sequence, head). Tasks write disjoint memory.
template <class Params>
struct AttentionPass {
  int64_t (*scratch_bytes)(const Params&);  // for one task at a time
  void (*run)(const Params&, int64_t task, void* scratch);
};

struct AttentionTable {
  AttentionPass<AttentionForwardParams> forward_f32, forward_bf16;
  AttentionPass<AttentionDecodeParams> decode_f32, decode_bf16;
};
OSPREY_ISA_TABLE(AttentionTable, attention_table)

struct AttentionBackwardTable {
  AttentionPass<AttentionBackwardParams> f32, bf16;
};
OSPREY_ISA_TABLE(AttentionBackwardTable, attention_backward_table)

}  // namespace osprey::cpu
