#include "optim/apollo.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "framework/files/json.h"
#include "tests/support/device_copy.h"
#include "tests/support/paths.h"

namespace osprey {
namespace {

using nlohmann::json;
using test::DeviceCopy;

const json& golden() {
  static const json all =
      read_json(std::filesystem::path(test::source_dir()) / "tests/optim/apollo/golden.json", 1 << 20, 8);
  return all;
}

AdamW::Settings adam(MomentFormat moments = MomentFormat::fp32) {
  return {.learning_rate = golden()["learning_rate"],
          .weight_decay = golden()["weight_decay"],
          .beta1 = golden()["betas"][0],
          .beta2 = golden()["betas"][1],
          .eps = golden()["eps"],
          .moments = moments};
}

Apollo apollo_of(const json& one, MomentFormat moments = MomentFormat::fp32,
                 int64_t elements_at_a_time = 1 << 22) {
  return {adam(moments),
          {.rank = one["rank"],
           .refresh_every = one["refresh_every"],
           .scale = one["scale"],
           .scaling = one["scaling"] == "tensor" ? Apollo::Scaling::tensor : Apollo::Scaling::channel,
           .elements_at_a_time = elements_at_a_time}};
}

/// A matrix that begins as the golden one does, with its state.
class Matrix {
 public:
  Matrix(const json& one, const Apollo& apollo)
      : name_(one["name"]),
        shape_{one["out"], one["in"]},
        grad_(std::vector<float>(count())),
        value_(start()) {
    for (const StateSpec& s : apollo.states()) {
      const int64_t n = apollo.state_shape(shape_).numel();
      floats_.emplace_back(std::vector<float>(static_cast<size_t>((n + s.per - 1) / s.per)));
    }
  }
  void step(const Apollo& apollo, int64_t t, double apply = 1) {
    std::vector<float> g(count());
    const double size = golden()["sizes"][static_cast<size_t>(t)];
    for (size_t i = 0; i < g.size(); ++i)
      g[i] = static_cast<float>(size *
                                std::cos(0.7 * (static_cast<double>(i) + 1) * (static_cast<double>(t) + 1)));
    grad_.set(g);
    ParamPiece p;
    p.name = name_;
    p.full_shape = shape_;
    p.end = shape_.numel();
    p.value = p.master = value_.tensor(shape_);
    p.grad = grad_.tensor(shape_);
    const auto specs = apollo.states();
    for (size_t i = 0; i < floats_.size(); ++i)
      p.state[i] = specs[i].per == 1 ? floats_[i].tensor(apollo.state_shape(shape_)) : floats_[i].flat();
    const Queue queue = test::test_queue();
    const DeviceCopy<float> memory(
        std::vector<float>(static_cast<size_t>(apollo.workspace_bytes(queue, {&p, 1}) / 4), NAN));
    const auto scalars = test::control(
        {.step = t, .grad_scale = golden()["grad_scale"][static_cast<size_t>(t)], .apply = apply});
    apollo.step(
        queue, {&p, 1},
        {.control = scalars.flat(), .seed = golden()["seed"].get<uint64_t>(), .workspace = memory.flat()});
    EXPECT_TRUE(memory.guards_intact());
  }
  std::vector<float> values() const { return value_.values(); }
  std::vector<std::vector<float>> state() const {
    std::vector<std::vector<float>> all;
    for (const auto& s : floats_) all.push_back(s.values());
    return all;
  }

 private:
  size_t count() const { return static_cast<size_t>(shape_.numel()); }
  std::vector<float> start() const {
    std::vector<float> w(count());
    for (size_t i = 0; i < w.size(); ++i)
      w[i] = static_cast<float>(0.5 * std::sin(static_cast<double>(i) + 1));
    return w;
  }
  std::string name_;
  Shape shape_;
  DeviceCopy<float> grad_, value_;
  std::vector<DeviceCopy<float>> floats_;
};

TEST(Apollo, StepsAreThoseOfTheTranscription) {
  for (const json& one : golden()["cases"]) {
    const Apollo apollo = apollo_of(one);
    Matrix m(one, apollo);
    for (size_t t = 0; t < one["after"].size(); ++t) {
      m.step(apollo, static_cast<int64_t>(t));
      const auto want = one["after"][t].get<std::vector<float>>(), got = m.values();
      ASSERT_EQ(got.size(), want.size());
      for (size_t i = 0; i < want.size(); ++i)
        EXPECT_NEAR(got[i], want[i], 2e-6) << one["name"] << " step " << t << " element " << i;
    }
  }
}

TEST(Apollo, LargeMatricesMoveSomeRowsAtATimeWithoutChangingABit) {
  for (const json& one : golden()["cases"])
    for (const int64_t rows : {1, 2, 4}) {
      const Apollo whole = apollo_of(one),
                   parts = apollo_of(one, MomentFormat::fp32, rows * one["in"].get<int64_t>() + 1);
      Matrix a(one, whole), b(one, parts);
      for (int64_t t = 0; t < 3; ++t) {
        a.step(whole, t);
        b.step(parts, t);
        EXPECT_EQ(a.values(), b.values()) << one["name"] << " " << rows << " rows, step " << t;
      }
    }
}

TEST(Apollo, MomentsAreOfTheProjectionsShapeAndTheNormIsOneNumber) {
  const json& one = golden()["cases"][0];
  const Apollo apollo = apollo_of(one);
  EXPECT_EQ(apollo.state_shape({9, 5}), (Shape{9, 3}));
  EXPECT_EQ(apollo.state_shape({5, 9}), (Shape{3, 9}));
  EXPECT_EQ(apollo.state_shape({6, 6}), (Shape{6, 3}));
  const auto state = Matrix(one, apollo).state();
  ASSERT_EQ(state.size(), 3u);
  EXPECT_EQ(state[0].size(), 1u);
  EXPECT_EQ(state[1].size(), 27u);
  EXPECT_EQ(apollo_of(one, MomentFormat::int8).states().size(), 5u);
}

TEST(Apollo, AStepThatIsNotTakenChangesNothing) {
  for (const json& one : golden()["cases"]) {
    const Apollo apollo = apollo_of(one);
    Matrix m(one, apollo);
    m.step(apollo, 0);
    const auto values = m.values();
    const auto state = m.state();
    m.step(apollo, 1, 0);
    EXPECT_EQ(m.values(), values);
    EXPECT_EQ(m.state(), state);
  }
}

}  // namespace
}  // namespace osprey
