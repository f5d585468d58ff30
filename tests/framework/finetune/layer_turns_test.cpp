#include "framework/finetune/layer_turns.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>

#include "tests/support/refusal.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

using test::TempDir;
using Order = FinetuneSpec::Order;

// The scores that OwLore published for Llama-2-7B (metric_cache/llama2_7b_ratio_13.txt).
const std::vector<double> llama2_7b = {.26781, .29528, .12744, .11445, .09875, .08837, .08784, .08377,
                                       .08014, .07218, .07066, .06965, .06296, .05908, .05522, .05372,
                                       .04683, .03923, .03359, .03398, .03159, .02788, .02784, .02294,
                                       .02543, .02092, .02421, .01818, .01838, .02085, .02407, .08246};

LayerTurns::Setup setup(int64_t active, std::vector<double> scores = llama2_7b) {
  return {.layers = 32,
          .active = active,
          .interval = 50,
          .order = Order::drawn,
          .scores = std::move(scores),
          .seed = 5};
}

template <class Call>
bool refuses(const Call& call, const char* text) {
  const std::string said = test::refusal(call);
  return said.find(text) != std::string::npos || (std::fprintf(stderr, "it says: %s\n", said.c_str()), false);
}

TEST(LayerTurns, LayersAreDrawnAsOftenAsWithThePublishedCode) {
  // Chances of successive sampling without replacement, from 1e5 draws of numpy's choice.
  const struct {
    int64_t active;
    double first, second, third, last, least;
  } cases[] = {{2, .234, .259, .115, .077, .018},
               {5, .521, .555, .289, .196, .046},
               {8, .722, .757, .454, .323, .079}};
  for (const auto& c : cases) {
    const LayerTurns turns(setup(c.active));
    const int64_t draws = 20000;
    std::vector<double> share(32);
    for (int64_t k = 0; k < draws; ++k)
      for (const int layer : turns.draw(k))
        share[static_cast<size_t>(layer)] += 1.0 / static_cast<double>(draws);
    const std::pair<size_t, double> expected[] = {
        {0, c.first}, {1, c.second}, {2, c.third}, {31, c.last}, {27, c.least}};
    for (const auto& [layer, p] : expected) {
      const double spread = std::sqrt(p * (1 - p) * (1.0 / 20000 + 1.0 / 100000));
      EXPECT_NEAR(share[layer], p, 4 * spread + 0.0005) << c.active << " active, layer " << layer;
    }
  }
}

TEST(LayerTurns, DrawsAreDistinctAndEveryLayerIsActiveWhenAllAre) {
  const LayerTurns five(setup(5)), all(setup(32));
  for (int64_t k = 0; k < 200; ++k) {
    const std::vector<int> some = five.draw(k);
    EXPECT_EQ(std::set<int>(some.begin(), some.end()).size(), 5u);
    EXPECT_TRUE(std::is_sorted(some.begin(), some.end()));
    for (int l = 0; l < 32; ++l) EXPECT_EQ(all.draw(k)[static_cast<size_t>(l)], l);
  }
}

TEST(LayerTurns, ALayerThatStaysKeepsItsPlace) {
  LayerTurns turns(setup(8));
  std::vector<ActiveLayer> before = turns.at(0);
  int kept = 0;
  for (int64_t step = 50; step < 5000; step += 50) {
    const std::vector<ActiveLayer> now = turns.at(step);
    for (size_t place = 0; place < now.size(); ++place) {
      const bool was = std::any_of(before.begin(), before.end(),
                                   [&](const ActiveLayer& t) { return t.layer == now[place].layer; });
      EXPECT_EQ(was, now[place] == before[place]) << step;
      EXPECT_TRUE(was || now[place].since == step);
      kept += was;
    }
    before = now;
  }
  EXPECT_GT(kept, 100);
}

TEST(LayerTurns, WhoIsActiveIsAFunctionOfTheStepAlone) {
  LayerTurns forward(setup(5)), back(setup(5));
  std::vector<std::vector<ActiveLayer>> seen;
  for (int64_t step = 0; step < 1000; step += 10) seen.push_back(forward.at(step));
  for (int64_t step = 990; step >= 0; step -= 10)
    EXPECT_EQ(back.at(step), seen[static_cast<size_t>(step / 10)]);
}

TEST(LayerTurns, ShuffledLayersEachComeOnceInACycle) {
  for (const Order order : {Order::ascending, Order::descending, Order::shuffled}) {
    LayerTurns::Setup s{.layers = 7, .active = 1, .interval = 3, .order = order, .scores = {}, .seed = 2};
    const LayerTurns turns(s);
    std::vector<std::vector<int>> cycles;
    for (int64_t cycle = 0; cycle < 3; ++cycle) {
      std::vector<int> all;
      for (int64_t k = 0; k < 7; ++k) all.push_back(turns.draw(cycle * 7 + k)[0]);
      cycles.push_back(all);
      EXPECT_EQ(std::set<int>(all.begin(), all.end()).size(), 7u);
    }
    EXPECT_EQ(cycles[0] == cycles[1], order != Order::shuffled);
    EXPECT_TRUE(order != Order::descending || cycles[0].front() == 6);
  }
}

TEST(LayerTurns, TooManyActiveLayersAreRefused) {
  EXPECT_TRUE(refuses([] { LayerTurns{setup(33)}; }, "33 layers cannot be active in a model of 32"));
  std::vector<double> scores(32);
  scores[3] = scores[4] = 1;
  EXPECT_TRUE(refuses([&] { LayerTurns{setup(3, scores)}; }, "only 2 have a score above zero"));
}

TEST(LayerScores, FilesThatAreNoneAreRefusedByName) {
  const TempDir folder;
  const std::string path = (folder.path() / "scores.json").string();
  const auto write = [&](const char* text) { std::ofstream(path) << text; };
  write(R"({"scores": [0.5, 1, 0]})");
  EXPECT_EQ(read_layer_scores(path, 3), (std::vector<double>{0.5, 1, 0}));
  EXPECT_TRUE(refuses([&] { read_layer_scores(path, 4); }, "holds scores of 3 layers, and the model has 4"));
  write(R"({"scores": [0.5, -1, 0]})");
  EXPECT_TRUE(refuses([&] { read_layer_scores(path, 3); }, "score 1 is -1"));
  write(R"([1, 2])");
  EXPECT_TRUE(refuses([&] { read_layer_scores(path, 2); }, "it has no list \"scores\""));
}

TEST(LayerTurns, StepsOfEarlierTurnsCountWhereStateIsKept) {
  LayerTurns::Setup s = setup(5);
  s.counting = LayerTurns::Setup::Counting::all_turns;
  LayerTurns turns(s);
  std::vector<int64_t> trained(32);  // steps of each layer so far, counted here
  int again = 0;
  for (int64_t step = 0; step < 20 * s.interval; ++step)
    for (const ActiveLayer& t : turns.at(step)) {
      EXPECT_EQ(step - t.since, trained[static_cast<size_t>(t.layer)])
          << "layer " << t.layer << " step " << step;
      again += step % s.interval == 0 && trained[static_cast<size_t>(t.layer)] > 0;
      ++trained[static_cast<size_t>(t.layer)];
    }
  EXPECT_GT(again, 20);
  // Asked for in another order, the same.
  LayerTurns other(s);
  const auto late = turns.at(700), early = turns.at(120);
  EXPECT_EQ(other.at(120), early);
  EXPECT_EQ(other.at(700), late);
}

}  // namespace
}  // namespace osprey
