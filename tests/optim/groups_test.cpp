#include "optim/groups.h"

#include <gtest/gtest.h>

#include "framework/config/dumper.h"
#include "framework/config/reader.h"
#include "kernels/core/check.h"
#include "optim/registry.h"

namespace osprey {
namespace {

std::vector<NamedShape> model() {
  std::vector<NamedShape> list = {{"embed.weight", {512, 64}}, {"embed_projection.weight", {64, 64}}};
  for (int l = 0; l < 2; ++l) {
    const std::string layer = "layers." + std::to_string(l) + ".";
    list.push_back({layer + "norm1.weight", {1}});
    for (const char* name : {"attn.q", "attn.k", "attn.v", "attn.o"})
      list.push_back({layer + name + ".weight", {64, 64}});
    list.push_back({layer + "attn.q_norm.weight", {16}});
    list.push_back({layer + "mlp.up.weight", {176, 64}});
    list.push_back({layer + "mlp.down.weight", {64, 176}});
  }
  list.push_back({"norm.weight", {1}});
  list.push_back({"head.weight", {512, 64}});
  return list;
}

OptimizerGroupSpec group(const char* match, OptimizerGroupSpec::Kind kind) {
  OptimizerGroupSpec g;
  g.match = match;
  g.kind = kind;
  g.learning_rate = 1e-3;
  return g;
}
constexpr auto adamw = OptimizerGroupSpec::Kind::adamw, muon = OptimizerGroupSpec::Kind::muon;

std::string error_of(const std::vector<OptimizerGroupSpec>& groups) {
  try {
    assign_groups(groups, model());
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(Groups, TheFirstMatchWins) {
  const std::vector<OptimizerGroupSpec> groups = {group("*norm*", adamw),
                                                  group("*.{attn,mlp}.*.weight", muon), group("*", adamw)};
  const std::vector<NamedShape> parameters = model();
  const GroupAssignment a = assign_groups(groups, parameters);
  for (size_t i = 0; i < parameters.size(); ++i) {
    const std::string& name = parameters[i].name;
    const bool norm = name.find("norm") != std::string::npos;
    const bool hidden = name.find("attn") != std::string::npos || name.find("mlp") != std::string::npos;
    EXPECT_EQ(a.group[i], norm ? 0 : hidden ? 1 : 2) << name;
  }
  EXPECT_TRUE(a.warnings.empty());
}

TEST(Groups, LearntStepsThatAreDecayedAreWorthAWord) {
  const std::vector<NamedShape> parameters = {{"layers.0.attn.q.weight", {8, 8}},
                                              {"layers.0.attn.q.weight_step", {8}},
                                              {"layers.0.attn.q.input_step", {1}}};
  std::vector<OptimizerGroupSpec> groups = {group("*_step", adamw), group("*.weight", muon)};
  const GroupAssignment decayed = assign_groups(groups, parameters);
  ASSERT_EQ(decayed.warnings.size(), 1u);
  EXPECT_NE(decayed.warnings[0].find("optim.0 takes weight_decay from learnt step sizes, "
                                     "layers.0.attn.q.weight_step, layers.0.attn.q.input_step"),
            std::string::npos);
  groups[0].weight_decay = 0;
  EXPECT_TRUE(assign_groups(groups, parameters).warnings.empty());
}

TEST(Groups, EverythingWrongIsListedAtOnce) {
  const std::string text = error_of({group("layer.*.attn.q.weight", muon), group("*.attn.*", muon),
                                     group("*.attn.q.weight", adamw), group("*.{mlp", adamw)});
  EXPECT_NE(text.find("optim.0: \"layer.*.attn.q.weight\" matches no parameter"), std::string::npos) << text;
  EXPECT_NE(
      text.find("optim.1: muon orthogonalises matrices and cannot train layers.0.attn.q_norm.weight (16), "
                "layers.1.attn.q_norm.weight (16); add an adamw entry for them before this one"),
      std::string::npos)
      << text;
  EXPECT_NE(
      text.find("optim.2: all 2 parameters that \"*.attn.q.weight\" matches are taken by earlier entries"),
      std::string::npos)
      << text;
  EXPECT_NE(text.find("optim.3: [pattern] '*.{mlp' has a { without its }"), std::string::npos) << text;
  EXPECT_NE(text.find("no entry matches embed.weight, embed_projection.weight, "), std::string::npos) << text;
}

TEST(Groups, ParametersThatNobodyTakesAreNamed) {
  EXPECT_EQ(error_of({group("*.{attn,mlp,norm1}*", adamw), group("{embed,head}*", adamw)}),
            "[optim] no entry matches norm.weight; end the list with match: \"*\"");
  EXPECT_NE(error_of({}).find("the list is empty"), std::string::npos);
}

TEST(Groups, ANearMissGetsASuggestion) {
  EXPECT_NE(error_of({group("embed.wieght", adamw), group("*", adamw)}).find("did you mean embed.weight?"),
            std::string::npos);
}

TEST(Groups, MuonOnTheEmbeddingIsAllowedAndSaid) {
  const GroupAssignment a = assign_groups(std::vector{group("*norm*", adamw), group("*", muon)}, model());
  ASSERT_EQ(a.warnings.size(), 2u);
  EXPECT_NE(a.warnings[0].find("embed.weight"), std::string::npos);
}

TEST(OptimizerGroups, GiveEachParameterOfAStoreItsOptimizer) {
  ParamStore store;
  for (const NamedShape& p : model()) store.add(p.name, -1, p.shape, {});
  const std::vector<OptimizerGroupSpec> groups = {group("*norm*", adamw),
                                                  group("*.{attn,mlp}.*.weight", muon), group("*", adamw)};
  const OptimizerGroups optimizers(groups, store);
  EXPECT_STREQ(optimizers.of(store.at("layers.1.mlp.up.weight")).kind(), "muon");
  EXPECT_STREQ(optimizers.of(store.at("embed.weight")).kind(), "adamw");
  EXPECT_NE(&optimizers.of(store.at("embed.weight")), &optimizers.of(store.at("norm.weight")));
  EXPECT_EQ(&optimizers.of(store.at("embed.weight")), &optimizers.of(store.at("head.weight")));
  EXPECT_THROW(optimizers.of(store.add("late", -1, {4}, {})), Error);
}

TEST(OptimizerGroupSpec, ReadsDumpsAndRefuses) {
  const auto read = [](const char* text) { return read_spec<OptimizerGroupSpec>(text, "r.yaml"); };
  const OptimizerGroupSpec g = read(
      "{ match: \"*.mlp.*\", kind: muon, learning_rate: 5.0e-4, newton_schulz: keller, ns_steps: 6, scale: "
      "spectral }");
  EXPECT_EQ(g.ns_steps, 6);
  EXPECT_EQ(g.scale, MuonScale::spectral);
  EXPECT_EQ(dump_spec(read(dump_spec(g).c_str())), dump_spec(g));
  EXPECT_THROW(read("{ kind: adamw }"), Error);                                   // no learning rate
  EXPECT_THROW(read("{ kind: adamw, learning_rate: 1, momentum: 0.9 }"), Error);  // muon's key
  EXPECT_THROW(read("{ kind: muon, learning_rate: 1, ns_steps: 4 }"), Error);     // polar_express
  EXPECT_THROW(read("{ kind: adamw, learning_rate: 1, betas: [0.9] }"), Error);
  EXPECT_THROW(read("{ kind: adamw, learning_rate: 1, betas: [0.9, 1.0] }"), Error);
  EXPECT_THROW(read("{ kind: muon, learning_rate: 1, momentum: 1.0 }"), Error);
  EXPECT_THROW(read("{ kind: adam, learning_rate: 1 }"), Error);
}

TEST(Registry, BuildsWhatTheEntrySays) {
  const auto a = make_optimizer(group("*", adamw)), m = make_optimizer(group("*", muon));
  EXPECT_STREQ(a->kind(), "adamw");
  EXPECT_EQ(a->granularity(), ShardGranularity::element);
  EXPECT_EQ(a->states().size(), 2u);
  EXPECT_STREQ(m->kind(), "muon");
  EXPECT_EQ(m->granularity(), ShardGranularity::matrix);
  EXPECT_EQ(m->states().size(), 1u);
  EXPECT_EQ(m->learning_rate(), 1e-3);
}

}  // namespace
}  // namespace osprey
