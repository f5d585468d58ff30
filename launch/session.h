#pragma once
// The composition root: builds everything a recipe asks for, on a real device or on meta.

#include <memory>
#include <string>
#include <vector>

#include "framework/finetune/finetuning.h"
#include "framework/model.h"
#include "framework/parallel/reducer.h"
#include "framework/quant/freezer.h"
#include "framework/train/trainer.h"
#include "launch/recipe.h"
#include "optim/groups.h"
#include "optim/schedule.h"

namespace osprey {

struct MemoryCategory {
  std::string name;
  int64_t bytes;
  enum class Where { device, host } where = Where::device;  // for a rank on the CPU they are one
};

/// Capacities of what grows while a model runs, from a plan.
struct SessionMemory {
  int64_t activation_bytes = 0;
  int64_t activation_gradient_bytes = 0;
  static SessionMemory of(const std::vector<MemoryCategory>& planned);
};

/// Model, optimizers, sharding, memory: all of a run but its data, its hooks and its directory.
class Session {
 public:
  /// On meta nothing is allocated and nothing runs; the shapes of one step are worked through. Collective.
  Session(const Recipe& recipe, Communicator& world, const Queue& queue, const SessionMemory& memory);

  /// Fills parameters and masters with their initial values, or with those of the model that training starts
  /// from, adapters with those that it goes on from, and quantizes as step 0 does; the hook `schemes` sees to
  /// later steps.
  void initialize();
  /// Forward and backward of one micro step on meta, so that high-water marks are known.
  void trace();
  /// What this rank holds, by category: high-water marks so far. `trainer` adds its token buffers.
  std::vector<MemoryCategory> memory(const Trainer* trainer) const;
  /// The weights whose oscillation this rank is to follow: those of four bits, if the recipe says so, on rank
  /// 0, for all ranks hold the same.
  std::vector<WeightInFormat> followed_weights() const;
  /// Parts for a trainer; data sources are still to be filled in.
  TrainerParts parts();

  Queue queue;
  Communicator& world;  // of the hosts
  std::unique_ptr<LanguageModel> model;
  ParamStore params;
  Arena activations;
  Pool pool;
  Tape tape;
  std::unique_ptr<Finetuning> finetuning;
  std::unique_ptr<QuantSchemes> schemes;
  std::unique_ptr<OptimizerGroups> optimizers;
  ShardPlan plan;
  std::unique_ptr<Reducer> reducer;
  std::unique_ptr<Updater> updater;
  std::unique_ptr<WeightFreezer> freezer;  // of a group that freezes weights, else null

 private:
  bool several_gpus() const { return queue.target() == DeviceKind::cuda && world.size() > 1; }
  Recipe recipe_;
  std::unique_ptr<Communicator> device_world_;  // between GPUs; null where `world` serves
};

/// All parameters but those of the embedding table (which is also the head where embeddings are tied).
int64_t without_embedding(const ParamStore& params);

/// Threads for this rank: what the recipe says, else OMP_NUM_THREADS where it is set, else its bound cores
/// shared among the ranks bound to the same ones. Collective.
int threads_for_rank(const RunSpec& spec, Communicator& world);
/// The device the recipe asks for: for each rank of a host a GPU of its own, or the CPU for all.
/// Errors: throws when it is not in this build or machine, when there are more ranks than GPUs, and when
/// `auto` would give hosts different kinds; never falls back. Collective.
Device device_for(const RunSpec& spec, Communicator& world);
/// What a plan made on this machine is for.
DeviceKind planned_device(const RunSpec& spec);

/// A world in which nothing is ever sent: rank and size for planning.
std::unique_ptr<Communicator> make_planning_comm(int rank, int size);

/// What one rank of a run of this size will hold, on a device of this kind.
std::vector<MemoryCategory> plan_memory(const Recipe& recipe, int rank, int ranks, int threads,
                                        DeviceKind kind);

}  // namespace osprey
