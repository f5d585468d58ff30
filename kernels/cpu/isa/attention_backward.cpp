// Scores are computed transposed, keys by queries: P^T and dS^T then are left operands of dV and dK
// as they stand, and dS^T written as a panel is the right operand of dQ^T. One task owns a kv head
// of one sequence, so every sum has one owner and one order.

#include <math.h>

#include "kernels/cpu/isa/attention.h"
#include "kernels/cpu/isa/attention_tile.h"

namespace osprey::cpu::OSPREY_ISA {

namespace {

/// Writes n values, on top of what is there or not.
template <class T>
void write_row(const RowsOut& m, int64_t row, int64_t column, const float* values, int n) {
  T* to = static_cast<T*>(m.data) + row * m.stride + column;
  int d = 0;
  if (m.add) {
    for (; d + lanes <= n; d += lanes) store(to + d, load(to + d) + load(values + d));
    for (; d < n; ++d) to[d] = Convert<T>::from(to_float(to[d]) + values[d]);
  } else {
    for (; d + lanes <= n; d += lanes) store(to + d, load(values + d));
    for (; d < n; ++d) to[d] = Convert<T>::from(values[d]);
  }
}

template <class T, class W>
struct BackwardTask {
  const AttentionBackwardParams& a;
  int64_t b, g;
  int head_size, padded, words;
  int64_t heads, blocks;  // of the group; of the sequence
  // Scratch, by query block of the head at work: q and dO as panels of both kinds, dQ^T, row
  // values.
  float *q_transposed = nullptr, *q_panel = nullptr, *do_transposed = nullptr, *do_panel = nullptr,
        *dq_transposed = nullptr;
  float *log_sum = nullptr,
        *row_term = nullptr;  // base-2 log of the row's sum; sum(dO * O), or its like under a clip
  int32_t* start = nullptr;
  // By key block: sums over the heads of the group.
  float *dk = nullptr, *dv = nullptr;
  // One tile.
  float *rows = nullptr, *key_rows = nullptr, *value_rows = nullptr, *key_columns = nullptr,
        *scores = nullptr, *dp = nullptr, *probs = nullptr, *ds = nullptr, *ds_panel = nullptr;

  static constexpr int tile_words = tile / W::per_word;

  int64_t carve(char* base) {
    Carver c{base};
    q_transposed = c.take(blocks * words * tile);
    do_transposed = c.take(blocks * words * tile);
    q_panel = c.take(blocks * tile_words * padded);
    do_panel = c.take(blocks * tile_words * padded);
    dq_transposed = c.take(blocks * head_size * tile);
    log_sum = c.take(blocks * tile);
    row_term = c.take(blocks * tile);
    start = c.take<int32_t>(blocks * tile);
    const int64_t kept = heads > 1 ? blocks : 1;
    dk = c.take(kept * tile * padded);
    dv = c.take(kept * tile * padded);
    rows = c.take(tile * padded);
    key_rows = c.take(tile * words);
    value_rows = c.take(tile * words);
    key_columns = c.take(head_size * tile_words);
    scores = c.take(strip * tile);
    dp = c.take(strip * tile);
    probs = c.take(tile * tile_words);
    ds = c.take(tile * tile_words);
    ds_panel = W::per_word == 1 ? ds : c.take(tile_words * tile);
    return c.used;
  }

  int valid(int64_t block) const {
    const int64_t left = a.tokens - block * tile;
    return static_cast<int>(left < tile ? left : tile);
  }
  const T* row_of(const RowsIn& m, int64_t t, int64_t column) const {
    return static_cast<const T*>(m.data) + (b * a.tokens + t) * m.stride + column;
  }

  void foresee(const RowsIn& m, int64_t block, int64_t head) const {
    if (block < blocks)
      prefetch_rows<0>(row_of(m, block * tile, head * head_size), m.stride, valid(block), head_size);
  }

  /// dO = dY * gate, row terms, gate gradients and panels of every query block.
  void prepare(int64_t head) {
    alignas(64) float dy[256] = {}, y[256] = {}, gate[256] = {};
    const RowsIn* query_side[] = {&a.q, &a.dy, &a.o};
    for (int64_t i = 0; i < blocks; ++i) {
      pack_rows<W>(rows, row_of(a.q, i * tile, head * head_size), a.q.stride, valid(i), head_size);
      rows_to_transposed_panel<W>(q_transposed + i * words * tile, rows, head_size);
      rows_to_panel<W>(q_panel + i * tile_words * padded, rows, head_size, padded);
      for (const RowsIn* m : query_side) foresee(*m, i + 1, head);
      for (int r = 0; r < tile; ++r) {
        const int64_t t = i * tile + r;
        if (t >= a.tokens) {  // rows that do not exist have probability 0 everywhere
          log_sum[t] = 1e30f;
          row_term[t] = 0;
          start[t] = 0;
          continue;
        }
        const T *dy_row = row_of(a.dy, t, head * head_size), *y_row = row_of(a.o, t, head * head_size);
        for (int d = 0; d < head_size; ++d) dy[d] = to_float(dy_row[d]);
        for (int d = 0; d < head_size; ++d) y[d] = to_float(y_row[d]);
        Vec total = {};
        for (int d = 0; d < padded; d += lanes) total += load(dy + d) * load(y + d);
        row_term[t] = sum_lanes(total);
        log_sum[t] = a.lse[(b * a.heads + head) * a.tokens + t] * log2e;
        const int64_t document = a.document_start ? a.document_start[b * a.tokens + t] : 0;
        start[t] = static_cast<int32_t>(first_visible_key(t, document, a.window));
        if (a.gate_kind != GateKind::none) through_gate(head, t, dy, y, gate, row_term[t]);
        put_gradient_row(r, dy);
      }
      if (valid(i) < tile)
        memset(rows + valid(i) * words, 0, static_cast<size_t>((tile - valid(i)) * words) * 4);
      rows_to_transposed_panel<W>(do_transposed + i * words * tile, rows, head_size);
      rows_to_panel<W>(do_panel + i * tile_words * padded, rows, head_size, padded);
    }
    memset(dq_transposed, 0, static_cast<size_t>(blocks * head_size * tile) * 4);
  }

  void put_gradient_row(int r, const float* values) {
    int d = 0;
    for (; d + lanes <= head_size; d += lanes) W::put_row(rows + r * words, d, load(values + d));
    if constexpr (W::per_word == 2) {
      for (; d < head_size; ++d) reinterpret_cast<bf16*>(rows + r * words)[d] = to_bf16(values[d]);
    } else {
      for (; d < head_size; ++d) rows[r * words + d] = to_float(Convert<T>::from(values[d]));
    }
  }

  /// dy becomes the gradient of the ungated output. dlogit = dY * Y * (1 - gate), since Y = gate *
  /// O.
  void through_gate(int64_t head, int64_t t, float* dy, const float* y, float* gate, float row_sum) {
    const bool headwise = a.gate_kind == GateKind::headwise;
    const int64_t column = headwise ? head : head * head_size;
    const int n = headwise ? 1 : head_size;
    const T* logits = row_of(a.gate, t, column);
    for (int d = 0; d < head_size; ++d) gate[d] = to_float(logits[headwise ? 0 : d]);
    alignas(64) float dlogit[256];
    for (int d = 0; d < padded; d += lanes) {
      const Vec open = sigmoid_of(load(gate + d)), grad = load(dy + d);
      store(dlogit + d, grad * load(y + d) * (1.0f - open));
      store(dy + d, grad * open);
      if (headwise && d == 0) dlogit[0] = row_sum * (1.0f - open[0]);
    }
    if (a.dgate.data) write_row<T>(a.dgate, b * a.tokens + t, column, dlogit, n);
  }

  void load_key_block(int64_t j) {
    pack_rows<W>(key_rows, row_of(a.k, j * tile, g * head_size), a.k.stride, valid(j), head_size);
    pack_rows<W>(value_rows, row_of(a.v, j * tile, g * head_size), a.v.stride, valid(j), head_size);
    rows_to_panel<W>(rows, key_rows, head_size, padded);
    transpose(key_columns, tile_words, rows, padded, tile_words, head_size);
  }

  /// Does any row of query block i see a key of block j, and is every pair visible?
  struct Sight {
    bool any, all;
  };
  Sight sight(int64_t i, int64_t j) const {
    int32_t least = start[i * tile], most = least;
    for (int r = 1; r < valid(i); ++r) {
      const int32_t s = start[i * tile + r];
      least = s < least ? s : least;
      most = s > most ? s : most;
    }
    return {least<(j + 1) * tile, i> j && most <= j * tile};
  }

  /// Scores and dP of 16 keys from `k` on of block j against the queries of block i from `first`
  /// on.
  void score_strip(int64_t i, int k, int first) {
    gemm<W, false>(scores + first, tile, key_rows + k * words, words, q_transposed + i * words * tile + first,
                   tile, strip, tile - first, words);
    gemm<W, false>(dp + first, tile, value_rows + k * words, words, do_transposed + i * words * tile + first,
                   tile, strip, tile - first, words);
  }

  template <bool masked>
  Vec probability(int64_t i, int64_t key, const float* score, int c) const {
    const Vec p = exp2_of(load(score + c) * (a.scale * log2e) - load(log_sum + i * tile + c));
    if constexpr (!masked) return p;
    const IVec query = iota() + static_cast<int32_t>(i * tile + c), at = splat(static_cast<int32_t>(key));
    return (query >= at) & (load(start + i * tile + c) <= at) ? p : Vec{};
  }

  /// Row term under a clip: the sum over keys of p * clip'(p) * dP, which no saved output gives.
  template <bool masked>
  void add_row_terms(int64_t i, int64_t j, int k, int first) {
    const float stretch = a.zeta - a.gamma;
    for (int c = first; c < tile; c += lanes) {
      Vec total = load(row_term + i * tile + c);
      for (int r = 0; r < strip; ++r) {
        const Vec p = probability<masked>(i, j * tile + k + r, scores + r * tile, c);
        const Vec stretched = p * stretch + a.gamma;
        const Vec slope = (stretched > 0.0f) & (stretched < 1.0f) ? splat(stretch) : Vec{};
        total += p * slope * load(dp + r * tile + c);
      }
      store(row_term + i * tile + c, total);
    }
  }

  /// P^T and dS^T of a strip, as left operands and dS^T as a panel too.
  template <bool masked, bool clipped>
  void differentiate(int64_t i, int64_t j, int k, int first) {
    const float stretch = a.zeta - a.gamma;
    for (int r = 0; r < strip; r += 2) {
      for (int c = first; c < tile; c += lanes) {
        Vec grad[2];
        for (int e = 0; e < 2; ++e) {
          const float *s = scores + (r + e) * tile, *d = dp + (r + e) * tile;
          const Vec p = probability<masked>(i, j * tile + k + r + e, s, c);
          const Vec term = load(row_term + i * tile + c);
          float* prob_row = probs + (k + r + e) * tile_words;
          if constexpr (clipped) {
            const Vec stretched = p * stretch + a.gamma;
            const auto inside = (stretched > 0.0f) & (stretched < 1.0f);
            const Vec low = stretched < 0.0f ? splat(0.0f) : stretched;
            W::put_row(prob_row, c, low > 1.0f ? splat(1.0f) : low);
            grad[e] = p * ((inside ? load(d + c) * stretch : Vec{}) - term) * a.scale;
          } else {
            W::put_row(prob_row, c, p);
            grad[e] = p * (load(d + c) - term) * a.scale;
          }
          if constexpr (W::per_word == 2) W::put_row(ds + (k + r + e) * tile_words, c, grad[e]);
        }
        W::put_panel(ds_panel, k + r, c, grad[0], grad[1]);
      }
      for (int c = 0; c < first; c += lanes) W::put_panel(ds_panel, k + r, c, Vec{}, Vec{});
    }
  }

  void row_terms_under_clip() {
    memset(row_term, 0, static_cast<size_t>(blocks * tile) * 4);
    for (int64_t j = 0; j < blocks; ++j) {
      load_key_block(j);
      for (int64_t i = j; i < blocks; ++i) {
        const Sight seen = sight(i, j);
        if (!seen.any) continue;
        for (int k = 0; k < tile; k += strip) {
          const int first = i == j ? k : 0;
          score_strip(i, k, first);
          if (seen.all)
            add_row_terms<false>(i, j, k, first);
          else
            add_row_terms<true>(i, j, k, first);
        }
      }
    }
  }

  void one_tile(int64_t i, int64_t j, bool all_visible, float* dk_tile, float* dv_tile) {
    for (int k = 0; k < tile; k += strip) {
      const int first = i == j ? k : 0;  // earlier queries see none of these keys
      score_strip(i, k, first);
      if (a.clipped)
        all_visible ? differentiate<false, true>(i, j, k, first) : differentiate<true, true>(i, j, k, first);
      else
        all_visible ? differentiate<false, false>(i, j, k, first)
                    : differentiate<true, false>(i, j, k, first);
      const int skip = first / W::per_word, steps = tile_words - skip;
      gemm<W, true>(dv_tile + k * padded, padded, probs + k * tile_words + skip, tile_words,
                    do_panel + (i * tile_words + skip) * padded, padded, strip, padded, steps);
      gemm<W, true>(dk_tile + k * padded, padded, ds + k * tile_words + skip, tile_words,
                    q_panel + (i * tile_words + skip) * padded, padded, strip, padded, steps);
    }
    gemm<W, true>(dq_transposed + i * head_size * tile, tile, key_columns, tile_words, ds_panel, tile,
                  head_size, tile, tile_words);
  }

  void write_keys(int64_t j, const float* dk_tile, const float* dv_tile) {
    for (int r = 0; r < valid(j); ++r) {
      const int64_t row = b * a.tokens + j * tile + r;
      if (a.dk.data) write_row<T>(a.dk, row, g * head_size, dk_tile + r * padded, head_size);
      if (a.dv.data) write_row<T>(a.dv, row, g * head_size, dv_tile + r * padded, head_size);
    }
  }

  void write_queries(int64_t head) {
    for (int64_t i = 0; i < blocks && a.dq.data; ++i) {
      transpose(rows, padded, dq_transposed + i * head_size * tile, tile, head_size, tile);
      for (int r = 0; r < valid(i); ++r)
        write_row<T>(a.dq, b * a.tokens + i * tile + r, head * head_size, rows + r * padded, head_size);
    }
  }

  void run() {
    const int64_t kept = heads > 1 ? blocks : 1;
    memset(dk, 0, static_cast<size_t>(kept * tile * padded) * 4);
    memset(dv, 0, static_cast<size_t>(kept * tile * padded) * 4);
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t head = g * heads + h;
      prepare(head);
      if (a.clipped) row_terms_under_clip();
      if (a.dsink_parts) {
        double total = 0;
        for (int64_t t = 0; t < a.tokens; ++t)
          total += expf(a.sink[head] - a.lse[(b * a.heads + head) * a.tokens + t]) * row_term[t];
        a.dsink_parts[b * a.heads + head] = -total;
      }
      for (int64_t j = 0; j < blocks; ++j) {
        float *dk_tile = dk + (heads > 1 ? j : 0) * tile * padded,
              *dv_tile = dv + (heads > 1 ? j : 0) * tile * padded;
        load_key_block(j);
        foresee(a.k, j + 1, g);
        foresee(a.v, j + 1, g);
        for (int64_t i = j; i < blocks; ++i) {
          const Sight seen = sight(i, j);
          if (seen.any) one_tile(i, j, seen.all, dk_tile, dv_tile);
        }
        if (h + 1 < heads) continue;
        write_keys(j, dk_tile, dv_tile);
        if (heads > 1) continue;
        memset(dk_tile, 0, static_cast<size_t>(tile * padded) * 4);
        memset(dv_tile, 0, static_cast<size_t>(tile * padded) * 4);
      }
      write_queries(head);
    }
  }
};

template <class T, class W>
BackwardTask<T, W> make_task(const AttentionBackwardParams& a, int64_t task) {
  const int d = static_cast<int>(a.head_size);
  return BackwardTask<T, W>{.a = a,
                            .b = task / a.kv_heads,
                            .g = task % a.kv_heads,
                            .head_size = d,
                            .padded = (d + 15) / 16 * 16,
                            .words = d / W::per_word,
                            .heads = a.heads / a.kv_heads,
                            .blocks = (a.tokens + tile - 1) / tile};
}

template <class T, class W>
int64_t scratch_bytes(const AttentionBackwardParams& a) {
  return make_task<T, W>(a, 0).carve(nullptr);
}

template <class T, class W>
void run_task(const AttentionBackwardParams& a, int64_t index, void* scratch) {
  BackwardTask<T, W> task = make_task<T, W>(a, index);
  task.carve(static_cast<char*>(scratch));
  task.run();
}

}  // namespace

extern const AttentionBackwardTable attention_backward_table{
    .f32 = {scratch_bytes<float, WordsF32<false>>, run_task<float, WordsF32<false>>},
    .bf16 = {scratch_bytes<bf16, Bf16Words>, run_task<bf16, Bf16Words>}};

}  // namespace osprey::cpu::OSPREY_ISA
