#include "framework/parallel/sharding.h"

#include <algorithm>
#include <map>
#include <numeric>

namespace osprey {
namespace {

constexpr int64_t kUnit = 16;  // elements; 64 bytes of f32: no two ranks share a cache line

ShardParameter::Gradient gradient_of(const ShardParameter& p) {
  return p.gradient.value_or(ShardParameter::Gradient{p.offset, p.shape.numel()});
}

int64_t units_of(const ShardParameter& p) { return (p.shape.numel() + kUnit - 1) / kUnit; }

/// Indices sorted by (bucket, offset), after checking that nothing overlaps.
std::vector<size_t> in_buffer_order(std::span<const ShardParameter> params, size_t buckets) {
  std::vector<size_t> order(params.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return std::pair(params[a].bucket, params[a].offset) < std::pair(params[b].bucket, params[b].offset);
  });
  for (size_t i = 0; i < order.size(); ++i) {
    const ShardParameter& p = params[order[i]];
    require(p.bucket < buckets, "sharding", "{} is in bucket {} of {}", p.name, p.bucket, buckets);
    require(p.offset >= 0 && p.offset % kUnit == 0, "sharding",
            "{} must start at a multiple of {} elements, got {}", p.name, kUnit, p.offset);
    require(p.shape.numel() > 0, "sharding", "{} is empty: {}", p.name, p.shape.str());
    if (i == 0) continue;
    const ShardParameter& before = params[order[i - 1]];
    require(before.bucket != p.bucket || before.offset + before.shape.numel() <= p.offset, "sharding",
            "{} and {} overlap in bucket {}", before.name, p.name, p.bucket);
    require(p.granularity == ShardGranularity::matrix || gradient_of(p).numel == p.shape.numel(), "sharding",
            "{} is trained in a subspace and cannot be cut over ranks", p.name);
  }
  return order;
}

/// The owner of every matrix parameter, and the order in which owners update them.
std::vector<std::pair<size_t, int>> assign_matrices(std::span<const ShardParameter> params,
                                                    std::span<const size_t> order,
                                                    std::vector<double>& load) {
  std::vector<size_t> matrices;
  for (size_t i : order)
    if (params[i].granularity == ShardGranularity::matrix) matrices.push_back(i);
  std::stable_sort(matrices.begin(), matrices.end(), [&](size_t a, size_t b) {
    const auto& p = params[a];
    const auto& q = params[b];
    return p.cost != q.cost ? p.cost > q.cost : p.shape.dims > q.shape.dims;
  });
  std::vector<std::pair<size_t, int>> owners;
  for (size_t i : matrices) {
    const auto least = std::min_element(load.begin(), load.end()) - load.begin();
    load[static_cast<size_t>(least)] += params[i].cost;
    owners.emplace_back(i, static_cast<int>(least));
  }
  return owners;
}

/// How many units of a bucket each rank gets; what does not divide evenly goes to those with the least so
/// far.
std::vector<int64_t> quotas(int64_t units, std::vector<int64_t>& assigned) {
  const auto ranks = static_cast<int64_t>(assigned.size());
  std::vector<int64_t> quota(assigned.size(), units / ranks);
  std::vector<size_t> by_load(assigned.size());
  std::iota(by_load.begin(), by_load.end(), size_t{0});
  std::stable_sort(by_load.begin(), by_load.end(),
                   [&](size_t a, size_t b) { return assigned[a] < assigned[b]; });
  for (int64_t i = 0; i < units % ranks; ++i) ++quota[by_load[static_cast<size_t>(i)]];
  for (size_t r = 0; r < assigned.size(); ++r) assigned[r] += quota[r];
  return quota;
}

/// Calls take(parameter, owner, begin, end) for the flat ranges of the element parameters of one bucket.
template <class Take>
void cut_elements(std::span<const ShardParameter> params, std::span<const size_t> members,
                  std::vector<int64_t>& assigned, const Take& take) {
  int64_t units = 0;
  for (size_t i : members) units += units_of(params[i]);
  std::vector<int64_t> left = quotas(units, assigned);
  size_t rank = 0;
  for (size_t i : members) {
    const int64_t numel = params[i].shape.numel();
    for (int64_t begin = 0; begin < numel;) {
      while (left[rank] == 0) ++rank;
      const int64_t n = std::min(left[rank], (numel - begin + kUnit - 1) / kUnit);
      const int64_t end = std::min(numel, begin + n * kUnit);
      left[rank] -= n;
      take(i, static_cast<int>(rank), begin, end);
      begin = end;
    }
  }
}

void sort_pieces(std::vector<Piece>& pieces) {
  std::sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.begin < b.begin; });
}

}  // namespace

ShardPlan make_shard_plan(std::span<const ShardParameter> params, size_t buckets, int ranks,
                          const ParallelSpec& spec) {
  require(ranks >= 1, "sharding", "needs at least one rank, got {}", ranks);
  require(spec.zero == 0 || spec.zero == 1, "sharding", "zero must be 0 or 1, got {}", spec.zero);
  const auto order = in_buffer_order(params, buckets);
  ShardPlan plan;
  plan.ranks = ranks;
  plan.buckets.resize(buckets);
  plan.updates.resize(static_cast<size_t>(ranks));
  plan.matrix_cost.assign(static_cast<size_t>(ranks), 0);

  for (const auto& [i, owner] : assign_matrices(params, order, plan.matrix_cost)) {
    const ShardParameter& p = params[i];
    const auto [at, numel] = gradient_of(p);
    plan.buckets[p.bucket].reduce.push_back({owner, at, at + numel});
    plan.buckets[p.bucket].gather_values.push_back({owner, p.offset, p.offset + p.shape.numel()});
    plan.updates[static_cast<size_t>(owner)].push_back({i, 0, p.shape.numel()});
  }

  std::vector<std::vector<size_t>> members(buckets);
  for (size_t i : order)
    if (params[i].granularity == ShardGranularity::element) members[params[i].bucket].push_back(i);
  std::vector<int64_t> assigned(static_cast<size_t>(ranks), 0);
  for (size_t b = 0; b < buckets; ++b) {
    BucketPlan& bucket = plan.buckets[b];
    cut_elements(params, members[b], assigned, [&](size_t i, int owner, int64_t begin, int64_t end) {
      const int64_t value = params[i].offset, grad = gradient_of(params[i]).offset;
      const Piece gradient{owner, grad + begin, grad + end};
      bucket.reduce.push_back(gradient);
      if (spec.zero == 0)
        bucket.gather_grads.push_back(gradient);
      else
        bucket.gather_values.push_back({owner, value + begin, value + end});
      if (spec.zero == 1) plan.updates[static_cast<size_t>(owner)].push_back({i, begin, end});
    });
    if (spec.zero == 0)
      for (auto& updates : plan.updates)
        for (size_t i : members[b]) updates.push_back({i, 0, params[i].shape.numel()});
    sort_pieces(bucket.reduce);
    sort_pieces(bucket.gather_grads);
    sort_pieces(bucket.gather_values);
  }
  return plan;
}

std::vector<ShardParameter> shard_parameters(
    ParamStore& store, const std::function<const Optimizer&(const Parameter&)>& optimizer_of) {
  std::vector<ShardParameter> params;
  for (size_t b = 0; b < store.buckets().size(); ++b)
    for (const Parameter* p : store.buckets()[b].params) {
      if (!p->trainable) continue;
      const Optimizer& optimizer = optimizer_of(*p);
      params.push_back({p->name, b, p->offset, p->shape, optimizer.granularity(), optimizer.cost(p->shape),
                        ShardParameter::Gradient{p->grad_offset, p->grad_shape().numel()}});
    }
  return params;
}

std::vector<Tensor> owned_gradients(const ShardPlan& plan, int rank, std::span<const Tensor> grads) {
  require(grads.size() == plan.buckets.size(), "sharding", "{} gradient buffers for {} buckets", grads.size(),
          plan.buckets.size());
  std::vector<Tensor> owned;
  for (size_t b = 0; b < grads.size(); ++b)
    for (const Piece& p : plan.buckets[b].reduce)
      if (p.owner == rank) owned.push_back(grads[b].columns(p.begin, p.end).view({p.end - p.begin}));
  return owned;
}

}  // namespace osprey
