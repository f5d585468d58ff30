#pragma once
// The composition root: builds everything a recipe asks for, on a real device or on meta.

#include <memory>
#include <string>
#include <vector>

#include "framework/model.h"
#include "framework/parallel/reducer.h"
#include "framework/train/trainer.h"
#include "launch/recipe.h"
#include "optim/groups.h"
#include "optim/schedule.h"

namespace osprey {

struct MemoryCategory {
  std::string name;
  int64_t bytes;
};

/// Model, optimizers, sharding, memory: all of a run but its data, its hooks and its directory.
class Session {
 public:
  /// On meta nothing is allocated and nothing runs; the shapes of one step are worked through.
  /// `activation_bytes`: capacity of the activation arena (virtual), from a meta session.
  Session(const Recipe& recipe, Communicator& world, const Queue& queue, int64_t activation_bytes);

  /// Fills parameters and masters with their initial values.
  void initialize();
  /// Forward and backward of one micro step on meta, so that high-water marks are known.
  void trace();
  /// What this rank holds, by category: high-water marks so far. `trainer` adds its token buffers.
  std::vector<MemoryCategory> memory(const Trainer* trainer) const;
  /// Parts for a trainer; data sources are still to be filled in.
  TrainerParts parts();

  Queue queue;
  Communicator& world;
  std::unique_ptr<LanguageModel> model;
  ParamStore params;
  Arena activations;
  Pool pool;
  Tape tape;
  std::unique_ptr<OptimizerGroups> optimizers;
  ShardPlan plan;
  std::unique_ptr<Reducer> reducer;
  std::unique_ptr<Updater> updater;

 private:
  Recipe recipe_;
};

/// Threads for this rank: what the recipe says, or its bound cores shared among the ranks bound to the same
/// ones. Collective.
int threads_for_rank(const RunSpec& spec, Communicator& world);
/// The device the recipe asks for.
/// Errors: throws when it is not in this build or machine; never falls back.
Device device_for(const RunSpec& spec);

/// A world in which nothing is ever sent: rank and size for planning.
std::unique_ptr<Communicator> make_planning_comm(int rank, int size);

/// What one rank of a run of this size will hold.
std::vector<MemoryCategory> plan_memory(const Recipe& recipe, int rank, int ranks, int threads);

}  // namespace osprey
