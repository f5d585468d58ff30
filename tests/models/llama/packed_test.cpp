// Checkpoints whose weights are packed: the same logits as the checkpoint they were made of, and refusals.

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "framework/config/reader.h"
#include "framework/files/json.h"
#include "kernels/core/random.h"
#include "models/hf/hub_model.h"
#include "tests/support/device_copy.h"
#include "tests/support/fuzz.h"
#include "tests/support/refusal.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_bed.h"

namespace osprey {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::refusal;
using test::TempDir;
using test::TestBed;

constexpr int64_t tokens = 32;

ModelSpec small() {
  ModelSpec s;
  s.layers = 2;
  s.hidden_size = 64;
  s.heads = 4;
  s.kv_heads = 2;
  s.ffn_size = 96;
  s.vocab_size = 64;
  s.init_std = 0.2;
  return s;
}

QuantGroupSpec group(const std::string& yaml) { return read_spec<QuantGroupSpec>(yaml, "quant.yaml"); }

/// A directory with the initial values of small(), in bf16.
void write_plain(const fs::path& dir) {
  ParamStore params;
  make_model(small(), tokens)->declare(params);
  params.materialize({}, DType::bf16, ParamStore::Gradients::off);
  params.initialize(Queue{}, 3);
  fs::create_directories(dir);
  const HubLayout layout =
      hub_layout(small(), {.sequence_len = tokens, .dtype = DType::bf16, .bos_id = {}, .eos_id = 3});
  const ReadParameter read = [&](const std::string& name, int64_t begin, Tensor out) {
    for (int64_t i = 0; i < out.numel(); ++i)
      out.as<float>()[i] = to_float(params.at(name).value.as<bf16>()[begin + i]);
  };
  write_hub_tensors(Queue{}, dir / "model.safetensors", layout, read, StoredType::bf16);
  write_hub_texts(dir, layout, "");
}

void pack(const fs::path& from, const fs::path& to, const std::vector<QuantGroupSpec>& groups) {
  fs::create_directories(to);
  const HubModel hub(from);
  const QuantizationConfig config = for_inference(groups, 11);
  const HubLayout layout = hub_layout(hub.spec(), hub.context(), &config);
  write_hub_tensors(Queue{}, to / "model.safetensors", layout, read_values(hub), StoredType::bf16);
  write_hub_texts(to, layout, "");
}

/// A directory loaded on the tests' device; `groups` quantize what is not packed.
struct Loaded {
  Loaded(const fs::path& dir, std::span<const QuantGroupSpec> groups) : hub(dir) {
    bed.tape.set_mode(Tape::Mode::evaluate);
    model = make_model(hub.spec(), tokens);
    model->declare(bed.params);
    const QuantizationConfig* config = hub.quantization();
    const uint64_t seed = config ? config->seed : 11;
    if (config) {
      groups = config->groups;
      hub.declare_packed(bed.params);
    }
    schemes = std::make_unique<QuantSchemes>(groups, bed.params, seed);
    bed.params.materialize(bed.queue.device, DType::bf16, ParamStore::Gradients::off);
    schemes->activate(0);
    hub.load(bed.queue, bed.params);
  }
  /// Losses of a few sequences (many rows in a product), then logits of one token (few rows).
  std::vector<double> numbers() {
    std::vector<int> ids, targets, positions;
    for (int i = 0; i < 2 * tokens; ++i) {
      ids.push_back(static_cast<int>(random_u64(5, 1, static_cast<uint64_t>(i)) % 64));
      targets.push_back(
          (i + 1) % tokens ? static_cast<int>(random_u64(5, 1, static_cast<uint64_t>(i) + 1) % 64) : -1);
      positions.push_back(i % static_cast<int>(tokens));
    }
    const BatchView view{.tokens = test::make_i32(bed.inputs, {2, tokens}, ids),
                         .targets = test::make_i32(bed.inputs, {2, tokens}, targets),
                         .positions = test::make_i32(bed.inputs, {2, tokens}, positions),
                         .document_start = {}};
    const Tensor losses = bed.inputs.alloc({2 * tokens}, DType::f32);
    model->loss(bed.tape, view, {.grad_scale = {}, .sums = bed.zeros(2), .token_losses = losses});
    std::vector<double> all = test::read(losses);
    bed.tape.reset();
    DecodeCache cache = model->make_cache(bed.inputs, 1, 4);
    test::write(cache.lengths, test::Values(1, 1.0));
    const Tensor now = test::make_i32(bed.inputs, {1}, {7}), at = test::make_i32(bed.inputs, {1}, {0});
    const test::Values logits = test::read(model->decode(bed.tape, now, at, cache));
    bed.tape.reset();
    all.insert(all.end(), logits.begin(), logits.end());
    return all;
  }

  HubModel hub;
  TestBed bed;
  std::unique_ptr<LanguageModel> model;
  std::unique_ptr<QuantSchemes> schemes;
};

TEST(PackedCheckpoint, ComputesBitForBitWhatQuantizingTheLoadedWeightsDoes) {
  TempDir dir;
  write_plain(dir / "plain");
  int number = 0;
  for (const std::vector<std::string>& yaml : std::vector<std::vector<std::string>>{
           {"preset: qat_mxfp4_w4a4"},
           {"preset: quartet"},
           {"preset: nvfp4"},
           {"preset: mxint8"},
           {"preset: weight_only"},
           {"weights: {format: int4_row}"},
           {"{weights: {format: int8_tensor}, activations: {format: int8_tensor}}"},
           {"{match: 'layers.*.mlp.down.weight', weights: {format: mxfp4}, activations: {format: mxint8}}",
            "{match: 'layers.1.{attn,mlp}.{q,k,v,o,gate,up}.weight', preset: qat_mxfp4_w4a4}"}}) {
    std::vector<QuantGroupSpec> groups;
    for (const std::string& y : yaml) groups.push_back(group(y));
    const fs::path packed = dir / std::to_string(number++);
    pack(dir / "plain", packed, groups);
    Loaded stored(packed, {});
    EXPECT_EQ(stored.numbers(), Loaded(dir / "plain", groups).numbers()) << yaml[0];
    const Parameter& down = stored.bed.params.at("layers.1.mlp.down.weight");
    EXPECT_TRUE(down.packed.defined());
    EXPECT_FALSE(down.value.defined()) << "there is no memory for what is packed";
  }
}

/// A directory with the initial values of small() and what the group learns of it, and the same packed.
void write_with_steps(const fs::path& dir, const QuantGroupSpec& learns, float step_of_input) {
  ParamStore params;
  make_model(small(), tokens)->declare(params);
  const QuantSchemes schemes(std::span(&learns, 1), params, 11);
  params.materialize({}, DType::bf16, ParamStore::Gradients::off);
  params.initialize(Queue{}, 3);
  fs::create_directories(dir / "plain");
  HubLayout layout =
      hub_layout(small(), {.sequence_len = tokens, .dtype = DType::bf16, .bos_id = {}, .eos_id = 3});
  add_step_sizes(layout, params);
  const ReadParameter read = [&](const std::string& name, int64_t begin, Tensor out) {
    for (int64_t i = 0; i < out.numel(); ++i)
      out.as<float>()[i] = name.ends_with("weight_step") ? 0.07f * static_cast<float>(1 + i % 3)
                           : name.ends_with("input_step")
                               ? step_of_input
                               : to_float(params.at(name).value.as<bf16>()[begin + i]);
  };
  write_hub_tensors(Queue{}, dir / "plain" / "model.safetensors", layout, read, StoredType::bf16);
  write_hub_texts(dir / "plain", layout, "");

  fs::create_directories(dir / "packed");
  const HubModel hub(dir / "plain");
  const QuantizationConfig config = for_inference({&learns, 1}, 11);
  HubLayout packed = hub_layout(hub.spec(), hub.context(), &config);
  add_step_sizes(packed, params);
  write_hub_tensors(Queue{}, dir / "packed" / "model.safetensors", packed, read_values(hub),
                    StoredType::bf16);
  write_hub_texts(dir / "packed", packed, "");
}

TEST(PackedCheckpoint, LearntStepsArePackedWithTheirWeights) {
  for (const char* yaml :
       {"preset: lsq", "{weights: {format: int4_row, scale: lsq}}",
        "{weights: {format: int8_row, scale: lsq}, activations: {format: int4_tensor, scale: lsq}}",
        "{weights: {format: mxfp4}, activations: {format: int8_tensor, scale: lsq}}"}) {
    SCOPED_TRACE(yaml);
    TempDir dir;
    write_with_steps(dir.path(), group(yaml), 0.2f);
    const std::vector<QuantGroupSpec> groups{group(yaml)}, none;
    Loaded packed(dir / "packed", none), plain(dir / "plain", none);
    EXPECT_EQ(packed.bed.params.find("layers.0.attn.q.weight_step"), nullptr) << "its scales are packed";
    const std::vector<double> got = packed.numbers();
    EXPECT_NE(got, plain.numbers());
    EXPECT_EQ(got, Loaded(dir / "plain", groups).numbers());
  }
}

TEST(PackedCheckpoint, ItsWeightsTakeTheBytesOfTheirFormat) {
  TempDir dir;
  write_plain(dir / "plain");
  pack(dir / "plain", dir / "packed", {group("preset: qat_mxfp4_w4a4")});
  const SafetensorsFile file(dir / "packed" / "model.safetensors");
  const StoredTensor* codes = file.find("model.layers.1.mlp.down_proj.weight_packed");
  const StoredTensor* scales = file.find("model.layers.1.mlp.down_proj.weight_scale");
  ASSERT_TRUE(codes && scales);
  EXPECT_EQ(codes->type, StoredType::u8);
  EXPECT_EQ(codes->shape, (std::vector<int64_t>{64, 48}));
  EXPECT_EQ(scales->shape, (std::vector<int64_t>{64, 3}));
  EXPECT_FALSE(file.find("model.layers.1.mlp.down_proj.weight"));
  EXPECT_TRUE(file.find("model.embed_tokens.weight"));
  const json config = json::parse(read_file(dir / "packed" / "config.json", 10000));
  EXPECT_EQ(config["quantization_config"]["quant_method"], "osprey");
  EXPECT_EQ(config["quantization_config"]["groups"][0]["weights"]["format"], "mxfp4");
}

/// Writes a packed model, lets `change` at its config and its file, and says how it is refused.
std::string refused(const std::string& yaml, const std::function<void(json&)>& change_config,
                    const std::string& tensor = "", int64_t byte = 0, char value = 0) {
  TempDir dir;
  write_plain(dir / "plain");
  pack(dir / "plain", dir / "packed", {group(yaml)});
  const fs::path config = dir / "packed" / "config.json", model = dir / "packed" / "model.safetensors";
  json tree = json::parse(read_file(config, 100000));
  change_config(tree);
  std::ofstream(config) << tree;
  if (!tensor.empty()) {
    std::string image = read_file(model, 1 << 24);
    const SafetensorsHeader header = parse_safetensors("m", std::as_bytes(std::span(image)));
    for (const StoredTensor& t : header.tensors)
      if (t.name == tensor)
        image[static_cast<size_t>(header.data_begin_bytes + t.offset_bytes + byte)] = value;
    std::ofstream(model, std::ios::binary) << image;
  }
  return refusal([&] { Loaded loaded(dir / "packed", {}); });
}

TEST(PackedCheckpoint, StepsThatAreMissingOrNoNumbersAreRefused) {
  TempDir dir;
  write_with_steps(dir.path(), group("preset: lsq"), NAN);
  EXPECT_NE(refusal([&] { Loaded loaded(dir / "packed", {}); }).find("input_step is damaged: it is NaN"),
            std::string::npos);
  const std::string text =
      refused("{weights: {format: int4_tensor}, activations: {format: int4_tensor}}",
              [](json& c) { c["quantization_config"]["groups"][0]["activations"]["scale"] = "lsq"; });
  EXPECT_NE(text.find("holds no layers.0.attn.q.input_step"), std::string::npos) << text;
}

TEST(PackedCheckpoint, ImpossibleCodesAndScalesAreRefused) {
  const auto nothing = [](json&) {};
  const std::string weight = "model.layers.1.self_attn.q_proj.weight";
  const auto says = [&](const std::string& yaml, const std::string& part, int64_t byte, int value,
                        const std::string& words) {
    const std::string text = refused(yaml, nothing, weight + part, byte, static_cast<char>(value));
    EXPECT_NE(text.find(words), std::string::npos) << yaml << part << ": " << text;
    EXPECT_NE(text.find(weight + " is damaged"), std::string::npos) << text;
  };
  EXPECT_EQ(refused("preset: weight_only", nothing, weight + "_packed", 5, '\xff'), "accepted");
  says("preset: weight_only", "_scale", 3, 0xff, "scale 1 of row 1 is NaN");
  says("weights: {format: mxint4}", "_packed", 33, 0x18, "element 2 of row 1 is the most negative integer");
  says("weights: {format: mxint8}", "_packed", 65, 0x80, "element 1 of row 1 is the most negative integer");
  says("weights: {format: mxfp8_e4m3}", "_packed", 0, 0x7f, "element 0 of row 0 is NaN or infinite");
  says("weights: {format: mxfp8_e5m2}", "_packed", 0, 0xfc, "element 0 of row 0 is NaN or infinite");
  says("weights: {format: nvfp4}", "_scale", 0, 0x7f, "scale 0 of row 0 is NaN");
  says("weights: {format: nvfp4}", "_scale", 1, 0x84, "scale 1 of row 0 is negative");
  says("weights: {format: nvfp4}", "_global_scale", 3, 0xff, "the scale of the whole matrix is");
  says("weights: {format: int8_row}", "_scale", 3, 0xbf, "scale 0 of row 0 is negative");
}

TEST(PackedCheckpoint, ConfigsThatDoNotFitAreRefused) {
  const auto says = [](const std::string& words, const std::function<void(json&)>& change) {
    const std::string text =
        refused("preset: weight_only", [&](json& c) { change(c["quantization_config"]); });
    EXPECT_NE(text.find(words), std::string::npos) << words << ": " << text;
  };
  says("osprey quantize packed", [](json& q) { q["quant_method"] = "gptq"; });
  says("quant_method is missing", [](json& q) { q.erase("quant_method"); });
  says("version is 2", [](json& q) { q["version"] = 2; });
  says("unknown key 'bits'", [](json& q) { q["bits"] = 4; });
  says("has no 'seed'", [](json& q) { q.erase("seed"); });
  says("seed must be a whole number", [](json& q) { q["seed"] = -1; });
  says("must be a list of 1 to", [](json& q) { q["groups"] = json::array(); });
  says("groups[0]] has the unknown key 'gradients'", [](json& q) { q["groups"][0]["gradients"] = nullptr; });
  says("'mxfp5' is no format", [](json& q) { q["groups"][0]["weights"]["format"] = "mxfp5"; });
  says("weight_scale is (64, 2), the config says (64, 4)",
       [](json& q) { q["groups"][0]["weights"]["format"] = "nvfp4"; });
  says("is missing", [](json& q) { q["groups"][0]["match"] = "layers.0.mlp.down.weight"; });
  says("U8, the config says F32", [](json& q) { q["groups"][0]["weights"]["format"] = "int4_g32"; });
  says("embed.weight is no linear layer of a block", [](json& q) { q["groups"][0]["match"] = "*"; });
  says("must be an object", [](json& q) { q = 3; });
}

TEST(PackedCheckpoint, AnyTextIsAConfigOrAnError) {
  const QuantizationConfig config = for_inference(std::vector{group("preset: quartet")}, 11);
  const auto count = test::fuzz(
      {to_json(config).dump(), to_json(config).dump(1)},
      {"null", "-1", "\"mxfp4\"", "[]", "{}", "32", "\"groups\":", ","},
      [&](const std::string& input) { read_quantization_config("fuzz", parse_json("fuzz", input, 16)); });
  EXPECT_GT(count.refused, 100);
  const QuantizationConfig again = read_quantization_config("again", json::parse(to_json(config).dump()));
  EXPECT_EQ(to_json(again), to_json(config));
}

TEST(PackedCheckpoint, WeightsThatAreNotFiniteAreNotPacked) {
  TempDir dir;
  write_plain(dir / "plain");
  const HubModel hub(dir / "plain");
  const QuantizationConfig config = for_inference(std::vector{group("preset: weight_only")}, 0);
  const HubLayout layout = hub_layout(hub.spec(), hub.context(), &config);
  const ReadParameter values = read_values(hub);
  const ReadParameter broken = [&](const std::string& name, int64_t begin, Tensor out) {
    values(name, begin, out);
    if (name == "layers.1.mlp.up.weight" && begin == 0) out.as<float>()[70] = NAN;
  };
  const std::string text =
      refusal([&] { write_hub_tensors(Queue{}, dir / "m.safetensors", layout, broken, StoredType::bf16); });
  EXPECT_NE(text.find("model.layers.1.mlp.up_proj.weight holds NaN or Inf"), std::string::npos) << text;
}

}  // namespace
}  // namespace osprey
