#pragma once
// What is trained. A parameter is declared once, with a path name; optimizer groups, checkpoint keys,
// quantization patterns, freezing and sharding all match on that name.

#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "framework/memory/arena.h"
#include "kernels/block_format.h"
#include "kernels/core/queue.h"
#include "kernels/core/tensor.h"

namespace osprey {

/// How a parameter starts. Values are a pure function of (seed, parameter name, element index).
struct Init {
  enum class Kind { constant, normal, orthogonal };
  Kind kind = Kind::constant;
  double value = 0;  // the constant, or the standard deviation
};

class PackCache;
class QuantCache;
struct QuantScheme;
struct Freezing;

struct Parameter {
  std::string name;  // "layers.3.attn.q.weight"
  int layer = -1;    // -1: embedding, final norm, head
  Shape shape;       // (out, in) for matrices
  Init init;
  bool trainable = true;

  Tensor value;               // compute dtype; a view into its bucket
  Tensor grad;                // f32; a view into its bucket
  int64_t offset = 0;         // of its first element in the bucket's flat buffers
  bool grad_written = false;  // false: the next writer overwrites
  uint64_t version = 1;       // bumped by whoever writes `value`; caches of packed weights compare it

  const QuantScheme* scheme =
      nullptr;  // how linear layers quantize it now (framework/quant); null: not at all
  const Freezing* freezing = nullptr;  // which of its elements no update may move now; null: it may move all

  // Of weights that read one input the first, which models say where they declare them; null for the first.
  Parameter* first_of_input = nullptr;
  // Learnt step sizes of this weight and of its input (framework/quant/step_sizes.h); null where none is.
  Parameter *weight_step = nullptr, *input_step = nullptr;

  // A weight that a checkpoint holds packed is used as it is: set stored_format before materialize(), which
  // then allocates `packed` and gives `value` a dtype, but neither shape nor memory. Its scheme must say how
  // it was quantized.
  std::optional<BlockFormat> stored_format;
  Packed packed;

  std::shared_ptr<PackCache> packs;       // rearranged copies of `value`, kept by framework/ops/pack_cache.h
  std::shared_ptr<QuantCache> quantized;  // quantized ones, kept by framework/ops/quantized_weights.h

  bool matrix() const { return shape.rank == 2; }
  /// Where this micro step's gradient goes; marks it written.
  Accum accumulate();
};

/// All parameters of one layer, in flat buffers: the unit of gradient reduction and weight gathering.
struct Bucket {
  int layer = -1;
  std::vector<Parameter*> params;
  int64_t numel = 0;  // with padding: every parameter starts at a multiple of 32 elements
  Tensor values;      // (numel), compute dtype
  Tensor grads;       // (numel), f32
};

class ParamStore {
 public:
  /// Errors: throws if the name exists already, or if memory was taken.
  Parameter& add(std::string name, int layer, const Shape& shape, Init init);
  Parameter* find(const std::string& name) const;  // null where there is none
  Parameter& at(const std::string& name);          // Errors: throws, listing near names
  const std::vector<std::unique_ptr<Parameter>>& all() const { return params_; }
  std::vector<Bucket>& buckets() { return buckets_; }
  Bucket& bucket(int layer);

  /// Allocates values and gradients. `gradients` == off for evaluation.
  /// Errors: throws where gradients are wanted of a weight that is stored packed.
  enum class Gradients { off, on };
  void materialize(Device device, DType dtype, Gradients gradients);
  /// Fills values by Init (no effect on meta).
  void initialize(const Queue& queue, uint64_t seed);
  /// The fp32 initial value of one parameter, before rounding (masters start from it).
  static void initial_value(const Queue& queue, const Parameter& p, uint64_t seed, float* out);
  /// Starts a new step: the first gradient written overwrites.
  void begin_step();

  int64_t numel() const;
  int64_t value_bytes() const { return values_ ? values_->used_bytes() + packed_->used_bytes() : 0; }
  int64_t gradient_bytes() const { return grads_ ? grads_->used_bytes() : 0; }
  DType dtype() const { return dtype_; }

 private:
  std::vector<std::unique_ptr<Parameter>> params_;
  std::unordered_map<std::string, Parameter*> by_name_;
  std::vector<Bucket> buckets_;
  std::unique_ptr<Arena> values_, grads_, packed_;
  DType dtype_ = DType::f32;
};

}  // namespace osprey
