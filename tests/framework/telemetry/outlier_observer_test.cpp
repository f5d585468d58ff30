#include "framework/telemetry/outlier_observer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <vector>

#include "kernels/core/random.h"

namespace osprey {
namespace {

std::vector<float> values(int64_t n, uint64_t stream) {
  std::vector<float> v(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i)
    v[static_cast<size_t>(i)] = random_normal(5, stream, static_cast<uint64_t>(i));
  return v;
}

/// A communicator of two ranks as one of them sees it: the other sends a prepared string.
class TwoRanks final : public Communicator {
 public:
  explicit TwoRanks(std::string other) : other_(std::move(other)) {}
  int rank() const override { return 0; }
  int size() const override { return 2; }
  std::string kind() const override { return "test"; }
  std::vector<std::string> gather_strings(const std::string& mine) override {
    sent = mine;
    return {mine, other_.empty() ? mine : other_};
  }
  void all_reduce(Tensor, DType) override {}
  void reduce_scatter(Tensor, std::span<const Piece>, DType) override {}
  void all_gather(Tensor, std::span<const Piece>) override {}
  void broadcast(Tensor, int) override {}
  void barrier() override {}
  void max(std::span<double>) override {}
  void sum(std::span<double>) override {}
  std::unique_ptr<Communicator> duplicate() override { return nullptr; }
  void abort(const std::string& why) override { throw Error(why); }
  std::string sent;

 private:
  std::string other_;
};

/// One pass over two layers, as a model would report it.
void pass(OutlierObserver& observer, std::vector<float>& v) {
  for (int layer = 0; layer < 2; ++layer)
    for (const char* name : {"block_input", "down_input", "something_else"})
      observer.observe(layer, name, make_tensor(v.data(), {8, 16}, DType::f32));
  observer.observe(-1, "final_hidden", make_tensor(v.data(), {8, 16}, DType::f32));
}

/// q (6, 8), k (6, 4) of two sequences of three tokens, with an lse of zero.
Tap::AttentionView attention(std::vector<float>& v) {
  static std::vector<float> lse(12, 0.0f);
  return {.q = make_tensor(v.data(), {6, 8}, DType::f32),
          .k = make_tensor(v.data() + 48, {6, 4}, DType::f32),
          .lse = make_tensor(lse.data(), {2, 2, 3}, DType::f32),
          .batch = 2,
          .tokens = 3,
          .heads = 2,
          .kv_heads = 1,
          .head_size = 4,
          .scale = 0.5f};
}

TEST(OutlierObserver, KeepsTheTensorsTheRecipeAsksForByProtocolAndLayer) {
  TelemetrySpec spec;
  spec.outlier_tensors = {"block_input", "final_hidden"};
  OutlierObserver observer(spec, Queue{});
  std::vector<float> v = values(128, 1);
  pass(observer, v);
  observer.begin(Protocol::osp);
  pass(observer, v);
  std::string seen;
  for (const OutlierRow& row : observer.result())
    seen += fmt::format("{}/{}/{} ", name(row.protocol), row.tensor, row.layer);
  EXPECT_EQ(seen,
            "context/block_input/0 context/block_input/1 context/final_hidden/-1 "
            "osp/block_input/0 osp/block_input/1 osp/final_hidden/-1 ");
  observer.reset();
  EXPECT_TRUE(observer.result().empty());
}

TEST(OutlierObserver, AddsMicroBatches) {
  OutlierObserver observer({}, Queue{});
  std::vector<float> v = values(256, 2);
  observer.observe(0, "block_input", make_tensor(v.data(), {8, 16}, DType::f32));
  observer.observe(0, "block_input", make_tensor(v.data() + 128, {8, 16}, DType::f32));
  const OutlierMetrics whole =
      measure_outliers(Queue{}, make_tensor(v.data(), {16, 16}, DType::f32)).metrics();
  const OutlierMetrics got = observer.result().at(0).metrics;
  EXPECT_EQ(got.tokens, 16);
  EXPECT_NEAR(*got.kurtosis, *whole.kurtosis, 1e-12);
  EXPECT_NEAR(*got.pooled_kurtosis, *whole.pooled_kurtosis, 1e-12);
  EXPECT_EQ(*got.max_abs, *whole.max_abs);
}

TEST(OutlierObserver, MeasuresTheFirstTokenShareOnlyWhereAsked) {
  std::vector<float> v = values(128, 3);
  TelemetrySpec spec;
  OutlierObserver on(spec, Queue{});
  on.observe_attention(4, attention(v));
  ASSERT_EQ(on.result().size(), 1u);
  EXPECT_EQ(on.result()[0].tensor, "attention");
  EXPECT_EQ(on.result()[0].layer, 4);
  EXPECT_GT(*on.result()[0].first_token_share, 0.0);
  spec.first_token_share = false;
  OutlierObserver off(spec, Queue{});
  off.observe_attention(4, attention(v));
  EXPECT_TRUE(off.result().empty());
}

TEST(OutlierObserver, MergingOverRanksEqualsSeeingEverythingOnOne) {
  std::vector<float> a = values(128, 4), b = values(128, 5);
  OutlierObserver one({}, Queue{}), two({}, Queue{}), both({}, Queue{});
  pass(one, a), pass(both, a), pass(two, b), pass(both, b);
  one.observe_attention(0, attention(a)), both.observe_attention(0, attention(a));
  two.observe_attention(0, attention(b)), both.observe_attention(0, attention(b));
  TwoRanks second("");
  two.merge(second);  // only to learn what rank 1 would send
  TwoRanks first(second.sent);
  one.merge(first);
  const auto got = one.result(), want = both.result();
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].tensor, want[i].tensor);
    EXPECT_EQ(got[i].metrics.tokens, want[i].metrics.tokens);
    EXPECT_EQ(got[i].metrics.pooled_kurtosis, want[i].metrics.pooled_kurtosis);
    EXPECT_EQ(got[i].metrics.osp_kurtosis, want[i].metrics.osp_kurtosis);
    EXPECT_EQ(got[i].first_token_share, want[i].first_token_share);
  }
}

TEST(OutlierObserver, ARankThatSendsNonsenseIsAnError) {
  std::vector<float> a = values(128, 4);
  for (const char* bad : {"garbage", "0;0;0;1 2 3;0;0;0", "7;0;0;0 0 0 0 0 0 0 0 0 0 0 0 0 0;0;0;0",
                          "0;99;0;0 0 0 0 0 0 0 0 0 0 0 0 0 0;0;0;0"}) {
    OutlierObserver observer({}, Queue{});
    pass(observer, a);
    TwoRanks comm(bad);
    EXPECT_THROW(observer.merge(comm), Error) << bad;
  }
}

TEST(OutlierObserver, AnEntryHasEveryFigureUnderItsName) {
  OutlierObserver observer({}, Queue{});
  std::vector<float> v = values(128, 6);
  observer.begin(Protocol::osp);
  observer.observe(3, "down_input", make_tensor(v.data(), {8, 16}, DType::f32));
  const OutlierRow row = observer.result().at(0);
  const auto j = nlohmann::json::parse(outlier_entry(row, 100, 6400).line());
  EXPECT_EQ(j["event"], "outliers");
  EXPECT_EQ(j["protocol"], "osp");
  EXPECT_EQ(j["tensor"], "down_input");
  EXPECT_EQ(j["layer"], 3);
  EXPECT_EQ(j["osp_kurtosis"].get<double>(), *row.metrics.osp_kurtosis);
  EXPECT_EQ(j["kurtosis"].get<double>(), *row.metrics.kurtosis);
  EXPECT_EQ(j["pooled_kurtosis"].get<double>(), *row.metrics.pooled_kurtosis);
  EXPECT_EQ(j["max_abs"].get<double>(), *row.metrics.max_abs);
  EXPECT_EQ(j["max_to_mean"].get<double>(), *row.metrics.max_to_mean);
  EXPECT_EQ(j["max_to_median"].get<double>(), *row.metrics.max_to_median);
  EXPECT_EQ(j["tokens_measured"], 8);
  EXPECT_EQ(j["nonfinite_tokens"], 0);
}

TEST(OutlierObserver, OverLayersTakesTheMeanOfKurtosisAndTheLargestMaximum) {
  std::vector<OutlierRow> rows(3);
  for (int i = 0; i < 3; ++i) {
    auto& r = rows[static_cast<size_t>(i)];
    r.layer = i, r.tensor = i < 2 ? "block_input" : "down_input";
    r.metrics.kurtosis = i + 1.0;
    r.metrics.max_abs = 10.0 * (i + 1);
    r.metrics.tokens = 4;
  }
  const auto all = over_layers(rows);
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(*all[0].metrics.kurtosis, 1.5);
  EXPECT_EQ(*all[0].metrics.max_abs, 20.0);
  EXPECT_EQ(all[0].metrics.tokens, 8);
  EXPECT_FALSE(all[0].metrics.osp_kurtosis);
  EXPECT_EQ(*all[1].metrics.kurtosis, 3.0);
}

TEST(OutlierObserver, TensorBoardGetsOneEventForAllRows) {
  const auto dir = std::filesystem::path(testing::TempDir()) / "osprey_observer_tb";
  std::filesystem::remove_all(dir);
  OutlierObserver observer({}, Queue{});
  std::vector<float> v = values(128, 7);
  pass(observer, v);
  TfEventsWriter writer(dir, 0);
  const auto before = std::filesystem::file_size(writer.path());
  write_outliers(writer, 10, observer.result());
  EXPECT_GT(std::filesystem::file_size(writer.path()), before + 5 * 6 * 20);
}

}  // namespace
}  // namespace osprey
