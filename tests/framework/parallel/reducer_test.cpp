#include "framework/parallel/reducer.h"

#include <gtest/gtest.h>

#include <cmath>

#include "framework/parallel/thread_comm.h"
#include "tests/framework/parallel/comm_cases.h"

namespace osprey {
namespace {

using comm_cases::contribution;
using comm_cases::error_of;
using comm_cases::expect_words;

/// A parameter store with two layers, and who owns what of it on `ranks` ranks.
struct Fixture {
  ParamStore store;
  std::vector<ShardParameter> params;
  ShardPlan plan;
  ParallelSpec spec;

  Fixture(int ranks, int64_t zero, DType wire, DType values) {
    store.add("embed.weight", -1, {501, 16}, {});
    store.add("norm.weight", -1, {1}, {});
    for (int l = 0; l < 2; ++l) {
      store.add(fmt::format("layers.{}.norm1.weight", l), l, {20}, {});
      for (const char* m : {"q", "k", "v"})
        store.add(fmt::format("layers.{}.attn.{}.weight", l, m), l, {48, 48}, {});
    }
    store.materialize({}, values, ParamStore::Gradients::on);
    store.at("layers.1.attn.v.weight").trainable = false;  // while the run goes on: its gradient has memory
    for (size_t b = 0; b < store.buckets().size(); ++b)
      for (Parameter* p : store.buckets()[b].params)
        if (p->trainable)
          params.push_back({p->name, b, p->offset, p->shape,
                            p->name.find("attn") != std::string::npos ? ShardGranularity::matrix
                                                                      : ShardGranularity::element,
                            1.0});
    spec.zero = zero;
    spec.reduce_dtype = wire;
    plan = make_shard_plan(params, store.buckets().size(), ranks, spec);
  }

  Parameter& parameter(const ShardParameter& p) { return store.at(p.name); }

  /// Every trained gradient is written but that of norm.weight, which this batch did not reach.
  void write_gradients(int rank, int64_t step) {
    store.begin_step();
    for (auto& p : store.all()) {
      float* g = p->grad.as<float>();
      if (p->name == "norm.weight" || !p->trainable) {
        g[0] = std::nanf("");
        continue;
      }
      p->accumulate();
      for (int64_t i = 0; i < p->grad.numel(); ++i) g[i] = contribution(rank, step * 1000 + p->offset + i);
    }
  }
  static float gradient(const Parameter& p, int ranks, int64_t step, int64_t i, DType wire) {
    return p.name == "norm.weight" ? 0 : comm_cases::expected_sum(ranks, step * 1000 + p.offset + i, wire);
  }
};

void set_value(Tensor& values, int64_t i, float v) {
  if (values.dtype == DType::bf16)
    values.as<bf16>()[i] = to_bf16(v);
  else
    values.as<float>()[i] = v;
}
float get_value(const Tensor& values, int64_t i) {
  return values.dtype == DType::bf16 ? to_float(values.as<bf16>()[i]) : values.as<float>()[i];
}

/// (ranks, zero, wire, dtype of values)
class EveryReducer : public testing::TestWithParam<std::tuple<int, int64_t, DType, DType>> {};
INSTANTIATE_TEST_SUITE_P(Worlds, EveryReducer,
                         testing::Combine(testing::Range(1, 5), testing::Values(0, 1),
                                          testing::Values(DType::f32, DType::bf16),
                                          testing::Values(DType::f32, DType::bf16)));

TEST_P(EveryReducer, SumsGradientsWhereTheyAreUsedAndSpreadsTheUpdatedValues) {
  const auto [ranks, zero, wire, values] = GetParam();
  run_thread_ranks(ranks, [&, n = ranks, z = zero, w = wire, v = values](Communicator& comm) {
    Fixture f(n, z, w, v);
    Reducer reducer(comm, Queue{}, f.plan, f.spec, reduce_buckets(f.store));
    for (int64_t step = 0; step < 3; ++step) {
      f.write_gradients(comm.rank(), step);
      reducer.arm();
      for (const int layer : {1, 0, -1}) {
        reducer.after_backward(layer);
        double busy[] = {1.0};
        comm.sum(busy);  // the main thread may use its own communicator meanwhile
      }
      reducer.wait_all();
      for (const UpdateRange& u : f.plan.updates[static_cast<size_t>(comm.rank())]) {
        Parameter& p = f.parameter(f.params[u.parameter]);
        for (int64_t i = u.begin; i < u.end; ++i) {
          ASSERT_EQ(p.grad.as<float>()[i], Fixture::gradient(p, n, step, i, w)) << p.name << " " << i;
          set_value(p.value, i, p.grad.as<float>()[i] * 0.5f);
        }
      }
      const uint64_t version = f.store.at("embed.weight").version;
      reducer.gather_all();
      reducer.wait_all();
      EXPECT_GT(f.store.at("embed.weight").version, version);
      for (const ShardParameter& s : f.params) {
        const Parameter& p = f.parameter(s);
        for (int64_t i = 0; i < p.shape.numel(); ++i) {
          float want = Fixture::gradient(p, n, step, i, w) * 0.5f;
          if (v == DType::bf16) want = to_float(to_bf16(want));
          ASSERT_EQ(get_value(p.value, i), want) << p.name << " " << i << " on rank " << comm.rank();
        }
      }
    }
    EXPECT_EQ(reducer.times().busy_ms > 0, n > 1);
  });
}

TEST(Reducer, Bf16OnTheWireStaysWithinRounding) {
  double worst = 0;
  for (int64_t i = 0; i < 4096; ++i) {
    double magnitude = 0;
    for (int r = 0; r < 4; ++r) magnitude += std::abs(contribution(r, i));
    const double error =
        comm_cases::expected_sum(4, i, DType::bf16) - comm_cases::expected_sum(4, i, DType::f32);
    worst = std::max(worst, std::abs(error) / magnitude);
  }
  EXPECT_LE(worst, 1.0 / 256);  // each part by half a unit in the last of 8 bits
  EXPECT_GT(worst, 1.0 / 4096);
}

TEST(Reducer, DoesNothingUntilArmed) {
  run_thread_ranks(2, [](Communicator& comm) {
    Fixture f(2, 1, DType::f32, DType::f32);
    Reducer reducer(comm, Queue{}, f.plan, f.spec, reduce_buckets(f.store));
    f.write_gradients(comm.rank(), 0);
    for (const int layer : {1, 0, -1}) reducer.after_backward(layer);
    reducer.wait_all();
    for (const auto& p : f.store.all()) {
      if (!p->trainable || p->name == "norm.weight") continue;
      for (int64_t i = 0; i < p->grad.numel(); ++i)
        ASSERT_EQ(p->grad.as<float>()[i], contribution(comm.rank(), p->offset + i));
    }
  });
}

TEST(Reducer, RanksThatDisagreeAreToldSoByWaitAll) {
  run_thread_ranks(3, [](Communicator& comm) {
    Fixture f(3, 1, DType::f32, DType::f32);
    Reducer reducer(comm, Queue{}, f.plan, f.spec, reduce_buckets(f.store));
    f.write_gradients(comm.rank(), 0);
    reducer.reduce(comm.rank() == 1 ? 0 : 1);
    expect_words(error_of([&] { reducer.wait_all(); }), {"[reduce_scatter]", "rank 1 is at", "rank 0 is at"});
  });
}

TEST(Reducer, ARankThatLeavesEndsTheWaitOfTheOthers) {
  std::string seen;
  const auto first = error_of([&] {
    run_thread_ranks(2, [&](Communicator& comm) {
      Fixture f(2, 1, DType::f32, DType::f32);
      Reducer reducer(comm, Queue{}, f.plan, f.spec, reduce_buckets(f.store));
      if (comm.rank() == 1) fail("test", "no more");
      f.write_gradients(comm.rank(), 0);
      reducer.reduce(0);
      seen = error_of([&] { reducer.wait_all(); });
    });
  });
  EXPECT_EQ(first, "[test] no more");
  expect_words(seen, {"[reduce_scatter]", "rank 1 left"});
}

TEST(Reducer, RefusesAPlanForAnotherWorld) {
  Fixture f(2, 1, DType::f32, DType::f32);
  const auto comm = make_self_comm();
  expect_words(error_of([&] { Reducer(*comm, Queue{}, f.plan, f.spec, reduce_buckets(f.store)); }),
               {"plan is for 2 ranks, there are 1"});
}

}  // namespace
}  // namespace osprey
