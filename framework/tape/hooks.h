#pragma once
// Event interfaces with empty defaults: ZeRO, telemetry, fine-tuning and profiles attach here, never by
// friendship.

#include <string>

#include "kernels/core/tensor.h"

namespace osprey {

namespace kernels {
struct MeasureQuantization;
}

class Tape;

class LayerHook {
 public:
  virtual ~LayerHook() = default;
  virtual void before_forward(int /*layer*/) {}
  virtual void after_forward(int /*layer*/) {}
  /// All gradients of this layer's parameters are complete for this micro step. Layer -1 (embedding,
  /// final norm, head) comes last.
  virtual void after_backward(int /*layer*/) {}
};

/// Sees named activations during forward: "block_input", "attention_output", "down_input",
/// "final_hidden" (rows = tokens). The tensors are only valid during the call.
class Tap {
 public:
  virtual ~Tap() = default;
  virtual void observe(int layer, const char* tensor, const Tensor& t) = 0;
  /// q (B*T, H*D), k (B*T, G*D) after position encoding, and lse (B, H, T).
  struct AttentionView {
    Tensor q, k, lse;
    int64_t batch, tokens, heads, kv_heads, head_size;
    int64_t window;  // tokens that a token sees; 0: all before it
    float scale;
  };
  virtual void observe_attention(int /*layer*/, const AttentionView&) {}
};

/// Sees what linear layers quantize while a model trains.
class QuantizationWatch {
 public:
  enum class Role { weights, activations, gradients };
  virtual ~QuantizationWatch() = default;
  /// `what` was quantized just now on the tape's queue; its sums are undefined. Weights and gradients (dy, as
  /// the product that gives dx reads it) come for each weight, activations for the first of those that read
  /// them, all of them in each micro batch; not while a block is computed again. The tensors are only valid
  /// during the call, which may put work on the queue, but neither allocate there nor wait.
  virtual void quantized(int layer, const std::string& weight, Role role,
                         const kernels::MeasureQuantization& what) = 0;
  /// Does the coming step get work that other steps do not? Then it runs as it is, not as a recorded one.
  virtual bool this_step_only() const = 0;
};

/// Replaces what linear layers read: simulated quantization of activations in evaluation.
class LinearInput {
 public:
  virtual ~LinearInput() = default;
  /// The tensor to use instead of x (N, in); `weight` is the name of the (first) parameter it meets.
  virtual Tensor linear_input(Tape& t, const std::string& weight, const Tensor& x) = 0;
};

class Profiler {
 public:
  virtual ~Profiler() = default;
  /// `op` just finished; time since the previous event belongs to it.
  virtual void forward(const char* op) = 0;
  virtual void backward(const char* op) = 0;
  virtual void other(const char* what) = 0;
};

}  // namespace osprey
