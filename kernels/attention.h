#pragma once
// Causal attention in tiles, with the variants that keep outliers small: clipped softmax, a learned
// sink for each head, a sigmoid gate on the output; alone or together.

#include <optional>

#include "kernels/core/queue.h"
#include "kernels/core/tensor.h"

namespace osprey::kernels {

/// Probabilities become min(max((zeta - gamma) p + gamma, 0), 1), not normalised again. Meant for
/// encoders; in causal models it makes quantization worse.
/// Reference: Bondarenko, Nagel, Blankevoort, "Quantizable transformers" (NeurIPS 2023).
struct Clip {
  float zeta = 1.0f;
  float gamma = -0.025f;
};

struct AttentionForward {
  Tensor o;               // (N, H*D), out
  Tensor lse;             // (B, H, T) f32, out: natural logarithm of each row's sum of exponentials, sink
                          // included
  Tensor q;               // (N, H*D)
  Tensor k;               // (N, G*D)
  Tensor v;               // (N, G*D)
  int64_t batch = 1;      // B; N = B*T
  int64_t head_size = 0;  // D
  Tensor document_start = {};       // (N) i32: first key this row sees, counted within its sequence
  int64_t window = 0;               // a row sees this many keys, itself included; 0: all before it
  std::optional<float> scale = {};  // of the scores; 1/sqrt(D) unless given
  std::optional<Clip> clip = {};
  Tensor sink = {};  // (H) f32 or the dtype of q: logit of one more key that has no value
  Tensor gate = {};  // (N, H) or (N, H*D), dtype of q: logits; o is multiplied by their sigmoid
};

/// o = softmax(scale q k^T, causal) v for each head; head h reads kv head h / (H / G).
/// Shapes: D a multiple of 8 up to 256 (32, 64, 128 are fastest); H a multiple of G. Rows of q, k,
/// v, o and gate may be strided (columns of one fused buffer). Aliasing: o and lse overlap no
/// input. Numerics: bf16 or f32 tensors; scores, row statistics and sums in fp32; probabilities are
/// rounded to bf16 before they meet v when q is bf16. A row sees the keys from
/// first_visible_key() (kernels/numerics/first_key.h) to itself; tiles that nobody sees cost nothing. The
/// number of threads does not change a bit. Errors: throws when shapes, dtypes or options do not fit.
/// Reference: Dao et al., "FlashAttention" (2022), for the online softmax.
void attention_forward(const Queue& queue, const AttentionForward& args);

struct AttentionBackward {
  Accum dq;          // (N, H*D)
  Accum dk;          // (N, G*D)
  Accum dv;          // (N, G*D)
  Accum dgate = {};  // as gate
  Accum dsink = {};  // (H) f32
  Tensor dy;         // (N, H*D): gradient of o
  Tensor o;          // as forward left it, gate included
  Tensor lse;
  Tensor q, k, v;
  int64_t batch = 1;
  int64_t head_size = 0;
  Tensor document_start = {};
  int64_t window = 0;
  std::optional<float> scale = {};
  std::optional<Clip> clip = {};
  Tensor sink = {};
  Tensor gate = {};
};

/// Gradients of attention_forward, from o and lse alone: scores are computed again, tile by tile.
/// Shapes: as forward. An undefined gradient is not written.
/// Aliasing: gradients overlap nothing else.
/// Numerics: as forward; dS is rounded to bf16 when q is bf16. With a clip, the row term
/// sum(p * clip'(p) * dP) takes a sweep of its own over the tiles, in fp32; that costs a tenth of
/// the arithmetic and needs no second saved output. The number of threads does not change a bit.
/// Errors: as forward; and on a GPU, when one sequence has more than 8 Mi rows of heads (H * T), whose
/// row terms would not fit the stream's scratch.
void attention_backward(const Queue& queue, const AttentionBackward& args);

struct AttentionDecode {
  Tensor o;        // (B, H*D), out
  Tensor q;        // (B, H*D): one new token for each sequence
  Tensor k_cache;  // (B, capacity, G*D)
  Tensor v_cache;  // (B, capacity, G*D)
  Tensor lengths;  // (B) i32: keys in the cache, the new token's included; at least 1
  Tensor k = {};   // (B, G*D): keys of the new tokens, written to the cache first; both or neither
  Tensor v = {};   // (B, G*D)
  int64_t head_size = 0;
  int64_t window = 0;  // keys that the new token sees, itself included; 0: all
  std::optional<float> scale = {};
  std::optional<Clip> clip = {};
  Tensor sink = {};
  Tensor gate = {};  // (B, H) or (B, H*D)
};

/// One row of attention for each sequence over its cache, after k and v went to entry lengths - 1.
/// Numerics: all sums in fp32.
/// Errors: throws when shapes do not fit; on a GPU also when partial results of one sequence would not fit
/// the stream's scratch (64 heads of 128 may have caches of 250,000 tokens). A length outside [1, capacity]
/// throws on the CPU; on a GPU, which cannot tell the host, that sequence's row of o becomes NaN.
void attention_decode(const Queue& queue, const AttentionDecode& args);

}  // namespace osprey::kernels

namespace osprey::cpu {
void attention_forward(const Queue& queue, const kernels::AttentionForward& args);
void attention_backward(const Queue& queue, const kernels::AttentionBackward& args);
void attention_decode(const Queue& queue, const kernels::AttentionDecode& args);
}  // namespace osprey::cpu
namespace osprey::cuda {
void attention_forward(const Queue& queue, const kernels::AttentionForward& args);
void attention_backward(const Queue& queue, const kernels::AttentionBackward& args);
void attention_decode(const Queue& queue, const kernels::AttentionDecode& args);
}  // namespace osprey::cuda
