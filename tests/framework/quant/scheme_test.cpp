#include "framework/quant/scheme.h"

#include <gtest/gtest.h>

#include "framework/config/dumper.h"
#include "framework/config/reader.h"
#include "framework/parallel/communicator.h"
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
        "{weights: {format: int4_g64}, activations: {format: int8_row}}", "{preset: down_8bit_input}",
        "{preset: down_8bit_input, match: layers.0.mlp.down.weight}",
        "{preset: adahop, calibration_steps: 7, outlier_ratio: 2.5, outlier_rows: 3}",
        "{preset: adahop, rotate: always}",
        "{preset: quartet, first_tokens: 9, end_tokens: 99, anneal_steps: 3, anneal_order: last_layers}"}) {
    const std::string dumped = dump_spec(read(yaml));
    EXPECT_EQ(dump_spec(read(dumped)), dumped) << yaml;
  }
}

TEST(QuantScheme, APresetForTheInputOfDownIsOneLine) {
  const QuantGroupSpec down = read("preset: down_8bit_input");
  EXPECT_EQ(down.match, "layers.*.mlp.down.weight");
  EXPECT_EQ(down.weights->format, "mxfp4");
  EXPECT_EQ(down.activations->format, "mxint8");
  EXPECT_FALSE(down.gradients);
  EXPECT_EQ(read("{match: layers.1.mlp.down.weight, preset: down_8bit_input}").match,
            "layers.1.mlp.down.weight");
  EXPECT_EQ(read("preset: quartet").match, QuantGroupSpec().match);
}

TEST(QuantScheme, RefusesWhatContradictsItself) {
  const auto words = [](const char* yaml) { return refusal([&] { read(yaml); }); };
  EXPECT_NE(words("{}").find("neither weights nor activations"), std::string::npos);
  EXPECT_NE(words("{weights: {format: mxfp5}}").find("'mxfp5' is no format; there are mxfp4"),
            std::string::npos);
  EXPECT_NE(words("{weights: {format: mxint8, scale: mse}}").find("mse is for mxfp4"), std::string::npos);
  EXPECT_NE(
      words("{weights: {format: mxfp4, scale: stats}}").find("weights.scale: stats is for formats with fp32"),
      std::string::npos);
  EXPECT_EQ(
      words("{weights: {format: int4_row, scale: stats}, activations: {format: int8_g64, scale: stats}}"),
      "accepted");
  EXPECT_NE(words("{weights: {format: mxfp4, scale: four_over_six}}").find("for nvfp4"), std::string::npos);
  for (const char* format : {"nvfp4", "nvint4", "int8_row", "int4_g32"})
    for (const char* rule : {"floor", "ceil"})
      EXPECT_NE(
          words(fmt::format("{{weights: {{format: {}, scale: {}}}}}", format, rule).c_str())
              .find("weights.scale: floor and ceil are for scales that are powers of two, mx*; take even"),
          std::string::npos)
          << format << rule;
  EXPECT_NE(words("{weights: {format: int8_row, scale: rceil}}").find("rceil is for mx*, nvfp4 and nvint4"),
            std::string::npos);
  EXPECT_EQ(words("{weights: {format: nvint4, scale: rceil}}"), "accepted");
  EXPECT_NE(
      words("{weights: {format: mxfp4, rounding: stochastic}}").find("weights.rounding: rounds to nearest"),
      std::string::npos);
  EXPECT_NE(words("{preset: quartet, rotation: 48}").find("must be 0, 16, 32, 64 or 128"), std::string::npos);
  EXPECT_NE(words("{preset: weight_only, rotation: 32}").find("both operands"), std::string::npos);
  EXPECT_NE(words("{preset: weight_only, gradients: {format: mxfp4}}").find("gradients"), std::string::npos);
  EXPECT_NE(words("{preset: quartet, first_step: 5, end_step: 5}").find("after first_step"),
            std::string::npos);
  EXPECT_NE(words("{preset: quartet, first_tokens: 5, end_tokens: 5}").find("end_tokens: must be more than"),
            std::string::npos);
  for (const char* both : {"first_step: 5, first_tokens: 5", "first_tokens: 5, end_step: 9",
                           "first_step: 5, end_tokens: 9", "end_step: 5, end_tokens: 9"})
    EXPECT_NE(words(fmt::format("{{preset: quartet, {}}}", both).c_str()).find("give one kind"),
              std::string::npos)
        << both;
  EXPECT_NE(words("{preset: weight_only, rotate: measured}").find("rotate: measures which products"),
            std::string::npos);
  EXPECT_NE(words("{preset: quartet, calibration_steps: 3}").find("rotate is measured"), std::string::npos);
  EXPECT_NE(words("{preset: adahop, outlier_ratio: 1}").find("outlier_ratio must be"), std::string::npos);
  EXPECT_NE(words("{preset: quartet, outlier_rows: 8}").find("rotate is measured"), std::string::npos);
  EXPECT_NE(words("{preset: adahop, outlier_rows: 257}").find("outlier_rows must be"), std::string::npos);
  EXPECT_NE(words("{preset: quartet, rotate: measured, outlier_rows: 8}")
                .find("outlier_rows: needs gradient_mask: straight_through"),
            std::string::npos);
  EXPECT_NE(words("{preset: lsq, gradients: {format: mxfp4}, backward_rotation: 32, rotate: measured, "
                  "gradient_mask: straight_through, outlier_rows: 8}")
                .find("outlier_rows: must be 0 beside the scale lsq"),
            std::string::npos);
  EXPECT_EQ(words("{preset: adahop, outlier_rows: 256}"), "accepted");
  EXPECT_NE(words("{preset: quartet, anneal_steps: -1}").find("anneal_steps must be"), std::string::npos);
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

TEST(QuantScheme, TokensBecomeTheFirstStepThatBeginsAtOrAfterThem) {
  const auto span = [](const char* yaml, int64_t step_tokens) { return span_of(read(yaml), step_tokens); };
  EXPECT_EQ(span("{preset: quartet, first_tokens: 0}", 100).begin, 0);
  EXPECT_EQ(span("{preset: quartet, first_tokens: 1}", 100).begin, 1);
  EXPECT_EQ(span("{preset: quartet, first_tokens: 300}", 100).begin, 3);
  EXPECT_EQ(span("{preset: quartet, first_tokens: 301, end_tokens: 1e15}", 100).begin, 4);
  EXPECT_EQ(span("{preset: quartet, end_tokens: 1e15}", 1).end, 1'000'000'000'000'000);
  EXPECT_EQ(span("preset: quartet", 0).end, INT64_MAX);
  EXPECT_NE(refusal([&] { span("{preset: quartet, first_tokens: 1}", 0); }).find("are not known"),
            std::string::npos);
}

TEST(QuantScheme, LayersJoinOneAfterAnotherInOrderOfDepth) {
  for (const char* order : {"first_layers", "last_layers"}) {
    ParamStore params;
    for (int l = 0; l < 4; ++l) params.add(fmt::format("layers.{}.attn.q.weight", l), l, {64, 64}, {});
    const std::vector<QuantGroupSpec> groups = {read(fmt::format(
        "{{preset: quartet, first_step: 3, anneal_steps: 10, end_step: 20, anneal_order: {}}}", order))};
    const QuantSchemes schemes(groups, params, 1);
    const bool reversed = std::string(order) == "last_layers";
    const int64_t joins[] = {3, 5, 8, 10};  // 3 + 10 i / 4
    for (int64_t step = 0; step < 22; ++step) {
      schemes.activate(step);
      for (int l = 0; l < 4; ++l)
        EXPECT_EQ(params.at(fmt::format("layers.{}.attn.q.weight", l)).scheme != nullptr,
                  step >= joins[reversed ? 3 - l : l] && step < 20)
            << order << " layer " << l << " step " << step;
    }
    EXPECT_EQ(schemes.changes(), (std::vector<int64_t>{0, 3, 5, 8, 10, 20}));
  }
}

TEST(QuantScheme, LayersThatAnotherGroupTookAreNotCounted) {
  ParamStore params;
  QuantGroupSpec first = read("preset: weight_only");
  first.match = "layers.0.{attn.q,mlp.down}.weight";
  const std::vector<QuantGroupSpec> groups = {first, read("{preset: quartet, anneal_steps: 8}")};
  const QuantSchemes schemes(groups, add_layers(params, 64, 64), 1);
  schemes.activate(0);
  EXPECT_NE(params.at("layers.1.attn.q.weight").scheme, nullptr);
  EXPECT_EQ(schemes.changes(), (std::vector<int64_t>{0}));
}

TEST(QuantScheme, RefusesGroupsThatEndBeforeTheyHaveBegun) {
  const auto words = [](const char* yaml) {
    ParamStore params;
    const std::vector<QuantGroupSpec> groups = {read(yaml)};
    return refusal([&] { QuantSchemes schemes(groups, add_layers(params, 64, 64), 1, 100); });
  };
  EXPECT_NE(words("{preset: quartet, first_tokens: 201, end_tokens: 300}")
                .find("begins in step 3 and ends in step 3"),
            std::string::npos);
  EXPECT_NE(words("{preset: quartet, first_step: 3, end_step: 8, anneal_steps: 6}")
                .find("lasts 5 steps, fewer than its anneal_steps 6"),
            std::string::npos);
  EXPECT_NE(words("{preset: adahop, first_step: 3, end_step: 8, calibration_steps: 5}")
                .find("lasts 5 steps, not more than its calibration_steps 5"),
            std::string::npos);
  EXPECT_NE(words("{preset: adahop, first_step: 3, end_step: 8, calibration_steps: 3, anneal_steps: 3}")
                .find("lasts 2 steps, fewer than its anneal_steps 3"),
            std::string::npos);
  EXPECT_EQ(words("{preset: quartet, first_step: 3, end_step: 8, anneal_steps: 5}"), "accepted");
}

TEST(QuantScheme, TheTimelineSaysWhatBeginsWhen) {
  ParamStore params;
  const std::vector<QuantGroupSpec> groups = {
      read("{preset: quartet, match: 'layers.*.attn.q.weight', first_tokens: 201, anneal_steps: 4}"),
      read("{preset: quartet, end_step: 8}")};
  const QuantSchemes schemes(groups, add_layers(params, 64, 64), 1, 100);
  EXPECT_EQ(
      schemes.timeline(10),
      (std::vector<std::string>{
          "quant.0: 2 matrices of 2 layers are quantized from step 3 (300 tokens) on, one layer after "
          "another: layer 0 from step 3, layer 1 from step 5",
          "quant.1: 2 matrices of 2 layers are quantized from step 0 (0 tokens) on, until step 8 (800 tokens)"}));
  EXPECT_NE(schemes.timeline(3)[0].find("; the run ends before that, after step 2"), std::string::npos);
  ParamStore far_params;
  const std::vector<QuantGroupSpec> far = {read("{preset: quartet, first_step: 1e12}")};
  const QuantSchemes never(far, add_layers(far_params, 64, 64), 1, int64_t{1} << 40);
  EXPECT_NE(never.timeline(3)[0].find("from step 1000000000000 on;"), std::string::npos)
      << "without tokens that nobody can count";
  EXPECT_NE(schemes.timeline(5)[0].find("; the run ends before all of them are, after step 4"),
            std::string::npos);
}

TEST(QuantScheme, MeasuredGroupsCalibrateBeforeTheirLayersJoin) {
  ParamStore params;
  const std::vector<QuantGroupSpec> groups = {
      read("{preset: adahop, first_step: 2, calibration_steps: 3, anneal_steps: 4, end_step: 12}")};
  const QuantSchemes schemes(groups, add_layers(params, 64, 64), 1);
  EXPECT_EQ(schemes.changes(), (std::vector<int64_t>{0, 2, 5, 7, 12}));
  for (int64_t step = 0; step < 14; ++step) {
    schemes.activate(step);
    for (int l = 0; l < 2; ++l) {
      const QuantScheme* s = params.at(fmt::format("layers.{}.attn.q.weight", l)).scheme;
      EXPECT_EQ(s && s->calibrates, step >= 2 && step < 5) << step;
      EXPECT_EQ(s && !s->calibrates, step >= (l == 0 ? 5 : 7) && step < 12) << step;
    }
  }
  EXPECT_EQ(
      schemes.timeline(20)[0],
      "quant.0: 4 matrices of 2 layers are quantized from step 5 on, calibrated from step 2 on, until step 12, "
      "one layer after another: layer 0 from step 5, layer 1 from step 7");
}

TEST(QuantScheme, LearntStepsAndFreezingAreRefusedWhereTheyMeanNothing) {
  const auto words = [](const std::string& yaml) { return refusal([&] { read(yaml); }); };
  EXPECT_NE(
      words("weights: {format: mxfp4, scale: lsq}").find("lsq learns one step of a row or of the whole"),
      std::string::npos);
  EXPECT_NE(words("weights: {format: int4_g32, scale: lsq}").find("lsq learns one step of a row"),
            std::string::npos);
  EXPECT_NE(words("activations: {format: int8_row, scale: lsq}").find("rows of activations are tokens"),
            std::string::npos);
  EXPECT_NE(words("{preset: lsq, gradients: {format: int8_tensor, scale: lsq}}").find("gradients.scale"),
            std::string::npos);
  EXPECT_NE(words("{preset: lsq, rotation: 32}").find("must be 0 beside the scale lsq"), std::string::npos);
  EXPECT_NE(words("{preset: quartet, freeze: {first_step: 9}}").find("needs rotation 0"), std::string::npos);
  EXPECT_NE(words("{activations: {format: int8_row}, freeze: {}}").find("freeze"), std::string::npos);
  EXPECT_NE(words("{preset: mxint8, freeze: {boundary: 0.6}}").find("boundary"), std::string::npos);
  EXPECT_NE(words("{preset: mxint8, freeze: {first_step: 3, first_tokens: 9}}").find("give one"),
            std::string::npos);
  const std::string dumped = dump_spec(read("{preset: lsq, freeze: {first_tokens: 9, anneal_steps: 4}}"));
  EXPECT_EQ(dump_spec(read(dumped)), dumped);
}

TEST(QuantScheme, ALayerThatIsNeverTrainedIsMeasuredAllTheSame) {
  const Queue queue;
  const auto world = make_self_comm();
  const std::vector<QuantGroupSpec> groups{read("{preset: adahop, first_step: 2, calibration_steps: 4}")};
  ParamStore params, again;
  QuantSchemes schemes(groups, add_layers(params, 64, 64), 1), resumed(groups, add_layers(again, 64, 64), 1);
  schemes.materialize(queue);
  resumed.materialize(queue);
  const std::vector<LayerPatterns> state = schemes.patterns(queue, *world);
  ASSERT_EQ(state.size(), 4u);
  EXPECT_EQ(state[0].votes(), 0);
  resumed.restore(queue, 0, state, 4);
  EXPECT_EQ(resumed.patterns(queue, *world), state);
}

TEST(QuantScheme, FreezingHoldsFromItsStepToTheEndOfTheGroup) {
  ParamStore params;
  const std::vector<QuantGroupSpec> groups{
      read("{preset: mxint8, first_step: 2, end_step: 9, freeze: {first_tokens: 450, anneal_steps: 2}}")};
  const QuantSchemes schemes(groups, add_layers(params, 64, 64), 1, 100);
  const Parameter& p = params.at("layers.0.attn.q.weight");
  for (int64_t step = 0; step < 12; ++step) {
    schemes.activate(step);
    EXPECT_EQ(p.freezing != nullptr, step >= 5 && step < 9) << step;
  }
  EXPECT_EQ(schemes.changes(), (std::vector<int64_t>{0, 2, 5, 9}));
}
