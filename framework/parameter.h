#pragma once
// What is trained. A parameter is declared once, with a path name; optimizer groups, checkpoint keys,
// quantization patterns, freezing and sharding all match on that name.

#include <algorithm>
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
struct LowRankAdapter;

struct Parameter;

/// Who sets the basis of a subspace (framework/finetune/finetuning.h).
class BasisSource {
 public:
  virtual ~BasisSource() = default;
  /// Does this rank's gradient decide? Others hand in an undefined one.
  virtual bool wants_gradient() const = 0;
  /// Sets p.subspace->basis from a gradient (out, in) f32 of p. Collective.
  virtual void refresh(const Queue& queue, Parameter& p, const Tensor& gradient) = 0;
};

/// Uses the gradient of some rows of a table as soon as it is there, so that nobody holds all of it.
class RowSink {
 public:
  virtual ~RowSink() = default;
  /// dL/d of the rows [first, first + gradient.rows()) of p, complete; the memory is used again after the
  /// call.
  virtual void take(Parameter& p, int64_t first, const Tensor& gradient) = 0;
};

/// The subspace that a matrix is trained in; its gradient is only ever held there. For a gradient G (out,
/// in):
///   left:  basis (rank, out), held as basis G (rank, in)
///   right: basis (rank, in), held as G basis^T (out, rank)
/// The smaller side is the one that is projected. Reference: GaLore, Zhao et al. 2403.03507, sec. 3.3.
struct Subspace {
  enum class Side { left, right };
  Side side = Side::right;
  int64_t rank = 0;
  double scale = 1;                // of the update that comes back from it
  Tensor basis;                    // compute dtype, rows orthonormal; undefined while the parameter is frozen
  BasisSource* refresh = nullptr;  // set in a step whose first gradient sets the basis

  static Side smaller_side(const Shape& shape) { return shape[0] >= shape[1] ? Side::right : Side::left; }
  Shape basis_shape(const Shape& shape) const { return {rank, side == Side::left ? shape[0] : shape[1]}; }
  Shape projected_shape(const Shape& shape) const {
    return side == Side::left ? Shape{rank, shape[1]} : Shape{shape[0], rank};
  }
};
struct Freezing;

struct Parameter {
  std::string name;  // "layers.3.attn.q.weight"
  int layer = -1;    // -1: embedding, final norm, head
  Shape shape;       // (out, in) for matrices
  Init init;
  bool trainable = true;

  Tensor value;               // compute dtype; a view into its bucket
  Tensor grad;                // f32 (grad_shape()); a view into its bucket's, undefined where it has none
  int64_t offset = 0;         // of its first element in the bucket's values
  int64_t grad_offset = 0;    // of its first element in the bucket's gradients
  bool grad_written = false;  // false: the next writer overwrites
  uint64_t version = 1;       // bumped by whoever writes `value`; caches of packed weights compare it

  // May its gradient be formed some rows at a time? Models say so of tables that one op alone reads
  // (embedding, cross_entropy); whoever materializes takes it back where the optimizer wants whole matrices.
  bool by_rows = false;
  Tensor row_gradient;  // (rows at a time, cols) f32, shared by all such tables; undefined: not by rows
  RowSink* row_sink = nullptr;  // whom the rows go to; null in a plan

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

  std::shared_ptr<Subspace> subspace;       // where its gradient is held; null: in full
  std::shared_ptr<LowRankAdapter> adapter;  // added to its products (framework/ops/adapter.h); null: none
  std::shared_ptr<PackCache> packs;       // rearranged copies of `value`, kept by framework/ops/pack_cache.h
  std::shared_ptr<QuantCache> quantized;  // quantized ones, kept by framework/ops/quantized_weights.h

  bool matrix() const { return shape.rank == 2; }
  Shape grad_shape() const { return subspace ? subspace->projected_shape(shape) : shape; }
  /// Where this micro step's gradient goes; marks it written.
  Accum accumulate();
  /// Of a table with row_gradient: calls form(first, gradient) for its rows, some at a time, which then go to
  /// row_sink.
  template <class Form>
  void accumulate_by_rows(const Form& form) {
    for (int64_t first = 0; first < shape[0]; first += row_gradient.rows()) {
      const Tensor some = row_gradient.row_range(0, std::min(row_gradient.rows(), shape[0] - first));
      form(first, some);
      if (row_sink) row_sink->take(*this, first, some);
    }
    grad_written = true;
  }
};

/// All parameters of one layer, in flat buffers: the unit of gradient reduction and weight gathering.
struct Bucket {
  int layer = -1;
  std::vector<Parameter*> params;
  int64_t numel = 0;       // with padding: every parameter starts at a multiple of 32 elements
  int64_t grad_numel = 0;  // of the gradients of trainable parameters, padded likewise
  Tensor values;           // (numel), compute dtype
  Tensor grads;            // (grad_numel), f32; undefined while the layer has no gradient memory
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

  /// Allocates values, and gradients of the parameters that are trainable now.
  /// Gradients: off for evaluation; brief: those of a layer only live until backward comes to the next one,
  /// so all layers share the same memory, and tables by_rows have memory for some rows.
  /// With `slots`, that many layers have gradient memory at a time: those that bind_gradients() gives a slot
  /// to, and layer -1 always.
  /// Errors: throws where a trainable weight is stored packed, and where layers with slots differ in shape.
  enum class Gradients { off, on, brief };
  void materialize(Device device, DType dtype, Gradients gradients, std::optional<int> slots = {});
  /// Gives the gradient memory of a slot to the parameters of a layer; takes it from whoever had it.
  void bind_gradients(int slot, int layer);
  /// Fills values by Init (no effect on meta), but those of weights that are stored packed.
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
  void allocate_gradients(Device device, Gradients gradients, std::optional<int> slots);
  static void bind(Bucket& bucket, const Tensor& grads);
  std::unique_ptr<Arena> values_, grads_, packed_;
  std::vector<Tensor> slots_;  // (grad_numel) f32 each
  std::vector<Bucket*> slot_owner_;
  DType dtype_ = DType::f32;
};

}  // namespace osprey
