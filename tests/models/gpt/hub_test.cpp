// GPT-2 and OPT directories: what is refused, and the layouts that differ from ours.

#include <gtest/gtest.h>

#include <fstream>

#include "framework/files/json.h"
#include "models/hf/family.h"
#include "models/hf/hub_model.h"
#include "tests/support/fuzz.h"
#include "tests/support/paths.h"
#include "tests/support/refusal.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::refusal;
using test::TempDir;

fs::path golden(const char* name) { return fs::path(test::source_dir()) / "tests/models/hf/golden" / name; }

json config_of(const char* name) { return read_json(golden(name) / "config.json", 1 << 16, 8); }

/// What opening a copy of the golden directory with this key says.
std::string with(const char* name, const char* key, const json& value) {
  TempDir dir;
  fs::copy(golden(name), dir / "m");
  json config = config_of(name);
  config[key] = value;
  std::ofstream(dir / "m" / "config.json") << config;
  return refusal([&] { HubModel hub(dir / "m"); });
}

TEST(GptHub, WhatOspreyDoesNotComputeIsRefusedByItsKey) {
  const std::vector<std::tuple<const char*, const char*, json>> bad = {
      {"gpt2", "activation_function", "gelu"},
      {"gpt2", "scale_attn_weights", false},
      {"gpt2", "scale_attn_by_inverse_layer_idx", true},
      {"gpt2", "add_cross_attention", true},
      {"gpt2", "n_layer", 5000},
      {"gpt2", "n_head", 3},
      {"opt", "activation_function", "gelu"},
      {"opt", "do_layer_norm_before", false},
      {"opt", "word_embed_proj_dim", 8},
      {"opt", "_remove_final_layer_norm", true},
      {"opt", "enable_bias", false},
      {"opt", "layer_norm_elementwise_affine", false},
      {"opt", "ffn_dim", "24"}};
  for (const auto& [name, key, value] : bad) {
    const std::string message = with(name, key, value);
    const char* word = std::string(key) == "n_head" ? "heads" : key;
    EXPECT_NE(message.find(word), std::string::npos) << key << ": " << message;
  }
  EXPECT_NE(
      with("gpt2", "n_positions", 33).find("transformer.wpe.weight is (32, 16), the config says (33, 16)"),
      std::string::npos);
  EXPECT_EQ(with("gpt2", "n_inner", 64), "accepted");
}

TEST(GptHub, MutatedConfigsAreReadOrRefusedButNeverCrashFuzz) {
  TempDir dir;
  fs::copy(golden("gpt2"), dir / "m");
  const auto count = test::fuzz({config_of("gpt2").dump(1), config_of("opt").dump(1)},
                                {"null", "-1", "1e400", "true", "[]", "{}", "0", ",", "\"opt\""},
                                [&](const std::string& input) {
                                  std::ofstream(dir / "m" / "config.json", std::ios::binary) << input;
                                  HubModel hub(dir / "m");
                                });
  EXPECT_GT(count.refused, 100);
}

TEST(GptHub, ConvolutionsAreTransposedAndFusedOnesAreCut) {
  const HubModel hub(golden("gpt2"));
  ParamStore params;
  make_model(hub.spec(), 16)->declare(params);
  params.materialize({}, DType::f32, ParamStore::Gradients::off);
  hub.load({}, params);
  std::vector<float> fused(16 * 48), bias(48);
  hub.tensors().read("transformer.h.1.attn.c_attn.weight", make_tensor(fused.data(), {16, 48}, DType::f32));
  hub.tensors().read("transformer.h.1.attn.c_attn.bias", make_tensor(bias.data(), {48}, DType::f32));
  const char* names[] = {"q", "k", "v"};
  const ReadParameter read = read_values(hub);
  for (size_t part = 0; part < 3; ++part) {
    const std::string name = std::string("layers.1.attn.") + names[part];
    const float *w = params.at(name + ".weight").value.as<float>(),
                *b = params.at(name + ".bias").value.as<float>();
    for (size_t out = 0; out < 16; ++out) {
      EXPECT_EQ(b[out], bias[part * 16 + out]);
      for (size_t in = 0; in < 16; ++in) ASSERT_EQ(w[out * 16 + in], fused[in * 48 + part * 16 + out]);
    }
    // A few elements in the middle, as exports read them.
    float some[20];
    read(name + ".weight", 10, make_tensor(some, {20}, DType::f32));
    for (size_t i = 0; i < 20; ++i) EXPECT_EQ(some[i], w[10 + i]);
  }
}

TEST(GptHub, OldExportsWithoutPrefixAndWithMaskBuffersAreRead) {
  const HubModel hub(golden("gpt2"));
  TempDir dir;
  HubLayout layout = hub_layout(hub.spec(), hub.context());
  for (HubTensor& t : layout.tensors) t.name = t.name.substr(std::string("transformer.").size());
  layout.tensors.push_back({.name = "h.0.attn.bias", .shape = {16}, .a = "layers.0.attn.q.bias"});
  write_hub_model(Queue{}, dir.path(), layout, read_values(hub), StoredType::f32, int64_t{1} << 30);
  write_hub_texts(dir.path(), layout, "");
  EXPECT_EQ(refusal([&] { HubModel again(dir.path()); }), "accepted");
}

TEST(GptHub, TransposedMatricesAreNotPackedAndTheMessageSaysWhatCanBeDone) {
  const HubModel hub(golden("gpt2"));
  QuantizationConfig config;
  config.groups.emplace_back().weights = QuantOperandSpec{.format = "int8_row"};
  const std::string said = refusal([&] { hub_layout(hub.spec(), hub.context(), &config); });
  EXPECT_NE(said.find("transposed or joined with others"), std::string::npos) << said;
  EXPECT_NE(said.find("osprey eval --quantize instead"), std::string::npos) << said;
}

TEST(GptHub, TextsLongerThanTheTableOfPositionsAreRefused) {
  const HubModel hub(golden("gpt2"));
  const auto model = make_model(hub.spec(), 16);
  ParamStore params;
  model->declare(params);
  params.materialize({}, DType::f32, ParamStore::Gradients::off);
  Arena kept("cache", {}, int64_t{1} << 20);
  EXPECT_NE(refusal([&] { model->make_cache(kept, 1, 33); }).find("33 tokens are more than the 32 positions"),
            std::string::npos);
}

}  // namespace
}  // namespace osprey
