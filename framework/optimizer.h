#pragma once
// The interface optimizers implement (code in optim/). An optimizer is const: state lives outside, and
// everything it does is a pure function of (its settings, the step, the state).

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/core/queue.h"
#include "kernels/core/tensor.h"

namespace osprey {

/// How its parameters may be cut over ranks: `element` optimizers by flat range, `matrix` optimizers
/// only by whole parameters.
enum class ShardGranularity { element, matrix };

struct Subspace;

/// One state tensor an optimizer keeps, starting at zero.
struct StateSpec {
  const char* name;  // checkpoint key suffix: "momentum", "adam_m", ...
  DType dtype;
  int64_t per = 1;  // one number for so many elements (of Optimizer::state_shape), the last ones rounded up
};
/// StateSpec::per of a state that is one number.
inline constexpr int64_t one_for_all = int64_t{1} << 62;
inline constexpr int max_states = 5;

/// What one rank updates: a whole parameter, or a flat range of one.
struct ParamPiece {
  std::string_view name;  // of the parameter
  Shape full_shape;       // of the parameter
  int64_t begin = 0;      // flat range [begin, end) of the parameter this piece covers
  int64_t end = 0;
  // These three have shape full_shape for matrix optimizers and (end - begin) for element ones; but the
  // gradient of a matrix in a subspace has the subspace's.
  Tensor value;  // compute dtype: written
  Tensor
      master;   // f32: read and written; the same memory as `value` when that is f32 or there are no masters
  Tensor grad;  // f32: read
  std::array<Tensor, max_states>
      state;                           // of Optimizer::state_shape, or (numel / per) where elements share one
  const Subspace* subspace = nullptr;  // of a matrix that is trained in one
  int64_t since = 0;                   // the step at which the states began at zero
};

struct StepInfo {
  Tensor control;  // the step's number, learning-rate factor and gradient scale, see kernels/step_control.h
  uint64_t seed = 0;
  Tensor workspace{};  // f32 (workspace_bytes / 4), shared by all optimizers of a rank
};

class Optimizer {
 public:
  virtual ~Optimizer() = default;
  virtual const char* kind() const = 0;
  virtual ShardGranularity granularity() const = 0;
  virtual std::vector<StateSpec> states() const = 0;
  /// Are elements updated one by one, so that some rows of a matrix may go before the others? Rows begin at
  /// multiples of 256.
  virtual bool element_wise() const { return granularity() == ShardGranularity::element; }
  /// Of the states that it keeps for a gradient of this shape.
  virtual Shape state_shape(const Shape& gradient) const { return gradient; }
  /// Can it update bf16 values that have no fp32 master?
  virtual bool updates_in_place() const { return false; }
  /// Peak learning rate; the schedule multiplies it.
  virtual double learning_rate() const = 0;
  /// Scratch bytes that step() needs for these pieces on this queue (its threads may each want their own).
  virtual int64_t workspace_bytes(const Queue& queue, std::span<const ParamPiece> pieces) const = 0;
  /// Cost of updating one parameter, for balancing ranks (FLOPs).
  virtual double cost(const Shape& full_shape) const = 0;
  /// Updates master, value and state of every piece. Pieces are in an order that is the same on all
  /// ranks; equal shapes stand together.
  virtual void step(const Queue& queue, std::span<const ParamPiece> pieces, const StepInfo& info) const = 0;
};

}  // namespace osprey
