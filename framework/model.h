#pragma once
// What the trainer, evaluation and generation know of a model.

#include <string>
#include <vector>

#include "framework/batch.h"
#include "framework/tape/tape.h"

namespace osprey {

/// Where losses go: summed, not averaged, so sums over micro steps and ranks stay exact in meaning.
struct LossArgs {
  Tensor grad_scale;         // (1) f64: backward gives gradients of grad_scale * (summed loss); undefined: 1
  Tensor sums;               // (2) f64: += [nats, counted targets]
  Tensor token_losses = {};  // (B*T) f32: receives each token's loss, if defined
};

/// Keys and values of every layer, for generation one token at a time.
struct DecodeCache {
  std::vector<Tensor> keys, values;  // per layer (B, capacity, G*D)
  Tensor lengths;                    // (B) i32: tokens held, the current one included
};

class LanguageModel {
 public:
  virtual ~LanguageModel() = default;

  /// Declares all parameters. Called once, before anything else.
  virtual void declare(ParamStore& params) = 0;
  /// Hidden states that the head sees. -> (B*T, C)
  virtual Var hidden(Tape& t, const BatchView& batch) = 0;
  /// This batch's loss, to where `args` says. -> (1) f32, grad_scale * (summed loss)
  virtual Var loss(Tape& t, const BatchView& batch, const LossArgs& args) = 0;
  /// Feeds one token per sequence, appends to the cache. tokens, positions (B) i32 -> logits (B, V) f32.
  virtual Tensor decode(Tape& t, const Tensor& tokens, const Tensor& positions, DecodeCache& cache) = 0;
  /// Cache tensors for B sequences of up to `capacity` tokens, out of `arena`.
  virtual DecodeCache make_cache(Arena& arena, int64_t batch, int64_t capacity) = 0;

  /// Training FLOPs of one token: 6 per matrix weight used (the head included, the embedding lookup not),
  /// and causal attention, 6 * T * (H*D) per layer (half of the 12 of a full square).
  virtual double flops_per_token(int64_t sequence) const = 0;
  virtual int64_t vocabulary() const = 0;
};

}  // namespace osprey
