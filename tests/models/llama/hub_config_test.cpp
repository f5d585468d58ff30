#include "models/llama/hub_config.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/refusal.h"

namespace osprey {
namespace {

using nlohmann::json;
using test::refusal;

ModelSpec read(const char* type, const json& changes) {
  json config = {{"model_type", type},
                 {"num_hidden_layers", 4},
                 {"hidden_size", 32},
                 {"num_attention_heads", 4},
                 {"intermediate_size", 48},
                 {"vocab_size", 64},
                 {"max_position_embeddings", 4096}};
  if (changes.is_object()) config.update(changes);
  return read_llama_config(HubConfig("config.json", json::parse(config.dump())));  // as a file has it
}

std::string refused(const char* type, const json& changes) {
  return refusal([&] { read(type, changes); });
}

const json llama3 = {{"factor", 8.0},
                     {"low_freq_factor", 1.0},
                     {"high_freq_factor", 4.0},
                     {"original_max_position_embeddings", 8192}};

json with(json object, const char* key, const json& value) {
  object[key] = value;
  return object;
}

TEST(LlamaConfig, RopeScalingHasItsOldAndItsNewKeys) {
  const RopeScaling wanted{
      .kind = RopeScaling::Kind::llama3, .factor = 8, .original_len = 8192, .slow = 1, .fast = 4};
  for (const char* type : {"type", "rope_type"})
    for (const char* holder : {"rope_scaling", "rope_parameters"}) {
      const ModelSpec s = read("llama", {{holder, with(llama3, type, "llama3")}, {"rope_theta", 5e5}});
      ASSERT_TRUE(s.rope_scaling) << type << " " << holder;
      EXPECT_EQ(s.rope_scaling->scaling(), wanted);
      EXPECT_EQ(s.rope_theta, 5e5);
    }
  // Version 5 keeps theta there, too.
  EXPECT_EQ(read("llama", {{"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 7e5}}}}).rope_theta,
            7e5);
  EXPECT_FALSE(read("llama", {{"rope_scaling", {{"rope_type", "default"}}}}).rope_scaling);
  EXPECT_FALSE(read("llama", {{"rope_scaling", nullptr}}).rope_scaling);
}

TEST(LlamaConfig, YarnTakesItsLengthFromTheModelWhereItSaysNone) {
  const ModelSpec s = read("qwen2", {{"rope_scaling", {{"type", "yarn"}, {"factor", 4.0}}}});
  EXPECT_EQ(s.rope_scaling->original_len, 4096);
  EXPECT_NEAR(s.rope_scaling->magnitude(), 0.1 * std::log(4.0) + 1, 1e-12);
}

TEST(LlamaConfig, RopeThatIsNotComputedIsRefusedByItsKey) {
  const auto rope = [&](const json& value) { return refused("llama", {{"rope_scaling", value}}); };
  EXPECT_NE(rope({{"rope_type", "dynamic"}, {"factor", 2.0}}).find("dynamic"), std::string::npos);
  EXPECT_NE(rope({{"rope_type", "longrope"}, {"factor", 2.0}}).find("longrope"), std::string::npos);
  EXPECT_NE(rope({{"rope_type", "linear"}}).find("factor"), std::string::npos);
  EXPECT_NE(rope({{"rope_type", "llama3"}, {"factor", 2.0}}).find("low_freq_factor"), std::string::npos);
  EXPECT_NE(rope({{"rope_type", "yarn"}, {"factor", 2.0}, {"mscale", 1.0}}).find("mscale"),
            std::string::npos);
  EXPECT_NE(rope({{"rope_type", "yarn"}, {"factor", 2.0}, {"truncate", false}}).find("truncate"),
            std::string::npos);
  EXPECT_NE(rope({{"full_attention", {{"rope_type", "default"}}}}).find("by layer type"), std::string::npos);
  EXPECT_NE(rope(3).find("must be an object"), std::string::npos);
  EXPECT_NE(refused("llama", {{"rope_scaling", with(llama3, "type", "llama3")},
                              {"rope_parameters", {{"rope_type", "default"}}}})
                .find("both"),
            std::string::npos);
  EXPECT_NE(
      refused("llama", {{"rope_parameters", {{"partial_rotary_factor", 0.5}}}}).find("partial_rotary_factor"),
      std::string::npos);
}

TEST(LlamaConfig, BiasesAreThoseOfTheFamily) {
  EXPECT_FALSE(read("llama", {}).qkv_bias);
  const ModelSpec llama = read("llama", {{"attention_bias", true}, {"mlp_bias", true}});
  EXPECT_TRUE(llama.qkv_bias && llama.output_bias && llama.mlp_bias);
  const ModelSpec qwen2 = read("qwen2", {});
  EXPECT_TRUE(qwen2.qkv_bias && !qwen2.output_bias && !qwen2.qk_norm);
  const ModelSpec qwen3 = read("qwen3", {{"attention_bias", true}});
  EXPECT_TRUE(qwen3.qkv_bias && qwen3.output_bias && qwen3.qk_norm && !qwen3.mlp_bias);
  EXPECT_EQ(read("qwen3", {}).head_dim(), 128);  // what transformers takes where the key is missing
  EXPECT_NE(refused("mistral", {{"attention_bias", true}}).find("mistral"), std::string::npos);
  EXPECT_NE(refused("qwen3", {{"mlp_bias", true}}).find("mlp_bias"), std::string::npos);
}

TEST(LlamaConfig, WindowsAreOfAllLayersOrOfSome) {
  const auto windows = [](const ModelSpec& s) {
    std::vector<int64_t> all;
    for (int64_t l = 0; l < s.layers; ++l) all.push_back(s.attention.window_of(l));
    return all;
  };
  using Windows = std::vector<int64_t>;
  EXPECT_EQ(windows(read("mistral", {{"sliding_window", 5}})), (Windows{5, 5, 5, 5}));
  EXPECT_EQ(windows(read("mistral", {{"sliding_window", nullptr}})), (Windows{0, 0, 0, 0}));
  EXPECT_EQ(windows(read("mistral", {})), (Windows{4096, 4096, 4096, 4096}));
  const json qwen = {{"use_sliding_window", true}, {"sliding_window", 5}};
  EXPECT_EQ(windows(read("qwen2", with(qwen, "max_window_layers", 0))), (Windows{5, 5, 5, 5}));
  EXPECT_EQ(windows(read("qwen2", with(qwen, "max_window_layers", 3))), (Windows{0, 0, 0, 5}));
  EXPECT_EQ(windows(read("qwen2", with(qwen, "max_window_layers", 28))), (Windows{0, 0, 0, 0}));
  EXPECT_EQ(windows(read("qwen2", {{"sliding_window", 5}, {"max_window_layers", 0}})), (Windows{0, 0, 0, 0}));
  const json types = {"sliding_attention", "full_attention", "sliding_attention", "full_attention"};
  EXPECT_EQ(windows(read("qwen3", with(qwen, "layer_types", types))), (Windows{5, 0, 5, 0}));
  EXPECT_NE(refused("qwen2", qwen).find("max_window_layers"), std::string::npos);
  EXPECT_NE(refused("qwen3", {{"layer_types", types}}).find("no sliding_window"), std::string::npos);
  EXPECT_NE(refused("qwen3", with(qwen, "layer_types", {"full_attention"})).find("4 layers"),
            std::string::npos);
  EXPECT_NE(
      refused("qwen3", with(qwen, "layer_types", {"full_attention", "full_attention", "linear", "linear"}))
          .find("linear"),
      std::string::npos);
}

}  // namespace
}  // namespace osprey
