#include "framework/quant/scheme.h"

#include <gtest/gtest.h>

#include "framework/config/dumper.h"
#include "framework/config/reader.h"
#include "tests/support/refusal.h"

using namespace osprey;
using namespace osprey::test;
using Preset = QuantGroupSpec::Preset;
using Kind = kernels::Rounding::Kind;

namespace {

ParamStore& add_layers(ParamStore& params, int64_t out, int64_t in) {
  params.add("embed.weight", -1, {96, in}, {});
  for (int l = 0; l < 2; ++l) {
    params.add(fmt::format("layers.{}.norm1.weight", l), l, {in}, {});
    params.add(fmt::format("layers.{}.attn.q.weight", l), l, {out, in}, {});
    params.add(fmt::format("layers.{}.mlp.down.weight", l), l, {out, in}, {});
  }
  return params;
}

QuantGroupSpec read(const std::string& yaml) { return read_spec<QuantGroupSpec>(yaml, "quant.yaml"); }

std::string problem(const std::vector<QuantGroupSpec>& groups, int64_t out = 64, int64_t in = 64) {
  ParamStore params;
  return refusal([&] { QuantSchemes schemes(groups, add_layers(params, out, in), 1); });
}

}  // namespace

TEST(QuantScheme, PresetsSetWhatFollowsAndMayBeChanged) {
  const QuantGroupSpec plain = read("preset: quartet");
  EXPECT_EQ(plain.weights->format, "mxfp4");
  EXPECT_EQ(plain.weights->scale, ScaleRule::mse);
  EXPECT_EQ(plain.gradients->rounding, Kind::stochastic);
  EXPECT_EQ(plain.gradients->scale, ScaleRule::rceil);
  EXPECT_EQ(plain.rotation, 32);
  const QuantGroupSpec changed = read(
      "{preset: quartet, rotation: 64, activations: {format: mxint8, scale: even}, gradients: null, backward_rotation: 0}");
  EXPECT_EQ(changed.rotation, 64);
  EXPECT_EQ(changed.activations->format, "mxint8");
  EXPECT_EQ(changed.weights->format, "mxfp4");
  EXPECT_FALSE(changed.gradients);
}

TEST(QuantScheme, ADumpedGroupReadsBackTheSame) {
  for (const char* yaml :
       {"preset: quartet", "{preset: quartet, gradients: null, backward_rotation: 0}",
        "{preset: weight_only, first_step: 7}", "{preset: nvfp4, rotation: 16, end_step: 5}",
        "{preset: mxint8, activations: null, gradients: null}",
        "{weights: {format: int4_g64}, activations: {format: int8_row}}"}) {
    const std::string dumped = dump_spec(read(yaml));
    EXPECT_EQ(dump_spec(read(dumped)), dumped) << yaml;
  }
}

TEST(QuantScheme, RefusesWhatContradictsItself) {
  const auto words = [](const char* yaml) { return refusal([&] { read(yaml); }); };
  EXPECT_NE(words("{}").find("neither weights nor activations"), std::string::npos);
  EXPECT_NE(words("{weights: {format: mxfp5}}").find("'mxfp5' is no format; there are mxfp4"),
            std::string::npos);
  EXPECT_NE(words("{weights: {format: mxint8, scale: mse}}").find("mse is for mxfp4"), std::string::npos);
  EXPECT_NE(words("{weights: {format: mxfp4, scale: four_over_six}}").find("for nvfp4"), std::string::npos);
  EXPECT_NE(
      words("{weights: {format: mxfp4, rounding: stochastic}}").find("weights.rounding: rounds to nearest"),
      std::string::npos);
  EXPECT_NE(words("{preset: quartet, rotation: 48}").find("must be 0, 16, 32, 64 or 128"), std::string::npos);
  EXPECT_NE(words("{preset: weight_only, rotation: 32}").find("both operands"), std::string::npos);
  EXPECT_NE(words("{preset: weight_only, gradients: {format: mxfp4}}").find("gradients"), std::string::npos);
  EXPECT_NE(words("{preset: quartet, first_step: 5, end_step: 5}").find("after first_step"),
            std::string::npos);
}

TEST(QuantScheme, NamesEveryParameterAndWidthThatDoesNotFit) {
  QuantGroupSpec all = read("preset: quartet");
  all.match = "*";
  EXPECT_NE(problem({all}).find("embed.weight is no linear layer of a block"), std::string::npos);
  const QuantGroupSpec quartet = read("preset: quartet");
  EXPECT_NE(problem({quartet}, 64, 80).find("layers.0.attn.q.weight"), std::string::npos);
  EXPECT_NE(problem({quartet}, 64, 80).find("its inputs is 80 wide"), std::string::npos);
  EXPECT_NE(problem({quartet}, 80, 64).find("its outputs is 80 wide"), std::string::npos);
  EXPECT_NE(problem({read("{preset: qat_mxfp4_w4a4, rotation: 128}")}, 64, 192)
                .find("192 inputs, which groups of 128 do not divide"),
            std::string::npos);
}

TEST(QuantScheme, FirstMatchWinsAndIdlePatternsAreNamed) {
  QuantGroupSpec down = read("preset: weight_only"), rest = read("preset: quartet"), none = rest, late = down;
  down.match = "layers.*.mlp.down.weight";
  none.match = "layers.7.*";
  late.match = "layers.0.mlp.down.weight";
  ParamStore params;
  const std::vector<QuantGroupSpec> groups = {down, rest};
  const QuantSchemes schemes(groups, add_layers(params, 64, 64), 1);
  schemes.activate(0);
  EXPECT_EQ(params.at("layers.1.mlp.down.weight").scheme->group, 0);
  EXPECT_EQ(params.at("layers.1.attn.q.weight").scheme->group, 1);
  EXPECT_EQ(params.at("embed.weight").scheme, nullptr);
  EXPECT_NE(problem({rest, none}).find("'layers.7.*' matches no parameter"), std::string::npos);
  EXPECT_NE(problem({rest, late}).find("'layers.0.mlp.down.weight' comes too late"), std::string::npos);
}

TEST(QuantScheme, GroupsBeginAndEnd) {
  ParamStore params;
  const std::vector<QuantGroupSpec> groups = {read("{preset: quartet, first_step: 3, end_step: 8}")};
  const QuantSchemes schemes(groups, add_layers(params, 64, 64), 1);
  const auto active = [&](int64_t step) {
    schemes.activate(step);
    return params.at("layers.0.attn.q.weight").scheme != nullptr;
  };
  EXPECT_FALSE(active(0));
  EXPECT_FALSE(active(2));
  EXPECT_TRUE(active(3));
  EXPECT_TRUE(active(7));
  EXPECT_FALSE(active(8));
  EXPECT_EQ(schemes.changes(), (std::vector<int64_t>{0, 3, 8}));
}
