#pragma once
// Who owns what: which rank sums which gradients, updates which parameters and sends which values.

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "framework/config/fields.h"
#include "framework/optimizer.h"
#include "framework/parallel/communicator.h"
#include "framework/parameter.h"

namespace osprey {

/// The `parallel` section of a recipe.
struct ParallelSpec {
  int64_t zero = 1;
  DType reduce_dtype = DType::f32;
  double timeout_s = 600;
  bool offload_optimizer = false;
  void fields(Fields& f) {
    f("zero", zero,
      "0: every rank keeps the optimizer state of all element-wise optimizers; 1: each rank keeps its share. "
      "Matrices of Muon have one owner in both. Any value is fine with one rank",
      between(0, 1));
    f.choice("reduce_dtype", reduce_dtype, {{"fp32", DType::f32}, {"bf16", DType::bf16}},
             "how gradients travel between ranks; they are added in fp32 in both");
    f("offload_optimizer", offload_optimizer,
      "keep master weights and optimizer state of a GPU run in pinned host memory, which updates reach over the bus: "
      "slower steps, 8 to 12 bytes of GPU memory less for each parameter of a rank");
    f("timeout_s", timeout_s,
      "seconds after which a collective between GPUs that has not ended ends the job, naming rank and collective",
      positive());
  }
};

/// A trained parameter as the planner sees it.
struct ShardParameter {
  std::string name;
  size_t bucket = 0;
  int64_t offset = 0;  // of its first element in the bucket's values; a multiple of 16
  Shape shape;
  ShardGranularity granularity = ShardGranularity::element;
  double cost = 0;  // of updating it whole, in any unit; balances matrices
  /// Where its gradient lies in the bucket's gradients; absent: where its value lies among the values.
  struct Gradient {
    int64_t offset = 0;  // a multiple of 16
    int64_t numel = 0;   // other than the value's in a subspace, which only matrices have
  };
  std::optional<Gradient> gradient = {};
};

/// A range of one parameter that a rank updates, in elements of the parameter.
struct UpdateRange {
  size_t parameter = 0;  // index into the planner's input
  int64_t begin = 0;
  int64_t end = 0;
  bool operator==(const UpdateRange&) const = default;
};

/// What happens to one bucket. Ranges are in elements of the bucket's flat gradients or values and ascend.
struct BucketPlan {
  std::vector<Piece> reduce;         // each trained element once: its owner holds the summed gradient
  std::vector<Piece> gather_grads;   // those that all ranks update: their summed gradients go to all ranks
  std::vector<Piece> gather_values;  // those that only their owner updates: the new values go to all ranks
};

struct ShardPlan {
  int ranks = 1;
  std::vector<BucketPlan> buckets;
  /// For each rank what it updates: whole matrices first, equal shapes together, then flat ranges by bucket.
  std::vector<std::vector<UpdateRange>> updates;
  std::vector<double> matrix_cost;  // for each rank, the cost of its matrices
};

/// Cuts the parameters over `ranks`: a pure function of its arguments, equal on all ranks.
/// `matrix` parameters go whole to the rank with the least matrix cost so far, dearest first, equal shapes in
/// a row (longest processing time first), so each is updated once in the world. `element` parameters are cut
/// evenly within each bucket at multiples of 16 elements; zero == 0 lets all ranks update them.
/// Errors: overlapping or misaligned parameters.
ShardPlan make_shard_plan(std::span<const ShardParameter> params, size_t buckets, int ranks,
                          const ParallelSpec& spec);

/// The trainable parameters of a materialized store in bucket order, with what their optimizer says of them.
std::vector<ShardParameter> shard_parameters(
    ParamStore& store, const std::function<const Optimizer&(const Parameter&)>& optimizer_of);

/// The parts of the gradients that this rank owns after reduction: over all ranks each trained element once,
/// so the sums of squares of all ranks' parts add up to that of the global gradient.
/// grads: one flat f32 buffer for each bucket.
std::vector<Tensor> owned_gradients(const ShardPlan& plan, int rank, std::span<const Tensor> grads);

}  // namespace osprey
