#include "models/hf/hub_model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>

#include "kernels/core/random.h"
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

ModelSpec tiny() {
  ModelSpec s;
  s.layers = 2;
  s.hidden_size = 32;
  s.heads = 4;
  s.kv_heads = 2;
  s.ffn_size = 48;
  s.vocab_size = 64;
  return s;
}

/// Declares a model and gives every parameter its initial value, norms a random one.
std::unique_ptr<LanguageModel> fill(const ModelSpec& spec, ParamStore& params) {
  auto model = make_model(spec, 16);
  model->declare(params);
  params.materialize({}, DType::bf16, ParamStore::Gradients::off);
  params.initialize(Queue{}, 5);
  for (const auto& p : params.all())
    if (p->shape.rank == 1)
      for (int64_t i = 0; i < p->shape.numel(); ++i)
        p->value.as<bf16>()[i] =
            to_bf16(0.5f + random_uniform(6, stream_of(p->name), static_cast<uint64_t>(i)));
  return model;
}

void write_hub(const ModelSpec& spec, ParamStore& params, const fs::path& dir,
               StoredType type = StoredType::bf16) {
  fs::create_directories(dir);
  const HubLayout layout =
      hub_layout(spec, {.sequence_len = 16, .dtype = DType::bf16, .bos_id = {}, .eos_id = 3});
  const ReadParameter read = [&](const std::string& name, int64_t begin, Tensor out) {
    for (int64_t i = 0; i < out.numel(); ++i)
      out.as<float>()[i] = to_float(params.at(name).value.as<bf16>()[begin + i]);
  };
  write_hub_tensors(Queue{}, dir / "model.safetensors", layout, read, type);
  write_hub_texts(dir, layout, "");
}

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

// ---- what transformers computes -------------------------------------------------------------------------

/// Models whose logits stand in hf_logits.json. Weights are large enough that a wrong rotation, head order,
/// mask or fold moves logits by far more than the tolerance.
std::map<std::string, ModelSpec> golden_models() {
  ModelSpec osp = tiny();
  osp.init_std = 0.25;
  osp.norm = NormKind::ssnorm;
  osp.embedding_projection = true;
  ModelSpec qwen = tiny();
  qwen.init_std = 0.25;
  qwen.qk_norm = true;
  qwen.head_size = 16;
  qwen.rope_theta = 500;
  ModelSpec tied = tiny();
  tied.init_std = 0.25;
  tied.tie_embeddings = true;
  tied.kv_heads = 1;
  ModelSpec mistral = tiny();
  mistral.init_std = 0.25;
  mistral.attention.window = 3;
  ModelSpec qwen_window = qwen;
  qwen_window.attention.window = 4;
  return {{"osp", osp}, {"qwen3", qwen}, {"tied", tied}, {"mistral", mistral}, {"qwen3_window", qwen_window}};
}

/// Logits (T, V) of one sequence, fed a token at a time.
std::vector<float> decode_logits(LanguageModel& model, const std::vector<int32_t>& ids) {
  Arena arena("activations", {}, int64_t{16} << 20), kept("cache", {}, int64_t{1} << 20);
  Pool pool("gradients", {});
  Tape tape(Queue{}, arena, pool);
  DecodeCache cache = model.make_cache(kept, 1, static_cast<int64_t>(ids.size()));
  std::vector<float> all;
  for (size_t i = 0; i < ids.size(); ++i) {
    int32_t token = ids[i], position = static_cast<int32_t>(i);
    *cache.lengths.as<int32_t>() = position + 1;
    const Tensor logits = model.decode(tape, make_tensor(&token, {1}, DType::i32),
                                       make_tensor(&position, {1}, DType::i32), cache);
    all.insert(all.end(), logits.as<float>(), logits.as<float>() + logits.numel());
    tape.reset();
  }
  return all;
}

/// Nats of each next token, from the training path.
std::vector<float> sequence_losses(LanguageModel& model, std::vector<int32_t> ids) {
  const auto T = static_cast<int64_t>(ids.size()) - 1;
  Arena arena("activations", {}, int64_t{16} << 20);
  Pool pool("gradients", {});
  Tape tape(Queue{}, arena, pool);
  std::vector<int32_t> positions(ids.size());
  std::iota(positions.begin(), positions.end(), 0);
  const BatchView batch{.tokens = make_tensor(ids.data(), {1, T}, DType::i32),
                        .targets = make_tensor(ids.data() + 1, {1, T}, DType::i32),
                        .positions = make_tensor(positions.data(), {1, T}, DType::i32),
                        .document_start = {}};
  std::vector<float> losses(static_cast<size_t>(T));
  double sums[2] = {};
  model.loss(tape, batch,
             {.grad_scale = {},
              .sums = make_tensor(sums, {2}, DType::f64),
              .token_losses = make_tensor(losses.data(), {T}, DType::f32)});
  return losses;
}

TEST(HuggingFace, LogitsAreThoseOfTransformers) {
  // hf_logits.py wrote the golden file from the directories that this test writes to OSPREY_GOLDEN_DIR.
  const char* keep = std::getenv("OSPREY_GOLDEN_DIR");
  json golden;
  if (!keep) golden = json::parse(read_file(test::source_dir() + "/tests/models/hf/hf_logits.json", 1 << 20));
  const auto ids = keep ? std::vector<int32_t>() : golden["ids"].get<std::vector<int32_t>>();
  for (const auto& [name, spec] : golden_models()) {
    TempDir dir;
    ParamStore params;
    const auto trained = fill(spec, params);
    const fs::path to = keep ? fs::path(keep) / name : dir / "m";
    write_hub(spec, params, to);
    if (keep) continue;
    const auto expected = golden["logits"][name].get<std::vector<float>>();
    ASSERT_EQ(expected.size(), ids.size() * 64);
    double spread = 0;
    for (float v : expected) spread += v * v / static_cast<double>(expected.size());
    const auto distance = [&](const std::vector<float>& logits) {
      double worst = 0;
      for (size_t i = 0; i < expected.size(); ++i)
        worst = std::max(worst, std::abs(static_cast<double>(logits[i]) - expected[i]));
      return worst;
    };
    // The model as it was trained, before anything is folded.
    EXPECT_LT(distance(decode_logits(*trained, ids)), 0.08 * std::sqrt(spread)) << name;
    const HubModel hub(to);
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const auto model = make_model(hub.spec(), 16);
      ParamStore loaded;
      model->declare(loaded);
      loaded.materialize({}, dtype, ParamStore::Gradients::off);
      hub.load({}, loaded);
      const auto logits = decode_logits(*model, ids);
      const auto losses = sequence_losses(*model, ids);
      double worst_loss = 0;
      for (size_t t = 0; t + 1 < ids.size(); ++t) {
        double total = 0;
        for (size_t v = 0; v < 64; ++v) total += std::exp(expected[t * 64 + v]);
        worst_loss = std::max(
            worst_loss,
            std::abs(losses[t] - (std::log(total) - expected[t * 64 + static_cast<size_t>(ids[t + 1])])));
      }
      // The golden file has four decimals; bf16 activations carry 2^-8 through two layers.
      const double tolerance =
          dtype == DType::f32 ? 2e-4 + 1e-4 * std::sqrt(spread) : 0.08 * std::sqrt(spread);
      EXPECT_LT(distance(logits), tolerance)
          << name << " " << osprey::name(dtype) << ", rms of the logits " << std::sqrt(spread);
      EXPECT_LT(worst_loss, 2 * tolerance) << name << " " << osprey::name(dtype);
    }
  }
}

}  // namespace
}  // namespace osprey
