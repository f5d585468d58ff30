#pragma once
// A flat tape of fused ops. A model writes its forward; each op records its backward beside it;
// backward is a loop from the end.
//
// Where such designs break, and what is done here:
//  - Closures hold Vars and saved activations and look parameters up late (value()).
//  - Closures live inside the record (no malloc), so they must be trivially copyable.
//  - Gradients of activations come from a pool; one buffer may serve several Vars (residual adds pass
//    their gradient on without a copy) and is copied only if somebody adds to a shared one.
//  - An op whose inputs need no gradient records nothing: a frozen prefix keeps no activations.

#include <cstddef>
#include <cstring>
#include <initializer_list>
#include <span>
#include <type_traits>
#include <vector>

#include "framework/memory/arena.h"
#include "framework/parameter.h"
#include "framework/tape/hooks.h"
#include "kernels/core/queue.h"

namespace osprey {

/// Handle of a tensor on the tape.
struct Var {
  int slot = -1;
  bool valid() const { return slot >= 0; }
};

/// The backward of one op: called with dL/d(output). Trivially copyable captures, up to 1 KiB.
class Backward {
 public:
  template <class F>
  Backward(const F& f) {  // NOLINT: implicit by design, so that a lambda can be passed
    static_assert(std::is_trivially_copyable_v<F>, "capture Vars, Tensors and numbers by value only");
    static_assert(sizeof(F) <= sizeof(storage_));
    std::memcpy(static_cast<void*>(storage_), static_cast<const void*>(&f), sizeof(F));
    call_ = [](void* s, Tensor dy) { (*static_cast<F*>(s))(dy); };
  }
  void operator()(Tensor dy) { call_(storage_, dy); }

 private:
  alignas(16) std::byte storage_[1024];
  void (*call_)(void*, Tensor) = nullptr;
};

enum class Recompute { none, attention, block };

/// Where in a run a draw happens. The step lies on the device, so that a recorded step may be replayed.
struct DrawIndex {
  Tensor step;              // (1) f64, or undefined: step 0
  int64_t micro_batch = 0;  // of the step, counted over all ranks
};

class Tape {
 public:
  /// `activations` and `pool` must outlive the tape. Nothing is recorded until set_mode(train).
  Tape(const Queue& queue, Arena& activations, Pool& pool);

  enum class Mode { evaluate, train };
  void set_mode(Mode mode) { recording_ = mode == Mode::train; }
  bool recording() const { return recording_; }
  void set_recompute(Recompute recompute) { recompute_ = recompute; }
  void set_layer_hook(LayerHook* hook) { hook_ = hook; }
  void set_tap(Tap* tap) { tap_ = tap; }
  /// Told of forward and backward alike, so set it around both and nothing else.
  void set_quantization_watch(QuantizationWatch* watch) { quantization_watch_ = watch; }
  /// What draws of ops depend on beside the seed and a name. It stays set until it is set again.
  void set_draw_index(const DrawIndex& index) { draw_index_ = index; }
  const DrawIndex& draw_index() const { return draw_index_; }
  /// Only while evaluating: training quantizes through its own ops.
  void set_linear_input(LinearInput* hook) { linear_input_ = hook; }

  const Queue& queue() const { return queue_; }
  Arena& arena() { return arena_; }
  int current_layer() const { return layer_; }

  /// A tensor without gradient.
  Var input(const Tensor& t);
  /// A tensor whose gradient is wanted (tests, replays).
  Var source(const Tensor& t);
  /// A parameter: needs a gradient iff trainable.
  Var leaf(Parameter& p);
  Tensor value(Var v) const;
  /// As value(), or undefined for a Var that is not valid: an input the op can do without.
  Tensor value_or_none(Var v) const { return v.valid() ? value(v) : Tensor{}; }
  bool needs_grad(Var v) const;
  /// The parameter behind a leaf, or null.
  Parameter* parameter(Var v) const;

  /// Where to write dL/dv; empty when v needs none. The caller writes exactly once per call.
  Accum grad(Var v);
  /// Adds `d` (the dy of the running op) to v's gradient, without a copy where possible.
  void pass_grad(Var v, const Tensor& d);
  /// For ops that worked in place: makes `d` (the dy of the running op) the gradient of v and returns it to
  /// be changed in place. Copies only if somebody else still reads it.
  /// Errors: throws when v has a gradient already; what was overwritten had no other reader.
  Tensor take_grad(Var v, const Tensor& d);
  /// A second output of the op that is being recorded: like any Var, but its gradient is for that op's
  /// backward, which writes to grad(v) as well and then hands it on. `inputs`: those that the gradient goes
  /// to.
  Var second_output(const Tensor& t, std::initializer_list<Var> inputs);
  /// Makes the gradient of a second output that of each of `to`, without a copy where possible.
  void hand_on(Var second_output, std::initializer_list<Var> to);
  /// dL/dv after backward for source() variables.
  Tensor gradient_of(Var v) const;

  /// Memory of this op's output and saved tensors; released when the op has run backward.
  Tensor alloc(const Shape& shape, DType dtype) { return arena_.alloc(shape, dtype); }
  /// Memory for the running op's backward only; released when it returns.
  Tensor temp(const Shape& shape, DType dtype) { return arena_.alloc(shape, dtype); }

  Var record(const char* op, const Tensor& out, std::initializer_list<Var> inputs, const Backward& backward);

  /// The one seam for everything that is not mathematics: hooks, gradient reduction, recompute.
  /// `block` must outlive backward: recompute runs it again.
  template <class Block>
  Var layer(int index, Var x, const Block& block) {
    return layer_impl(
        index, x, [](const void* b, Tape& t, Var v) { return (*static_cast<const Block*>(b))(t, v); },
        &block);
  }

  /// A part of a block, from the block's input to something of its shape. Where the recipe says
  /// `recompute: attention` and this is that part, its activations are computed again during backward.
  /// `part` must outlive backward.
  template <class Part>
  Var recomputable(Var x, const Part& part) {
    const RunBlock run = [](const void* p, Tape& t, Var v) { return (*static_cast<const Part*>(p))(t, v); };
    return recording_ && !replaying_ && recompute_ == Recompute::attention ? run_twice(layer_, x, run, &part)
                                                                           : run(&part, *this, x);
  }

  /// Hands a named activation to the telemetry tap, if one is set.
  void observe(const char* tensor, const Tensor& t) {
    if (tap_ && !replaying_) tap_->observe(layer_, tensor, t);
  }
  /// What a linear layer should read in place of x.
  Tensor linear_input(const std::string& weight, const Tensor& x) {
    return linear_input_ && !recording_ ? linear_input_->linear_input(*this, weight, x) : x;
  }
  Tap* tap() const { return replaying_ ? nullptr : tap_; }
  /// Who wants to know what is quantized: in forward, where a block that is computed again is nobody's
  /// business, and in backward.
  QuantizationWatch* forward_watch() const { return replaying_ ? nullptr : quantization_watch_; }
  QuantizationWatch* backward_watch() const { return quantization_watch_; }

  /// Runs every recorded backward; dL/d(loss) is 1. Gradients of source() variables stay readable until
  /// reset(), which every step ends with.
  void backward(Var loss);
  /// As backward(), starting from a given dL/dv.
  void backward_from(Var v, const Tensor& dv);
  /// Forgets everything on the tape (after evaluation).
  void reset(int64_t arena_mark = 0);

  /// Called around every op: forward at record(), backward after it ran. For profiles.
  void set_profiler(Profiler* profiler) { profiler_ = profiler; }
  bool profiled() const { return profiler_ != nullptr; }
  /// Work that is no op has been put on the queue; tells the profiler what it was.
  void lap(const char* what) {
    if (profiler_) profiler_->other(what);
  }

 private:
  struct Slot {
    Tensor value;
    Tensor grad;
    Parameter* param = nullptr;
    int buffer = -1;  // pool buffer of grad
    bool needs_grad = false;
  };
  struct Record {
    const char* op;
    int out;
    int layer;
    int64_t mark;  // arena level to return to after this op has run backward
    Backward backward;
  };
  using RunBlock = Var (*)(const void*, Tape&, Var);

  Var layer_impl(int index, Var x, RunBlock run, const void* block);
  Var run_compact(Var x, RunBlock run, const void* block);
  Var run_twice(int index, Var x, RunBlock run, const void* block);
  void replay(int index, Var x, RunBlock run, const void* block, const Tensor& dy);
  Var record_if(bool wanted, const char* op, const Tensor& out, const Backward& backward);
  Var new_slot(const Tensor& value, bool needs_grad);
  Tensor first_gradient(Var v);
  void run_backward();
  Slot& slot(Var v);
  const Slot& slot(Var v) const;
  void give_buffer(Slot& s, int buffer);
  void release_grad(Slot& s);
  void move_grad(Var from, Var to);
  void unwind(size_t first_record);

  Queue queue_;
  Arena& arena_;
  Pool& pool_;
  LayerHook* hook_ = nullptr;
  Tap* tap_ = nullptr;
  QuantizationWatch* quantization_watch_ = nullptr;
  LinearInput* linear_input_ = nullptr;
  Profiler* profiler_ = nullptr;
  DrawIndex draw_index_;
  Recompute recompute_ = Recompute::none;
  bool recording_ = false;
  bool replaying_ = false;
  bool saw_trainable_ = false;  // a trainable leaf was read since it was last cleared
  int layer_ = -1;
  int64_t op_mark_ = 0;      // arena level when the op being recorded began
  int running_buffer_ = -1;  // pool buffer that holds the dy of the running backward
  std::vector<Slot> slots_;
  std::vector<Record> records_;
};

}  // namespace osprey
