#pragma once
// Master weights and optimizer state of what this rank updates.

#include <functional>
#include <memory>
#include <vector>

#include "framework/optimizer.h"
#include "framework/parallel/sharding.h"
#include "framework/parameter.h"
#include "framework/train/spec.h"

namespace osprey {

/// Owns state, not decisions: the plan says which ranges are this rank's, the optimizers how they move.
class Updater {
 public:
  /// Allocates masters (unless parameters are f32 or there are none), state and workspace; masters and state
  /// where `place` says. Values are not touched. Errors: an optimizer that needs masters where there are
  /// none.
  Updater(const Queue& queue, ParamStore& params, const ShardPlan& plan,
          std::span<const ShardParameter> sharded, int rank,
          const std::function<const Optimizer&(const Parameter&)>& optimizer_of,
          Arena::Place place = Arena::Place::device, Masters masters = Masters::kept);

  /// Fills masters with the fp32 initial values that ParamStore::initialize rounds.
  void initialize(uint64_t seed);
  /// Updates masters, state and this rank's values as `control` says (kernels/step_control.h). The caller
  /// then gathers values (Reducer).
  void step(const Tensor& control, uint64_t seed);
  /// The same for the parameters of one layer whose gradients are held whole.
  void step_layer(int layer, const Tensor& control, uint64_t seed);
  /// The same for the rows from `first` on of a table, by their gradient; every rank has all of them.
  void step_rows(const Parameter& p, int64_t first, const Tensor& gradient, const Tensor& control,
                 uint64_t seed);
  /// Writes values from masters (after loading a checkpoint).
  void round_values();
  /// Fills masters from values (after loading a model).
  void take_masters();
  /// What was the state of `from` is that of `to` from now on, a parameter of the same shape: zero, and its
  /// masters are the values of `to`. `step` is the first one that it is for.
  void pass_on(const Parameter& from, const Parameter& to, int64_t step);
  /// Updates of a parameter stop, and its state and masters stay, until go_on(): its gradient's memory may be
  /// another's. A parameter without one when the updater is made rests from the beginning.
  void rest(const Parameter& parameter);
  /// Updates go on, as if those before had been the steps from `since` on.
  void go_on(const Parameter& parameter, int64_t since);
  /// Sets what this rank has of a parameter's master; round_values() and a gather then set its value.
  void assign(const Parameter& parameter, std::span<const float> values);

  /// One optimizer's pieces on this rank.
  struct Group {
    const Optimizer* optimizer;
    std::vector<StateSpec> states;
    std::vector<ParamPiece> pieces;
    std::vector<const Parameter*> parameters;  // of the pieces
  };
  const std::vector<Group>& groups() const { return groups_; }
  int64_t state_bytes() const { return state_->used_bytes(); }
  int64_t workspace_bytes() const { return workspace_->used_bytes(); }

 private:
  static void point(ParamPiece& piece, const Parameter& p, const Optimizer& optimizer);
  void allocate(Group& group);
  bool has_master(const ParamPiece& p) const { return p.master.data != p.value.data; }

  Queue queue_;
  ParamStore& params_;
  Masters masters_;
  std::vector<Group> groups_;
  std::unique_ptr<Arena> state_, workspace_;
  Tensor scratch_;
  std::vector<ParamPiece> some_;  // of a group, to be updated now
};

}  // namespace osprey
