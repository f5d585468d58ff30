#include "models/hf/hub_model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "tests/models/hf/tiny_hub.h"
#include "tests/support/fuzz.h"
#include "tests/support/refusal.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::fill;
using test::refusal;
using test::TempDir;
using test::tiny;
using test::write_hub;

TEST(HuggingFace, ANormWithOneScaleAndProjectionsBecomeAPlainLlama) {
  TempDir dir;
  ModelSpec spec = tiny();
  spec.norm = NormKind::ssnorm;
  spec.embedding_projection = true;
  ParamStore params;
  fill(spec, params);
  write_hub(spec, params, dir / "m");
  const json config = json::parse(read_file(dir / "m" / "config.json", 10000));
  EXPECT_EQ(config["architectures"][0], "LlamaForCausalLM");
  EXPECT_EQ(config["num_key_value_heads"], 2);
  EXPECT_EQ(config["eos_token_id"], 3);

  const HubModel hub(dir / "m");
  EXPECT_FALSE(hub.spec().embedding_projection);
  EXPECT_EQ(hub.spec().norm, NormKind::rmsnorm);
  EXPECT_EQ(hub.spec().head_dim(), 8);
  EXPECT_EQ(hub.context().eos_id, 3);
  EXPECT_EQ(hub.context().sequence_len, 16);
  ParamStore loaded;
  make_model(hub.spec(), 16)->declare(loaded);
  loaded.materialize({}, DType::bf16, ParamStore::Gradients::off);
  hub.load({}, loaded);
  for (const char* name : {"layers.1.norm2.weight", "norm.weight"}) {
    const Parameter& wide = loaded.at(name);
    ASSERT_EQ(wide.shape, (Shape{32}));
    for (int i = 0; i < 32; ++i)
      EXPECT_EQ(wide.value.as<bf16>()[i].bits, params.at(name).value.as<bf16>()[0].bits);
  }
  const auto same = [&](const char* name) {
    const Parameter &a = params.at(name), &b = loaded.at(name);
    return a.shape == b.shape &&
           std::memcmp(a.value.data, b.value.data, static_cast<size_t>(a.value.bytes())) == 0;
  };
  for (const char* name : {"layers.0.attn.q.weight", "layers.1.attn.k.weight", "layers.1.attn.v.weight",
                           "layers.0.attn.o.weight", "layers.0.mlp.gate.weight", "layers.0.mlp.up.weight",
                           "layers.1.mlp.down.weight"})
    EXPECT_TRUE(same(name)) << name;
  // x = E[v] P^T before the blocks; logits = W (Q h) after them.
  const auto at = [&](const char* name, int64_t i) { return to_float(params.at(name).value.as<bf16>()[i]); };
  for (int64_t v : {0, 7, 63})
    for (int64_t c : {0, 5, 31}) {
      double embed = 0, head = 0;
      for (int64_t k = 0; k < 32; ++k) {
        embed += at("embed.weight", v * 32 + k) * at("embed_projection.weight", c * 32 + k);
        head += at("head.weight", v * 32 + k) * at("head_projection.weight", k * 32 + c);
      }
      EXPECT_NEAR(to_float(loaded.at("embed.weight").value.as<bf16>()[v * 32 + c]), embed,
                  std::abs(embed) * 0x1p-8 + 1e-7);
      EXPECT_NEAR(to_float(loaded.at("head.weight").value.as<bf16>()[v * 32 + c]), head,
                  std::abs(head) * 0x1p-8 + 1e-7);
    }
}

TEST(HuggingFace, EveryVariantSaysItsArchitectureAndComesBackTheSame) {
  struct Case {
    std::function<void(ModelSpec&)> change;
    const char* architecture;
    const char* beyond;
  };
  const std::vector<Case> cases = {
      {[](ModelSpec&) {}, "LlamaForCausalLM", ""},
      {[](ModelSpec& s) { s.tie_embeddings = true; }, "LlamaForCausalLM", ""},
      {[](ModelSpec& s) { s.qk_norm = true; }, "Qwen3ForCausalLM", ""},
      {[](ModelSpec& s) { s.attention.window = 5; }, "MistralForCausalLM", ""},
      {[](ModelSpec& s) {
         s.attention.window = 5;
         s.qk_norm = true;
       },
       "Qwen3ForCausalLM", ""},
      {[](ModelSpec& s) { s.qkv_bias = true; }, "Qwen2ForCausalLM", ""},
      {[](ModelSpec& s) {
         s.qkv_bias = true;
         s.attention.window = 5;
         s.attention.window_layers = {"1"};
         s.rope_scaling =
             RopeScalingSpec{.kind = RopeScalingSpec::Kind::yarn, .factor = 4, .original_len = 8};
       },
       "Qwen2ForCausalLM", ""},
      {[](ModelSpec& s) {
         s.qkv_bias = s.output_bias = s.mlp_bias = true;
         s.rope_scaling = RopeScalingSpec{.kind = RopeScalingSpec::Kind::linear, .factor = 2};
       },
       "LlamaForCausalLM", ""},
      {[](ModelSpec& s) { s.qkv_bias = s.output_bias = s.qk_norm = true; }, "Qwen3ForCausalLM", ""},
      {[](ModelSpec& s) { s.output_bias = true; }, "OspreyForCausalLM", "model.output_bias"},
      {[](ModelSpec& s) { s.qkv_bias = s.qk_norm = true; }, "OspreyForCausalLM", "model.qkv_bias"},
      {[](ModelSpec& s) { s.mlp_bias = s.qk_norm = true; }, "OspreyForCausalLM", "model.mlp_bias"},
      {[](ModelSpec& s) {
         s.attention.window = 5;
         s.attention.window_layers = {"0"};
       },
       "OspreyForCausalLM", "model.attention.window_layers"},
      {[](ModelSpec& s) {
         s.attention.kind = AttentionSpec::Kind::sink;
         s.attention.window = 5;
       },
       "OspreyForCausalLM", "model.attention.kind: sink"},
      {[](ModelSpec& s) {
         s.head_size = 16;
         s.kv_heads = 1;
       },
       "LlamaForCausalLM", ""},
      {[](ModelSpec& s) { s.norm = NormKind::layernorm; }, "OspreyForCausalLM", "model.norm"},
      {[](ModelSpec& s) { s.attention.kind = AttentionSpec::Kind::sink; }, "OspreyForCausalLM",
       "model.attention.kind: sink"},
      {[](ModelSpec& s) {
         s.attention.kind = AttentionSpec::Kind::gated;
         s.qk_norm = true;
       },
       "OspreyForCausalLM", "gated"},
      {[](ModelSpec& s) {
         s.attention.kind = AttentionSpec::Kind::gated;
         s.attention.gate = AttentionSpec::Gate::elementwise;
       },
       "OspreyForCausalLM", "gated"},
      {[](ModelSpec& s) {
         s.attention.kind = AttentionSpec::Kind::clipped_softmax;
         s.attention.alpha = 3;
         s.attention.zeta = 1.5;
       },
       "OspreyForCausalLM", "clipped_softmax"}};
  for (const Case& c : cases) {
    TempDir dir;
    ModelSpec spec = tiny();
    c.change(spec);
    ParamStore params, loaded;
    fill(spec, params);
    write_hub(spec, params, dir / "m");
    const json config = json::parse(read_file(dir / "m" / "config.json", 10000));
    EXPECT_EQ(config["architectures"][0], c.architecture);
    EXPECT_NE(beyond_transformers(spec).value_or("").find(c.beyond), std::string::npos);
    EXPECT_EQ(beyond_transformers(spec).has_value(), *c.beyond != 0);
    const HubModel hub(dir / "m");
    EXPECT_EQ(hub.spec().attention.kind, spec.attention.kind);
    EXPECT_EQ(hub.spec().attention.gate, spec.attention.gate);
    EXPECT_EQ(hub.spec().attention.alpha, spec.attention.alpha);
    EXPECT_EQ(hub.spec().attention.zeta, spec.attention.zeta);
    EXPECT_EQ(hub.spec().attention.window, spec.attention.window);
    EXPECT_EQ(hub.spec().attention.window_layers, spec.attention.window_layers);
    EXPECT_EQ(hub.spec().qkv_bias, spec.qkv_bias);
    EXPECT_EQ(hub.spec().output_bias, spec.output_bias);
    EXPECT_EQ(hub.spec().mlp_bias, spec.mlp_bias);
    ASSERT_EQ(hub.spec().rope_scaling.has_value(), spec.rope_scaling.has_value());
    if (spec.rope_scaling) {
      EXPECT_EQ(hub.spec().rope_scaling->scaling(), spec.rope_scaling->scaling());
    }
    make_model(hub.spec(), 16)->declare(loaded);
    loaded.materialize({}, DType::bf16, ParamStore::Gradients::off);
    hub.load({}, loaded);
    ASSERT_EQ(loaded.all().size(), params.all().size());
    for (const auto& p : params.all())
      EXPECT_EQ(
          0, std::memcmp(p->value.data, loaded.at(p->name).value.data, static_cast<size_t>(p->value.bytes())))
          << p->name;
  }
}

TEST(HuggingFace, WhatOspreyDoesNotComputeIsRefusedByItsKey) {
  TempDir dir;
  ParamStore params;
  fill(tiny(), params);
  write_hub(tiny(), params, dir / "m");
  const json good = json::parse(read_file(dir / "m" / "config.json", 10000));
  const auto with = [&](const char* key, const json& value) {
    json config = good;
    config[key] = value;
    std::ofstream(dir / "m" / "config.json") << config;
    return refusal([&] { HubModel hub(dir / "m"); });
  };
  EXPECT_EQ(with("rope_theta", 5e5), "accepted");
  EXPECT_EQ(with("rope_parameters", {{"rope_theta", 5e5}, {"rope_type", "default"}}), "accepted");
  const std::vector<std::pair<const char*, json>> bad = {
      {"model_type", "mamba"},
      {"model_type", 3},
      {"hidden_size", -1},
      {"hidden_size", 1e9},
      {"hidden_size", 0},
      {"num_hidden_layers", 99999999},
      {"num_hidden_layers", 3},
      {"num_attention_heads", 7},
      {"num_key_value_heads", 3},
      {"vocab_size", 65},
      {"intermediate_size", "48"},
      {"attention_bias", true},
      {"mlp_bias", true},
      {"partial_rotary_factor", 0.5},
      {"layer_types", {"sliding_attention", "full_attention"}},
      {"hidden_act", "gelu"},
      {"rope_scaling", {{"rope_type", "llama3"}}},
      {"rope_parameters", {{"rope_type", "yarn"}}},
      {"tie_word_embeddings", 1},
      {"rms_norm_eps", "x"},
      {"eos_token_id", -2},
      {"eos_token_id", {3, "x"}}};
  for (const auto& [key, value] : bad) {
    const std::string message = with(key, value);
    EXPECT_NE(message, "accepted") << key << " " << value;
    EXPECT_NE(message.find((dir / "m").string()), std::string::npos) << message;
  }
  EXPECT_NE(with("vocab_size", 65).find("model.embed_tokens.weight is (64, 32), the config says (65, 32)"),
            std::string::npos);
  EXPECT_NE(with("model_type", "mamba").find("mamba"), std::string::npos);
  EXPECT_NE(with("model_type", "qwen3").find("self_attn.q_norm.weight is missing"), std::string::npos);
  EXPECT_NE(refusal([&] { HubModel hub(dir / "nowhere"); }).find("nowhere"), std::string::npos);
  EXPECT_NE(refusal([&] { HubModel hub(dir.path()); }).find("config.json"), std::string::npos);
}

TEST(HuggingFace, AllTensorsThatDoNotFitAreListedByName) {
  TempDir dir;
  ParamStore params;
  fill(tiny(), params);
  write_hub(tiny(), params, dir / "m");
  json config = json::parse(read_file(dir / "m" / "config.json", 10000));
  config["num_hidden_layers"] = 4;
  config["intermediate_size"] = 56;
  std::ofstream(dir / "m" / "config.json") << config;
  const std::string message = refusal([&] { HubModel hub(dir / "m"); });
  // Two layers of 9 tensors, and three matrices of the layers that are there.
  EXPECT_NE(message.find("24 of the tensors"), std::string::npos) << message;
  EXPECT_EQ(std::count(message.begin(), message.end(), '\n'), 24) << message;
  const size_t misshapen =
      message.find("model.layers.0.mlp.down_proj.weight is (32, 48), the config says (32, 56)");
  const size_t missing = message.find("model.layers.3.self_attn.v_proj.weight is missing");
  EXPECT_LT(misshapen, missing);
  EXPECT_LT(missing, message.size());
}

TEST(HuggingFace, NamesWithoutTheirPrefixAreFound) {
  TempDir dir;
  ParamStore params, loaded;
  fill(tiny(), params);
  fs::create_directories(dir / "m");
  HubLayout layout = hub_layout(tiny(), {.sequence_len = 16});
  for (HubTensor& t : layout.tensors)
    if (t.name.starts_with("model.")) t.name = t.name.substr(6);
  const ReadParameter read = [&](const std::string& name, int64_t begin, Tensor out) {
    for (int64_t i = 0; i < out.numel(); ++i)
      out.as<float>()[i] = to_float(params.at(name).value.as<bf16>()[begin + i]);
  };
  write_hub_tensors(Queue{}, dir / "m" / "model.safetensors", layout, read, StoredType::bf16);
  write_hub_texts(dir / "m", layout, "");
  const HubModel hub(dir / "m");
  make_model(hub.spec(), 16)->declare(loaded);
  loaded.materialize({}, DType::bf16, ParamStore::Gradients::off);
  hub.load({}, loaded);
  for (const auto& p : params.all())
    EXPECT_EQ(
        0, std::memcmp(p->value.data, loaded.at(p->name).value.data, static_cast<size_t>(p->value.bytes())))
        << p->name;
}

TEST(HuggingFace, PickledWeightsAreRefusedWithTheReasonAndTheCure) {
  TempDir dir;
  ParamStore params;
  fill(tiny(), params);
  write_hub(tiny(), params, dir / "m");
  fs::rename(dir / "m" / "model.safetensors", dir / "m" / "pytorch_model-00001-of-00002.bin");
  const std::string message = refusal([&] { HubModel hub(dir / "m"); });
  EXPECT_NE(message.find("pytorch_model-00001-of-00002.bin"), std::string::npos) << message;
  EXPECT_NE(message.find("safe_serialization=True"), std::string::npos) << message;
}

TEST(HuggingFace, EveryStopTokenIsKept) {
  TempDir dir;
  ParamStore params;
  fill(tiny(), params);
  write_hub(tiny(), params, dir / "m");
  std::ofstream(dir / "m" / "generation_config.json") << json{{"eos_token_id", {9, 7}}};
  const HubModel hub(dir / "m");
  EXPECT_EQ(hub.context().stop_ids, (std::vector<int32_t>{9, 7, 3}));
  EXPECT_EQ(hub.context().eos_id, 3);
  const HubLayout layout = hub_layout(hub.spec(), hub.context());
  EXPECT_EQ(json::parse(layout.generation_config_json)["eos_token_id"], json({9, 7, 3}));
  EXPECT_EQ(json::parse(layout.config_json)["eos_token_id"], json({9, 7, 3}));
  std::ofstream(dir / "m" / "generation_config.json") << "[]";
  EXPECT_NE(refusal([&] { HubModel again(dir / "m"); }).find("generation_config.json"), std::string::npos);
}

TEST(HuggingFace, MutatedConfigsAreReadOrRefusedButNeverCrash) {
  TempDir dir;
  ParamStore params;
  fill(tiny(), params);
  write_hub(tiny(), params, dir / "m");
  const std::string seed = read_file(dir / "m" / "config.json", 10000);
  const auto count =
      test::fuzz({seed}, {"null", "-1", "1e400", "true", "[]", "{}", "0", "4294967296", "\"osprey\"", ","},
                 [&](const std::string& input) {
                   std::ofstream(dir / "m" / "config.json", std::ios::binary) << input;
                   HubModel hub(dir / "m");
                 });
  EXPECT_GT(count.refused, 100);
}

}  // namespace
}  // namespace osprey
