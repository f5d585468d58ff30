#include "models/llama/gguf.h"

#include <gtest/gtest.h>

#include "kernels/core/random.h"
#include "models/hf/hub_model.h"
#include "tests/support/gguf_reader.h"
#include "tests/support/paths.h"
#include "tests/support/refusal.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

namespace fs = std::filesystem;
using test::GgufFile;
using test::refusal;
using test::TempDir;

fs::path golden(const char* name) { return fs::path(test::source_dir()) / "tests/models/hf/golden" / name; }

struct Written {
  explicit Written(const char* name, GgufType type = GgufType::f32)
      : hub(golden(name)), file([&] {
          const GgufKeys keys = gguf_keys(hub.spec(), hub.context(), name, type);
          write_gguf(Queue{}, dir / "m.gguf", keys, hub.spec(), hub.context(), type, read_values(hub));
          return read_file(dir / "m.gguf", 1 << 20);
        }()) {}
  std::vector<double> of_hub(const std::string& name) const {
    std::vector<float> values(static_cast<size_t>(hub.tensors().tensor(name).numel()));
    hub.tensors().read(name, make_tensor(values.data(), {static_cast<int64_t>(values.size())}, DType::f32));
    return {values.begin(), values.end()};
  }
  TempDir dir;
  HubModel hub;
  GgufFile file;
};

/// llama.cpp's rotation turns elements 2 i and 2 i + 1 of a head.
std::vector<double> interleaved(const std::vector<double>& x, size_t heads, size_t size) {
  const size_t width = x.size() / heads / size;
  std::vector<double> y;
  for (size_t h = 0; h < heads; ++h)
    for (size_t i = 0; i < size / 2; ++i)
      for (size_t half : {i, i + size / 2})
        y.insert(y.end(), x.begin() + static_cast<std::ptrdiff_t>((h * size + half) * width),
                 x.begin() + static_cast<std::ptrdiff_t>((h * size + half + 1) * width));
  return y;
}

TEST(LlamaGguf, QueriesAndKeysOfLlamaAreInterleavedWithTheirBiases) {
  const Written w("llama_bias");
  EXPECT_EQ(w.file.keys.at("general.architecture"), "llama");
  const std::string layer = "model.layers.1.self_attn.";
  for (const char* part : {".weight", ".bias"}) {
    const std::string end = part;
    EXPECT_EQ(w.file.values("blk.1.attn_q" + end), interleaved(w.of_hub(layer + "q_proj" + end), 2, 16));
    EXPECT_EQ(w.file.values("blk.1.attn_k" + end), interleaved(w.of_hub(layer + "k_proj" + end), 1, 16));
    EXPECT_EQ(w.file.values("blk.1.attn_v" + end), w.of_hub(layer + "v_proj" + end));
    EXPECT_EQ(w.file.values("blk.1.attn_output" + end), w.of_hub(layer + "o_proj" + end));
    EXPECT_EQ(w.file.values("blk.0.ffn_down" + end), w.of_hub("model.layers.0.mlp.down_proj" + end));
  }
  EXPECT_EQ(w.file.tensors.at("blk.0.ffn_down.weight").dims, (std::vector<uint64_t>{24, 16}));
  EXPECT_EQ(w.file.values("output.weight"), w.of_hub("lm_head.weight"));
  EXPECT_EQ(w.file.keys.at("llama.rope.scaling.type"), "linear");
  EXPECT_EQ(w.file.keys.at("llama.rope.scaling.factor"), 3.0);
  EXPECT_EQ(w.file.tensors.size(), 3u + 2 * (9 + 7));
}

TEST(LlamaGguf, Qwen2KeepsItsOrderAndATiedHeadIsLeftOut) {
  const Written w("qwen2");
  EXPECT_EQ(w.file.keys.at("general.architecture"), "qwen2");
  EXPECT_EQ(w.file.values("blk.0.attn_q.weight"), w.of_hub("model.layers.0.self_attn.q_proj.weight"));
  EXPECT_EQ(w.file.values("blk.0.attn_k.bias"), w.of_hub("model.layers.0.self_attn.k_proj.bias"));
  EXPECT_FALSE(w.file.tensors.contains("output.weight"));
  EXPECT_EQ(w.file.keys.at("qwen2.attention.head_count_kv"), 1u);
  EXPECT_EQ(w.file.keys.at("qwen2.attention.key_length"), 16u);
  EXPECT_EQ(w.file.keys.at("qwen2.context_length"), 64u);
  EXPECT_EQ(w.file.keys.at("tokenizer.ggml.eos_token_id"), 2u);
}

TEST(LlamaGguf, Qwen3InMxfp4HasItsTablesInQ8) {
  ModelSpec spec;
  spec.layers = 1, spec.hidden_size = 64, spec.heads = 2, spec.ffn_size = 96, spec.vocab_size = 40;
  spec.qk_norm = true;
  const HubContext context{.sequence_len = 128, .eos_id = 3, .stop_ids = {7, 3}};
  const ReadParameter read = [](const std::string& name, int64_t begin, Tensor out) {
    for (int64_t i = 0; i < out.numel(); ++i)
      out.as<float>()[i] = random_uniform(1, stream_of(name), static_cast<uint64_t>(begin + i)) - 0.5f;
  };
  TempDir dir;
  const GgufKeys keys = gguf_keys(spec, context, "m", GgufType::mxfp4);
  write_gguf(Queue{}, dir / "m.gguf", keys, spec, context, GgufType::mxfp4, read);
  const GgufFile file(read_file(dir / "m.gguf", 1 << 20));
  EXPECT_EQ(file.keys.at("general.architecture"), "qwen3");
  EXPECT_EQ(file.keys.at("general.file_type"), 38u);
  EXPECT_EQ(file.keys.at("tokenizer.ggml.eos_token_id"), 3u);
  EXPECT_EQ(file.keys.at("tokenizer.ggml.eot_token_id"), 7u);
  for (const auto& [name, type, from, error] :
       std::vector<std::tuple<const char*, uint32_t, const char*, double>>{
           {"token_embd.weight", 8, "embed.weight", 0.003},
           {"output.weight", 8, "head.weight", 0.003},
           {"blk.0.attn_q.weight", 39, "layers.0.attn.q.weight", 0.13},
           {"blk.0.ffn_down.weight", 39, "layers.0.mlp.down.weight", 0.13},
           {"blk.0.attn_q_norm.weight", 0, "layers.0.attn.q_norm.weight", 0}}) {
    EXPECT_EQ(file.tensors.at(name).type, type) << name;
    const std::vector<double> found = file.values(name);
    std::vector<float> wanted(found.size());
    read(from, 0, make_tensor(wanted.data(), {static_cast<int64_t>(wanted.size())}, DType::f32));
    double worst = 0;
    for (size_t i = 0; i < found.size(); ++i) worst = std::max(worst, std::abs(found[i] - wanted[i]));
    EXPECT_LE(worst, error) << name;
  }
}

TEST(LlamaGguf, Llama3ScalingIsATensorOfFactors) {
  const Written w("llama3");
  const std::vector<double> factors = w.file.values("rope_freqs.weight");
  ASSERT_EQ(factors.size(), 8u);
  EXPECT_EQ(factors.back(), 8);  // the slowest pair is divided by the whole factor
  for (size_t i = 1; i < factors.size(); ++i) EXPECT_GE(factors[i], factors[i - 1]);
  EXPECT_FALSE(w.file.keys.contains("llama.rope.scaling.type"));
}

TEST(LlamaGguf, AWindowBecomesTheContext) {
  const Written w("mistral");
  EXPECT_EQ(w.file.keys.at("general.architecture"), "llama");
  EXPECT_EQ(w.file.keys.at("llama.context_length"), 5u);
}

TEST(LlamaGguf, NormsStayF32) {
  const Written w("qwen2", GgufType::f16);
  EXPECT_EQ(w.file.tensors.at("blk.0.attn_norm.weight").type, 0u);
  EXPECT_EQ(w.file.tensors.at("blk.0.attn_q.bias").type, 0u);
  EXPECT_EQ(w.file.tensors.at("blk.0.attn_q.weight").type, 1u);
  EXPECT_EQ(w.file.keys.at("general.file_type"), 1u);
}

TEST(LlamaGguf, WhatLlamaCppDoesNotComputeIsRefused) {
  const auto refused = [](const char* name, GgufType type = GgufType::f32) {
    return refusal([&] { Written w(name, type); });
  };
  EXPECT_NE(refused("qwen3").find("qkv_bias with qk_norm"), std::string::npos);
  EXPECT_NE(refused("gpt2").find("llama family"), std::string::npos);
  EXPECT_NE(refused("llama3", GgufType::q8_0).find("multiple of 32"), std::string::npos);
  ModelSpec sink;
  sink.attention.kind = AttentionSpec::Kind::sink;
  EXPECT_NE(refusal([&] { gguf_keys(sink, {}, "m", GgufType::f32); }).find("sink"), std::string::npos);
}

}  // namespace
}  // namespace osprey
