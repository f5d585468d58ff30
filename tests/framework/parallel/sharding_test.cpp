#include "framework/parallel/sharding.h"

#include <gtest/gtest.h>

#include <map>

#include "framework/config/reader.h"
#include "framework/parallel/thread_comm.h"
#include "kernels/sum_of_squares.h"
#include "tests/framework/parallel/comm_cases.h"

namespace osprey {
namespace {

using comm_cases::error_of;
using comm_cases::expect_words;

/// A small Llama: matrices for Muon, an embedding, a head and norms for AdamW. Bucket 0 is layer -1.
std::vector<ShardParameter> model(size_t layers) {
  std::vector<ShardParameter> params;
  std::map<size_t, int64_t> offsets;
  const auto add = [&](std::string name, size_t bucket, Shape shape, ShardGranularity g, double cost) {
    int64_t& at = offsets[bucket];
    params.push_back({std::move(name), bucket, at, shape, g, cost});
    at += (shape.numel() + 31) / 32 * 32;
  };
  add("embed.weight", 0, {1000, 64}, ShardGranularity::element, 1);
  add("embed_projection.weight", 0, {64, 64}, ShardGranularity::matrix, 64.0 * 64 * 64);
  add("norm.weight", 0, {1}, ShardGranularity::element, 1);
  add("head.weight", 0, {1001, 63}, ShardGranularity::element, 1);
  for (size_t l = 0; l < layers; ++l) {
    const auto path = [&](const char* tail) { return fmt::format("layers.{}.{}", l, tail); };
    add(path("norm1.weight"), l + 1, {1}, ShardGranularity::element, 1);
    for (const char* m : {"attn.q.weight", "attn.k.weight", "attn.v.weight", "attn.o.weight"})
      add(path(m), l + 1, {64, 64}, ShardGranularity::matrix, 64.0 * 64 * 64);
    add(path("norm2.weight"), l + 1, {64}, ShardGranularity::element, 1);
    add(path("mlp.gate.weight"), l + 1, {176, 64}, ShardGranularity::matrix, 64.0 * 64 * 176);
    add(path("mlp.up.weight"), l + 1, {176, 64}, ShardGranularity::matrix, 64.0 * 64 * 176);
    add(path("mlp.down.weight"), l + 1, {64, 176}, ShardGranularity::matrix, 64.0 * 64 * 176);
  }
  return params;
}

ShardPlan plan_of(const std::vector<ShardParameter>& params, size_t buckets, int ranks, int64_t zero) {
  ParallelSpec spec;
  spec.zero = zero;
  return make_shard_plan(params, buckets, ranks, spec);
}

/// Which rank each element of each parameter belongs to in a list of pieces; -1 where none does.
std::vector<std::vector<int>> owners_of(const std::vector<ShardParameter>& params, const ShardPlan& plan,
                                        std::vector<Piece> BucketPlan::*pieces) {
  std::vector<std::vector<int>> all;
  for (const ShardParameter& p : params) {
    std::vector<int> owners(static_cast<size_t>(p.shape.numel()), -1);
    for (const Piece& piece : plan.buckets[p.bucket].*pieces)
      for (int64_t i = std::max(piece.begin, p.offset); i < std::min(piece.end, p.offset + p.shape.numel());
           ++i) {
        int& owner = owners[static_cast<size_t>(i - p.offset)];
        EXPECT_EQ(owner, -1) << p.name << " element " << i << " is in two pieces";
        owner = piece.owner;
      }
    all.push_back(owners);
  }
  return all;
}

class EveryPlan : public testing::TestWithParam<std::tuple<int, int64_t>> {};
INSTANTIATE_TEST_SUITE_P(Worlds, EveryPlan,
                         testing::Combine(testing::Values(1, 2, 3, 4, 7, 64), testing::Values(0, 1)));

TEST_P(EveryPlan, ReducesEveryElementOnceAndUpdatesItWhereItsSumIs) {
  const auto [ranks, zero] = GetParam();
  const auto params = model(5);
  const auto plan = plan_of(params, 6, ranks, zero);
  const auto reduce = owners_of(params, plan, &BucketPlan::reduce);
  const auto grads = owners_of(params, plan, &BucketPlan::gather_grads);
  const auto values = owners_of(params, plan, &BucketPlan::gather_values);
  std::vector<std::vector<int>> updates(params.size());
  for (size_t i = 0; i < params.size(); ++i) updates[i].resize(reduce[i].size());
  for (int r = 0; r < ranks; ++r)
    for (const UpdateRange& u : plan.updates[static_cast<size_t>(r)])
      for (int64_t e = u.begin; e < u.end; ++e) {
        ++updates[u.parameter][static_cast<size_t>(e)];
        const int owner = values[u.parameter][static_cast<size_t>(e)];
        EXPECT_TRUE(owner == -1 || owner == r) << params[u.parameter].name;
      }
  for (size_t i = 0; i < params.size(); ++i)
    for (size_t e = 0; e < reduce[i].size(); ++e) {
      ASSERT_GE(reduce[i][e], 0) << params[i].name << " " << e;
      const bool by_all = zero == 0 && params[i].granularity == ShardGranularity::element;
      ASSERT_EQ(grads[i][e], by_all ? reduce[i][e] : -1) << params[i].name << " " << e;
      ASSERT_EQ(values[i][e], by_all ? -1 : reduce[i][e]) << params[i].name << " " << e;
      ASSERT_EQ(updates[i][e], by_all ? ranks : 1) << params[i].name << " " << e;
    }
}

TEST_P(EveryPlan, PiecesAscendAndAreCutAtMultiplesOf16) {
  const auto [ranks, zero] = GetParam();
  const auto plan = plan_of(model(5), 6, ranks, zero);
  for (const BucketPlan& b : plan.buckets)
    for (const auto* pieces : {&b.reduce, &b.gather_grads, &b.gather_values}) {
      int64_t last = 0;
      for (const Piece& p : *pieces) {
        EXPECT_EQ(p.begin % 16, 0);
        EXPECT_GE(p.begin, last);
        EXPECT_LT(p.begin, p.end);
        last = p.end;
      }
    }
}

TEST_P(EveryPlan, KeepsMatricesWholeAndBalanced) {
  const auto [ranks, zero] = GetParam();
  const auto params = model(5);
  const auto plan = plan_of(params, 6, ranks, zero);
  std::map<std::array<int64_t, 4>, std::vector<int>> banks;  // shape -> matrices per rank
  double dearest = 0;
  for (int r = 0; r < ranks; ++r) {
    double cost = 0;
    bool flat = false;
    const Shape* before = nullptr;
    std::map<std::array<int64_t, 4>, int> seen;
    for (const UpdateRange& u : plan.updates[static_cast<size_t>(r)]) {
      const ShardParameter& p = params[u.parameter];
      if (p.granularity == ShardGranularity::element) {
        flat = true;
        continue;
      }
      EXPECT_FALSE(flat) << "matrices come first";
      EXPECT_EQ(u, (UpdateRange{u.parameter, 0, p.shape.numel()}));
      if (!before || !(*before == p.shape)) {
        EXPECT_EQ(seen[p.shape.dims]++, 0) << "equal shapes stand together";
      }
      before = &p.shape;
      auto& bank = banks[p.shape.dims];
      bank.resize(static_cast<size_t>(ranks));
      ++bank[static_cast<size_t>(r)];
      cost += p.cost;
      dearest = std::max(dearest, p.cost);
    }
    EXPECT_DOUBLE_EQ(cost, plan.matrix_cost[static_cast<size_t>(r)]);
  }
  const auto [least, most] = std::minmax_element(plan.matrix_cost.begin(), plan.matrix_cost.end());
  EXPECT_LE(*most - *least, dearest);
  for (const auto& [shape, bank] : banks) {
    const auto [few, many] = std::minmax_element(bank.begin(), bank.end());
    EXPECT_LE(*many - *few, 3) << shape[0] << " x " << shape[1];
  }
}

TEST_P(EveryPlan, BalancesFlatRanges) {
  const auto [ranks, zero] = GetParam();
  if (zero == 0) return;
  const auto params = model(5);
  const auto plan = plan_of(params, 6, ranks, zero);
  int64_t least = INT64_MAX, most = 0;
  for (const auto& updates : plan.updates) {
    int64_t n = 0;
    for (const UpdateRange& u : updates)
      if (params[u.parameter].granularity == ShardGranularity::element) n += (u.end - u.begin + 15) / 16;
    least = std::min(least, n);
    most = std::max(most, n);
  }
  EXPECT_LE(most - least, 1);  // in units of 16 elements
}

TEST(Sharding, EvenBanksAreSplitEvenly) {
  const auto params = model(8);
  const auto plan = plan_of(params, 9, 4, 1);
  for (int r = 0; r < 4; ++r) {
    int attention = 0, mlp = 0;
    for (const UpdateRange& u : plan.updates[static_cast<size_t>(r)]) {
      attention += params[u.parameter].name.find("attn") != std::string::npos;
      mlp += params[u.parameter].name.find("mlp") != std::string::npos;
    }
    EXPECT_EQ(attention, 8);
    EXPECT_EQ(mlp, 6);
  }
}

TEST(Sharding, RefusesWhatOverlapsOrIsMisaligned) {
  std::vector<ShardParameter> params{{"a", 0, 0, {33}, ShardGranularity::element, 1},
                                     {"b", 0, 32, {8}, ShardGranularity::matrix, 1}};
  expect_words(error_of([&] { plan_of(params, 1, 2, 1); }), {"[sharding]", "a and b overlap"});
  params[1].offset = 40;
  expect_words(error_of([&] { plan_of(params, 1, 2, 1); }), {"b must start at a multiple of 16", "40"});
  params[1].offset = 48;
  EXPECT_NO_THROW(plan_of(params, 1, 2, 1));
  expect_words(error_of([&] { plan_of(params, 0, 2, 1); }), {"bucket 0 of 0"});
  expect_words(error_of([&] { plan_of(params, 1, 2, 2); }), {"zero must be 0 or 1, got 2"});
}

TEST(ParallelSpec, ReadsItsKeysAndRefusesLevelsThatDoNotExist) {
  const auto spec = read_spec<ParallelSpec>("zero: 0\nreduce_dtype: bf16\n", "r.yaml");
  EXPECT_EQ(spec.zero, 0);
  EXPECT_EQ(spec.reduce_dtype, DType::bf16);
  expect_words(error_of([] { read_spec<ParallelSpec>("zero: 2\n", "r.yaml"); }), {"r.yaml:1", "zero", "2"});
  expect_words(error_of([] { read_spec<ParallelSpec>("reduce_dtype: f16\n", "r.yaml"); }),
               {"reduce_dtype", "bf16"});
}

TEST(Sharding, TheNormIsTheSameAtAnyNumberOfRanks) {
  const auto params = model(3);
  int64_t numel = 1 << 18;
  double want = 0;
  for (const ShardParameter& p : params)
    for (int64_t i = 0; i < p.shape.numel(); ++i) {
      const double g = comm_cases::contribution(static_cast<int>(p.bucket), p.offset + i);
      want += g * g;
    }
  for (int ranks = 1; ranks <= 4; ++ranks)
    for (const int64_t zero : {0, 1})
      run_thread_ranks(ranks, [&](Communicator& comm) {
        const auto plan = plan_of(params, 4, ranks, zero);
        std::vector<std::vector<float>> buffers;
        std::vector<Tensor> grads;
        for (int b = 0; b < 4; ++b) buffers.push_back(comm_cases::contributions(b, numel));
        for (int b = 0; b < 4; ++b) {
          // What another rank owns is unspecified after reduction, and so is padding.
          std::vector<float>& v = buffers[static_cast<size_t>(b)];
          std::vector<float> mine(v.size(), std::nanf(""));
          for (const Piece& p : plan.buckets[static_cast<size_t>(b)].reduce)
            if (p.owner == comm.rank()) std::copy(&v[p.begin], &v[p.end], &mine[p.begin]);
          v = mine;
          grads.push_back(comm_cases::tensor_of(v));
        }
        double sum[] = {0.0};
        const std::vector<Tensor> owned = owned_gradients(plan, comm.rank(), grads);
        kernels::sum_of_squares({}, {.xs = owned, .sum = make_tensor(sum, {1}, DType::f64)});
        comm.sum(sum);
        EXPECT_NEAR(sum[0] / want, 1.0, 1e-13);
      });
}

}  // namespace
}  // namespace osprey
