#pragma once
// Master weights and optimizer state of what this rank updates.

#include <functional>
#include <memory>
#include <vector>

#include "framework/optimizer.h"
#include "framework/parallel/sharding.h"
#include "framework/parameter.h"

namespace osprey {

/// Owns state, not decisions: the plan says which ranges are this rank's, the optimizers how they move.
class Updater {
 public:
  /// Allocates masters (unless parameters are f32), state and workspace; masters and state where `place`
  /// says. Values are not touched.
  Updater(const Queue& queue, ParamStore& params, const ShardPlan& plan,
          std::span<const ShardParameter> sharded, int rank,
          const std::function<const Optimizer&(const Parameter&)>& optimizer_of,
          Arena::Place place = Arena::Place::device);

  /// Fills masters with the fp32 initial values that ParamStore::initialize rounds.
  void initialize(uint64_t seed);
  /// Updates masters, state and this rank's values as `control` says (kernels/step_control.h). The caller
  /// then gathers values (Reducer).
  void step(const Tensor& control, uint64_t seed);
  /// Writes values from masters (after loading a checkpoint).
  void round_values();
  /// Sets what this rank has of a parameter's master; round_values() and a gather then set its value.
  void assign(const Parameter& parameter, std::span<const float> values);

  /// One optimizer's pieces on this rank.
  struct Group {
    const Optimizer* optimizer;
    std::vector<StateSpec> states;
    std::vector<ParamPiece> pieces;
  };
  const std::vector<Group>& groups() const { return groups_; }
  int64_t state_bytes() const { return state_->used_bytes(); }
  int64_t workspace_bytes() const { return workspace_->used_bytes(); }

 private:
  ParamPiece make_piece(const UpdateRange& range, const Optimizer& optimizer) const;
  void allocate(Group& group);

  Queue queue_;
  ParamStore& params_;
  std::vector<Parameter*> by_index_;
  std::vector<Group> groups_;
  std::unique_ptr<Arena> state_, workspace_;
  Tensor scratch_;
};

}  // namespace osprey
