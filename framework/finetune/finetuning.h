#pragma once
// What a method of fine-tuning does to a run: which parameters train, in which subspace, and when that
// changes.

#include <memory>
#include <optional>
#include <vector>

#include "framework/checkpoint/shards.h"
#include "framework/finetune/adapters.h"
#include "framework/finetune/layer_turns.h"
#include "framework/finetune/spec.h"
#include "framework/train/trainer.h"

namespace osprey {

/// Between declaring parameters and allocating them it marks what trains; while the run goes on it moves
/// gradients, optimizer state and bases from layers that fall asleep to those that wake up. With
/// spec.reference it moves gradients alone: every layer has state and a basis of its own. Both are pure
/// functions of (settings, seed, step): there is nothing to save but the bases.
class Finetuning final : public StepHook, private BasisSource {
 public:
  /// `params` is declared and not yet materialized.
  /// With adapters, it declares their parameters.
  /// Errors: `targets` that match no matrix, a rank above a matrix's smaller side, scores that do not fit.
  Finetuning(const FinetuneSpec& spec, ParamStore& params, uint64_t seed);

  /// How many layers have gradients at a time; nothing: all. For ParamStore::materialize.
  std::optional<int> places() const;
  /// After params.materialize(): allocates bases, and gives places to the layers of step 0. The other layers
  /// sleep from here on, with spec.reference from attach() on, so that a plan made in between is one of all
  /// layers.
  void materialize(const Queue& queue);
  struct Parts {
    ShardPlan* plan = nullptr;  // is changed when layers change
    Updater* updater = nullptr;
    Reducer* reducer = nullptr;  // null on meta
    Communicator* device_world = nullptr;
  };
  void attach(const Parts& parts);

  /// Wakes up and puts to sleep what `step` wants, and says whose basis it sets anew.
  void before_step(Trainer&, int64_t step) override;
  /// Told in the steps where other layers wake up, and in the first of this process; may be empty.
  std::function<void(int64_t step, const std::vector<ActiveLayer>&)> on_turn;
  /// Says who chooses a basis in `step`; layers are as they are.
  void prepare(int64_t step);
  /// As it was when `step` steps were done, with empty state that is to be loaded.
  void stand_after(int64_t step);

  /// Bases of what trains now, with spec.reference of all layers; all ranks hold them.
  std::vector<NamedPiece> pieces() const;
  /// What adapts which weight; empty without adapters.
  const std::vector<AdapterNames>& adapters() const { return adapters_; }
  /// Do the names of what is saved change in the run? And do frozen parameters change before they freeze?
  bool takes_turns() const { return turns_ != nullptr; }
  /// Who is active now, by place; empty where all are.
  const std::vector<ActiveLayer>& active() const { return active_; }
  int64_t basis_bytes() const { return bases_ ? bases_->used_bytes() : 0; }

 private:
  bool wants_gradient() const override;
  void refresh(const Queue& queue, Parameter& p, const Tensor& gradient) override;
  void mark_frozen();
  void mark_subspaces();
  void put_others_to_sleep();
  bool set_turns(const std::vector<ActiveLayer>& turns);
  void hand_over(int place, int from, int to, int64_t since);
  void move_state(int from, int to, int64_t since);
  void switch_state(int from, int to, int64_t since);
  size_t bucket_index(int layer) const;

  FinetuneSpec spec_;
  ParamStore& params_;
  uint64_t seed_;
  Parts parts_;
  std::unique_ptr<LayerTurns> turns_;
  std::vector<ActiveLayer> active_;
  std::unique_ptr<Arena> bases_;
  std::vector<AdapterNames> adapters_;
  std::vector<Parameter*> projected_;   // that have a subspace, of all layers
  std::vector<BucketPlan> awake_plan_;  // with spec.reference: of every bucket while it is awake
  bool told_ = false;                   // who is active
  int64_t step_ = 0;                    // that is being prepared or computed
};

}  // namespace osprey
