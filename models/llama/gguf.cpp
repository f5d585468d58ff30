#include "models/llama/gguf.h"

#include <cmath>

#include "kernels/core/check.h"
#include "models/hf/hub_model.h"

namespace osprey {

namespace {

/// Of llama.cpp.
std::string architecture(const ModelSpec& s) {
  require(s.family == ModelSpec::Family::llama, "gguf",
          "GGUF files are written of the llama family, not of GPT-2 and OPT");
  const auto beyond = beyond_transformers(s);
  require(!beyond, "gguf", "llama.cpp does not compute {}", beyond.value_or(""));
  require(!s.qk_norm || !s.qkv_bias, "gguf", "llama.cpp does not compute model.qkv_bias with qk_norm");
  return s.qk_norm ? "qwen3" : s.qkv_bias && !s.output_bias ? "qwen2" : "llama";
}

/// general.file_type, as llama.cpp numbers what most of the file is.
uint32_t file_type(GgufType type) {
  switch (type) {
    case GgufType::f32:
      return 0;
    case GgufType::f16:
      return 1;
    case GgufType::q8_0:
      return 7;
    case GgufType::bf16:
      return 32;
    case GgufType::mxfp4:
      return 38;
  }
  fail("gguf", "no such type");
}

void add_rope(GgufKeys& keys, const std::string& arch, const ModelSpec& s) {
  keys.add(arch + ".rope.dimension_count", static_cast<uint32_t>(s.head_dim()));
  keys.add(arch + ".rope.freq_base", static_cast<float>(s.rope_theta));
  if (!s.rope_scaling) return;
  const RopeScalingSpec& r = *s.rope_scaling;
  using Kind = RopeScalingSpec::Kind;
  if (r.kind == Kind::llama3) {
    require(arch == "llama", "gguf",
            "llama.cpp computes rope_scaling llama3 for llama models only, not for {}", arch);
    return;  // as a tensor, rope_freqs.weight
  }
  keys.add(arch + ".rope.scaling.type", r.kind == Kind::linear ? "linear" : "yarn");
  keys.add(arch + ".rope.scaling.factor", static_cast<float>(r.factor));
  if (r.kind == Kind::linear) return;
  require(std::abs(r.magnitude() - (0.1 * std::log(r.factor) + 1)) < 1e-6, "gguf",
          "llama.cpp computes yarn's attention_factor itself, and not as {}", r.magnitude());
  keys.add(arch + ".rope.scaling.original_context_length", static_cast<uint32_t>(r.original_len));
  if (r.beta_fast != 32) keys.add(arch + ".rope.scaling.yarn_beta_fast", static_cast<float>(r.beta_fast));
  if (r.beta_slow != 1) keys.add(arch + ".rope.scaling.yarn_beta_slow", static_cast<float>(r.beta_slow));
}

void add_special_tokens(GgufKeys& keys, const HubContext& context) {
  if (context.bos_id) keys.add("tokenizer.ggml.bos_token_id", static_cast<uint32_t>(*context.bos_id));
  std::vector<int32_t> stops = context.stop_ids;
  if (context.eos_id) {
    std::erase(stops, *context.eos_id);
    stops.insert(stops.begin(), *context.eos_id);
  }
  // llama.cpp ends a text at each of these.
  const char* names[] = {"eos", "eot", "eom"};
  for (size_t i = 0; i < std::min<size_t>(stops.size(), 3); ++i)
    keys.add(fmt::format("tokenizer.ggml.{}_token_id", names[i]), static_cast<uint32_t>(stops[i]));
  if (context.pad_id) keys.add("tokenizer.ggml.padding_token_id", static_cast<uint32_t>(*context.pad_id));
}

/// "model.layers.3.self_attn.q_proj.weight" to "blk.3.attn_q.weight".
std::string gguf_name(const std::string& hub_name) {
  if (hub_name == "model.embed_tokens.weight") return "token_embd.weight";
  if (hub_name == "model.norm.weight") return "output_norm.weight";
  if (hub_name == "lm_head.weight") return "output.weight";
  static const std::pair<const char*, const char*> names[] = {
      {"input_layernorm", "attn_norm"},    {"self_attn.q_proj", "attn_q"},
      {"self_attn.k_proj", "attn_k"},      {"self_attn.v_proj", "attn_v"},
      {"self_attn.o_proj", "attn_output"}, {"self_attn.q_norm", "attn_q_norm"},
      {"self_attn.k_norm", "attn_k_norm"}, {"post_attention_layernorm", "ffn_norm"},
      {"mlp.gate_proj", "ffn_gate"},       {"mlp.up_proj", "ffn_up"},
      {"mlp.down_proj", "ffn_down"}};
  const std::string prefix = "model.layers.";
  const size_t dot = hub_name.find('.', prefix.size()), end = hub_name.rfind('.');
  const std::string layer = hub_name.substr(prefix.size(), dot - prefix.size()),
                    part = hub_name.substr(dot + 1, end - dot - 1);
  for (const auto& [from, to] : names)
    if (part == from) return "blk." + layer + "." + to + hub_name.substr(end);
  fail("gguf", "{} has no name in GGUF files", hub_name);
}

/// Rows of a query or key matrix so that the pairs of rotation, (i, i + D / 2) in ours, lie side by side,
/// where llama.cpp's llama looks for them. Elements of a bias are rows of width 1.
ReadParameter interleaved(const ReadParameter& read, int64_t head_size, int64_t width) {
  return [=, &read](const std::string& name, int64_t begin, Tensor out) {
    for (int64_t r = 0; r < out.numel() / width; ++r) {
      const int64_t row = begin / width + r, i = row % head_size;
      read(name, (row - i + i % 2 * (head_size / 2) + i / 2) * width,
           make_tensor(out.as<float>() + r * width, {width}, DType::f32));
    }
  };
}

/// What llama.cpp divides each pair's frequency by.
std::vector<float> rope_factors(const ModelSpec& s) {
  std::vector<float> factors;
  const int half = static_cast<int>(s.head_dim() / 2);
  for (int i = 0; i < half; ++i)
    factors.push_back(static_cast<float>(1 / rope_stretch(s.rope_scaling->scaling(), s.rope_theta, i, half)));
  return factors;
}

bool has_factors(const ModelSpec& s) {
  return s.rope_scaling && s.rope_scaling->kind == RopeScalingSpec::Kind::llama3;
}

GgufType type_of(const HubTensor& t, GgufType type) {
  if (t.shape.rank == 1) return GgufType::f32;
  const bool table = t.a == "embed.weight" || t.a == "head.weight";
  return type == GgufType::mxfp4 && table ? GgufType::q8_0 : type;
}

}  // namespace

GgufKeys gguf_keys(const ModelSpec& s, const HubContext& context, const std::string& model_name,
                   GgufType type) {
  const std::string arch = architecture(s);
  const auto whole = [](int64_t value) { return static_cast<uint32_t>(value); };
  GgufKeys keys;
  keys.add("general.architecture", arch);
  keys.add("general.type", "model");
  keys.add("general.name", model_name);
  keys.add("general.file_type", file_type(type));
  if (block_of(type) > 1) keys.add("general.quantization_version", 2u);
  const int64_t window = s.attention.window;
  keys.add(arch + ".context_length",
           whole(window > 0 ? std::min(window, context.sequence_len) : context.sequence_len));
  keys.add(arch + ".embedding_length", whole(s.hidden_size));
  keys.add(arch + ".block_count", whole(s.layers));
  keys.add(arch + ".feed_forward_length", whole(s.ffn_size));
  keys.add(arch + ".attention.head_count", whole(s.heads));
  keys.add(arch + ".attention.head_count_kv", whole(s.groups()));
  keys.add(arch + ".attention.key_length", whole(s.head_dim()));
  keys.add(arch + ".attention.value_length", whole(s.head_dim()));
  keys.add(arch + ".attention.layer_norm_rms_epsilon", static_cast<float>(s.norm_eps));
  keys.add(arch + ".vocab_size", whole(s.vocab_size));
  add_rope(keys, arch, s);
  add_special_tokens(keys, context);
  return keys;
}

FileRecord write_gguf(const Queue& queue, const std::filesystem::path& path, const GgufKeys& keys,
                      const ModelSpec& s, const HubContext& context, GgufType type,
                      const ReadParameter& read) {
  const HubLayout layout = hub_layout(s, context);
  std::vector<GgufTensor> tensors;
  if (has_factors(s)) tensors.push_back({"rope_freqs.weight", {s.head_dim() / 2}, GgufType::f32});
  for (const HubTensor& t : layout.tensors) tensors.push_back({gguf_name(t.name), t.shape, type_of(t, type)});
  GgufWriter writer(path, keys, std::move(tensors));
  std::string bytes;
  const auto write = [&](const std::string& name, GgufType of, const Tensor& rows) {
    bytes.clear();
    encode_gguf(queue, of, rows, name, bytes);
    writer.write(name, bytes);
  };
  if (has_factors(s)) {
    std::vector<float> factors = rope_factors(s);
    write("rope_freqs.weight", GgufType::f32, make_tensor(factors.data(), {s.head_dim() / 2}, DType::f32));
  }
  const bool permutes = architecture(s) == "llama";
  for (const HubTensor& t : layout.tensors) {
    const bool turned =
        t.a.find(".attn.q.") != std::string::npos || t.a.find(".attn.k.") != std::string::npos;
    const ReadParameter reorder = interleaved(read, s.head_dim(), t.shape.rank == 1 ? 1 : t.shape[-1]);
    for_each_hub_rows(queue, t, permutes && turned ? reorder : read,
                      [&](const Tensor& rows) { write(gguf_name(t.name), type_of(t, type), rows); });
  }
  return writer.finish();
}

}  // namespace osprey
