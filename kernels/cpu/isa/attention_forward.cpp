#include <math.h>

#include "kernels/cpu/isa/attention.h"
#include "kernels/cpu/isa/attention_tile.h"

namespace osprey::cpu::OSPREY_ISA {

namespace {

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/// What happens to the scores of a strip. All work in base 2: scores times scale * log2(e).
enum class Sweep {
  online,   // running maximum and sum, values gathered and rescaled: plain softmax in one sweep
  measure,  // running maximum and sum only: first sweep of the clipped softmax
  clip,     // final probabilities, clipped, values gathered: second sweep
};

/// One task: `blocks` query blocks of all heads that share a kv head, against all keys they see.
template <class T, class W>
struct Task {
  const AttentionForwardParams& a;
  int64_t b, g, first_block, blocks;
  int head_size, padded, words;  // D, D rounded up to whole column blocks, words in a row of D
  int64_t heads;                 // of the group
  // Scratch. By (head, block): query rows, gathered values, running maximum and sum by row.
  float *q_rows = nullptr, *acc = nullptr, *top = nullptr, *sum = nullptr;
  int32_t* start = nullptr;  // first visible key, by row of the blocks
  float *rows = nullptr, *keys = nullptr, *values = nullptr, *scores = nullptr, *probs = nullptr;

  int64_t carve(char* base) {
    Carver c{base};
    const int64_t n = heads * blocks;
    q_rows = c.take(n * tile * words);
    acc = c.take(n * tile * padded);
    top = c.take(n * tile);
    sum = c.take(n * tile);
    start = c.take<int32_t>(blocks * tile);
    rows = c.take(tile * words);
    keys = c.take(tile * words);
    values = c.take(tile / W::per_word * padded);
    scores = c.take(strip * tile);
    probs = c.take(strip * tile / W::per_word);
    return c.used;
  }

  int64_t group_head(int64_t h) const { return g * heads + h; }
  int valid(int64_t block) const {
    const int64_t left = a.tokens - block * tile;
    return static_cast<int>(left < tile ? left : tile);
  }
  const T* row_of(const RowsIn& m, int64_t t, int64_t column) const {
    return static_cast<const T*>(m.data) + (b * a.tokens + t) * m.stride + column;
  }

  void prepare() {
    for (int64_t i = 0; i < blocks * tile; ++i) {
      const int64_t t = first_block * tile + i;
      const int64_t document = a.document_start && t < a.tokens ? a.document_start[b * a.tokens + t] : 0;
      start[i] = static_cast<int32_t>(first_visible_key(t, document, a.window));
    }
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = 0; i < blocks; ++i) {
        const int64_t block = first_block + i, slot = h * blocks + i;
        pack_rows<W>(q_rows + slot * tile * words, row_of(a.q, block * tile, group_head(h) * head_size),
                     a.q.stride, valid(block), head_size);
        memset(acc + slot * tile * padded, 0, static_cast<size_t>(tile * padded) * 4);
        const float sink = a.sink ? a.sink[group_head(h)] * log2e : -INFINITY;
        for (int r = 0; r < tile; ++r) {
          top[slot * tile + r] = sink;
          sum[slot * tile + r] = a.sink ? 1.0f : 0.0f;
        }
      }
  }

  int64_t first_key_block() const {
    int32_t least = start[0];
    for (int64_t i = 0; i < blocks * tile && first_block * tile + i < a.tokens; ++i)
      least = start[i] < least ? start[i] : least;
    return least / tile;
  }

  template <Sweep sweep>
  void run_sweep() {
    for (int64_t j = first_key_block(); j < first_block + blocks; ++j) {
      pack_rows<W>(rows, row_of(a.k, j * tile, g * head_size), a.k.stride, valid(j), head_size);
      rows_to_transposed_panel<W>(keys, rows, head_size);
      if constexpr (sweep != Sweep::measure) {
        pack_rows<W>(rows, row_of(a.v, j * tile, g * head_size), a.v.stride, valid(j), head_size);
        rows_to_panel<W>(values, rows, head_size, padded);
      }
      if (j + 1 < first_block + blocks) {
        prefetch_rows<0>(row_of(a.k, (j + 1) * tile, g * head_size), a.k.stride, valid(j + 1), head_size);
        if constexpr (sweep != Sweep::measure)
          prefetch_rows<0>(row_of(a.v, (j + 1) * tile, g * head_size), a.v.stride, valid(j + 1), head_size);
      }
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t i = j > first_block ? j - first_block : 0; i < blocks; ++i)
          for (int r = 0; r < valid(first_block + i); r += strip) run_strip<sweep>(h * blocks + i, i, j, r);
    }
  }

  /// Rows r .. r + 15 of query block i (counted within the task) against key block j.
  template <Sweep sweep>
  void run_strip(int64_t slot, int64_t i, int64_t j, int r) {
    const bool diagonal = j == first_block + i;
    const int columns = diagonal ? r + strip : tile;  // later keys are invisible to the whole strip
    const int64_t key = j * tile, row = (first_block + i) * tile + r;
    int32_t earliest = start[i * tile + r], latest = earliest;
    for (int n = 1; n < strip; ++n) {
      const int32_t s = start[i * tile + r + n];
      earliest = s < earliest ? s : earliest;
      latest = s > latest ? s : latest;
    }
    if (earliest >= key + tile) return;
    gemm<W, false>(scores, tile, q_rows + (slot * tile + r) * words, words, keys, tile, strip, columns,
                   words);
    if (diagonal || latest > key)
      for (int n = 0; n < strip; ++n)
        hide(scores + n * tile, start[i * tile + r + n] - key, row + n - key, columns);

    float* m = top + slot * tile + r;
    float* l = sum + slot * tile + r;
    float* out = acc + (slot * tile + r) * padded;
    if constexpr (sweep == Sweep::clip)
      clipped_probabilities(m, columns);
    else
      online_probabilities<sweep == Sweep::online>(m, l, out, columns);
    if constexpr (sweep != Sweep::measure)
      gemm<W, true>(out, padded, probs, tile / W::per_word, values, padded, strip, padded,
                    columns / W::per_word);
  }

  /// Scores of keys before `first` or after `last` become -infinity.
  static void hide(float* s, int64_t first, int64_t last, int columns) {
    const IVec lo = splat(static_cast<int32_t>(first < 0 ? 0 : first));
    const IVec hi = splat(static_cast<int32_t>(last < tile ? last : tile));
    for (int c = 0; c < columns; c += lanes) {
      const IVec at = iota() + c;
      const Vec v = load(s + c);
      store(s + c, (at >= lo) & (at <= hi) ? v : splat(-INFINITY));
    }
  }

  template <bool gather>
  void online_probabilities(float* m, float* l, float* out, int columns) {
    const float factor = a.scale * log2e;
    alignas(64) float shift[strip], decay[strip], total[strip];
    Vec rows_of[strip];
    for (int n = 0; n < strip; ++n) {
      Vec most = load(scores + n * tile);
      for (int c = lanes; c < columns; c += lanes) most = max_of(most, load(scores + n * tile + c));
      rows_of[n] = most;
    }
    reduce_rows<MaxOf>(shift, rows_of);
    for (int n = 0; n < strip; n += lanes) {
      const Vec old = load(m + n), next = max_of(load(shift + n) * factor, old);
      // While a row has seen nothing its maximum is -infinity; shifting by 0 keeps exponents
      // defined.
      const Vec safe = next == splat(-INFINITY) ? splat(0.0f) : next;
      store(decay + n, exp2_of(old - safe));
      store(shift + n, safe);
      store(m + n, next);
    }
    for (int n = 0; n < strip; ++n) {
      const Vec minus = splat(-shift[n]);
      Vec sums = {};
      for (int c = 0; c < columns; c += lanes) {
        const Vec p = exp2_of(load(scores + n * tile + c) * factor + minus);
        sums += p;
        if constexpr (gather) W::put_row(probs + n * tile / W::per_word, c, p);
      }
      rows_of[n] = sums;
    }
    reduce_rows<SumOf>(total, rows_of);
    for (int n = 0; n < strip; n += lanes) store(l + n, load(l + n) * load(decay + n) + load(total + n));
    for (int n = 0; gather && n < strip; ++n)
      if (decay[n] != 1.0f)
        for (int d = 0; d < padded; d += lanes)
          store(out + n * padded + d, load(out + n * padded + d) * decay[n]);
  }

  /// `log_sum`: base-2 logarithm of each row's sum.
  void clipped_probabilities(const float* log_sum, int columns) {
    const float factor = a.scale * log2e, stretch = a.zeta - a.gamma;
    for (int n = 0; n < strip; ++n) {
      const Vec minus = splat(-log_sum[n]);
      for (int c = 0; c < columns; c += lanes) {
        const Vec p = exp2_of(load(scores + n * tile + c) * factor + minus);
        const Vec stretched = p * stretch + a.gamma;
        const Vec low = stretched < 0.0f ? splat(0.0f) : stretched;
        W::put_row(probs + n * tile / W::per_word, c, low > 1.0f ? splat(1.0f) : low);
      }
    }
  }

  void finish_sums() {
    for (int64_t n = 0; n < heads * blocks * tile; ++n) top[n] += log2f(sum[n]);
  }

  void write() {
    alignas(64) float line[256], gates[256] = {};
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = 0; i < blocks; ++i) {
        const int64_t slot = h * blocks + i, head = group_head(h);
        for (int r = 0; r < valid(first_block + i); ++r) {
          const int64_t t = (first_block + i) * tile + r, at = slot * tile + r;
          const float log_sum = a.clipped ? top[at] : top[at] + log2f(sum[at]);
          a.lse[(b * a.heads + head) * a.tokens + t] = log_sum * 0.693147181f;
          float factor = a.clipped ? 1.0f : 1.0f / sum[at];
          if (a.gate_kind == GateKind::headwise)
            factor *= sigmoid_of(splat(to_float(*row_of(a.gate, t, head))))[0];
          for (int d = 0; d < padded; d += lanes) store(line + d, load(acc + at * padded + d) * factor);
          if (a.gate_kind == GateKind::elementwise) {
            const T* logits = row_of(a.gate, t, head * head_size);
            for (int d = 0; d < head_size; ++d) gates[d] = to_float(logits[d]);
            for (int d = 0; d < padded; d += lanes)
              store(line + d, load(line + d) * sigmoid_of(load(gates + d)));
          }
          T* o = static_cast<T*>(a.o.data) + (b * a.tokens + t) * a.o.stride + head * head_size;
          int d = 0;
          for (; d + lanes <= head_size; d += lanes) store(o + d, load(line + d));
          for (; d < head_size; ++d) o[d] = Convert<T>::from(line[d]);
        }
      }
  }

  void run() {
    prepare();
    if (a.clipped) {
      run_sweep<Sweep::measure>();
      finish_sums();
      run_sweep<Sweep::clip>();
    } else {
      run_sweep<Sweep::online>();
    }
    write();
  }
};

template <class T, class W>
Task<T, W> make_task(const AttentionForwardParams& a, int64_t task) {
  const int64_t all = (a.tokens + tile - 1) / tile,
                chunks = (all + a.blocks_per_task - 1) / a.blocks_per_task;
  // The last query blocks see the most keys: hand them out first.
  const int64_t chunk = chunks - 1 - task / (a.batch * a.kv_heads), pair = task % (a.batch * a.kv_heads);
  const int64_t first = chunk * a.blocks_per_task, end = first + a.blocks_per_task;
  const int d = static_cast<int>(a.head_size);
  return Task<T, W>{.a = a,
                    .b = pair / a.kv_heads,
                    .g = pair % a.kv_heads,
                    .first_block = first,
                    .blocks = (end < all ? end : all) - first,
                    .head_size = d,
                    .padded = static_cast<int>(round_up(d, 16)),
                    .words = d / W::per_word,
                    .heads = a.heads / a.kv_heads};
}

template <class T, class W>
int64_t forward_scratch_bytes(const AttentionForwardParams& a) {
  Task<T, W> task = make_task<T, W>(a, 0);
  task.blocks = a.blocks_per_task;
  return task.carve(nullptr);
}

template <class T, class W>
void forward_run(const AttentionForwardParams& a, int64_t task_index, void* scratch) {
  Task<T, W> task = make_task<T, W>(a, task_index);
  task.carve(static_cast<char*>(scratch));
  task.run();
}

// Decoding reads the cache once and is bound by memory: plain loops over keys.

template <class T>
float dot(const T* x, const float* y, int64_t n) {
  float s = 0;
  for (int64_t d = 0; d < n; ++d) s += to_float(x[d]) * y[d];
  return s;
}

template <class T>
int64_t decode_scratch_bytes(const AttentionDecodeParams& a) {
  return (a.tokens + 2 * a.head_size + 16) * 4;
}

template <class T>
void decode_run(const AttentionDecodeParams& a, int64_t task, void* scratch) {
  const int64_t b = task / a.heads, h = task % a.heads, g = h / (a.heads / a.kv_heads), size = a.head_size;
  const int64_t length = a.lengths[b], first = first_visible_key(length - 1, 0, a.window);
  const T* q = static_cast<const T*>(a.q.data) + b * a.q.stride + h * size;
  const T* keys = static_cast<const T*>(a.k.data) + b * a.tokens * a.k.stride + g * size;
  const T* values = static_cast<const T*>(a.v.data) + b * a.tokens * a.v.stride + g * size;
  float *query = static_cast<float*>(scratch), *out = query + size, *p = out + size;
  for (int64_t d = 0; d < size; ++d) query[d] = to_float(q[d]) * a.scale;
  for (int64_t d = 0; d < size; ++d) out[d] = 0;
  float most = a.sink ? a.sink[h] : -INFINITY;
  for (int64_t t = first; t < length; ++t) {
    p[t] = dot(keys + t * a.k.stride, query, size);
    most = p[t] > most ? p[t] : most;
  }
  float sum = a.sink ? expf(a.sink[h] - most) : 0.0f;
  for (int64_t t = first; t < length; ++t) sum += p[t] = expf(p[t] - most);
  for (int64_t t = first; t < length; ++t) {
    float weight = p[t] / sum;
    if (a.clipped) {
      weight = (a.zeta - a.gamma) * weight + a.gamma;
      weight = weight < 0.0f ? 0.0f : weight > 1.0f ? 1.0f : weight;
      if (weight == 0.0f) continue;
    }
    for (int64_t d = 0; d < size; ++d) out[d] += weight * to_float(values[t * a.v.stride + d]);
  }
  T* o = static_cast<T*>(a.o.data) + b * a.o.stride + h * size;
  const T* gate = static_cast<const T*>(a.gate.data) + b * a.gate.stride;
  for (int64_t d = 0; d < size; ++d) {
    float y = out[d];
    if (a.gate_kind != GateKind::none)
      y /= 1.0f + expf(-to_float(gate[a.gate_kind == GateKind::headwise ? h : h * size + d]));
    o[d] = Convert<T>::from(y);
  }
}

}  // namespace

extern const AttentionTable attention_table{
    .forward_f32 = {forward_scratch_bytes<float, WordsF32<false>>, forward_run<float, WordsF32<false>>},
    .forward_bf16 = {forward_scratch_bytes<bf16, Bf16Words>, forward_run<bf16, Bf16Words>},
    .decode_f32 = {decode_scratch_bytes<float>, decode_run<float>},
    .decode_bf16 = {decode_scratch_bytes<bf16>, decode_run<bf16>}};

}  // namespace osprey::cpu::OSPREY_ISA
