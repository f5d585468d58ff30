// What transformers computes for tiny models of each family (golden.py), computed here.

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "framework/config/dumper.h"
#include "framework/files/json.h"
#include "models/hf/hub_model.h"
#include "tests/support/paths.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::TempDir;

fs::path golden_dir() { return fs::path(test::source_dir()) / "tests/models/hf/golden"; }

const json& golden() {
  static const json all = read_json(golden_dir() / "golden.json", 1 << 20, 4);
  return all;
}

/// A directory loaded in fp32, and what it computes.
struct Loaded {
  explicit Loaded(const fs::path& directory, ParamStore::Gradients gradients = ParamStore::Gradients::off)
      : hub(directory), model(make_model(hub.spec(), 16)), tape(Queue{}, arena, pool) {
    model->declare(params);
    params.materialize({}, DType::f32, gradients);
    hub.load({}, params);
  }
  /// (T, V), fed a token at a time.
  std::vector<float> decode(const std::vector<int32_t>& ids) {
    Arena kept("cache", {}, int64_t{1} << 20);
    DecodeCache cache = model->make_cache(kept, 1, static_cast<int64_t>(ids.size()));
    std::vector<float> all;
    for (size_t i = 0; i < ids.size(); ++i) {
      int32_t token = ids[i], position = static_cast<int32_t>(i);
      *cache.lengths.as<int32_t>() = position + 1;
      const Tensor logits = model->decode(tape, make_tensor(&token, {1}, DType::i32),
                                          make_tensor(&position, {1}, DType::i32), cache);
      all.insert(all.end(), logits.as<float>(), logits.as<float>() + logits.numel());
      tape.reset();
    }
    return all;
  }
  /// Nats a token, of the training path, backward included.
  double train(std::vector<int32_t> ids) {
    const auto T = static_cast<int64_t>(ids.size()) - 1;
    std::vector<int32_t> positions(ids.size());
    std::iota(positions.begin(), positions.end(), 0);
    const BatchView batch{.tokens = make_tensor(ids.data(), {1, T}, DType::i32),
                          .targets = make_tensor(ids.data() + 1, {1, T}, DType::i32),
                          .positions = make_tensor(positions.data(), {1, T}, DType::i32),
                          .document_start = {}};
    double sums[2] = {}, scale = 1.0 / static_cast<double>(T);
    tape.set_mode(Tape::Mode::train);
    params.begin_step();
    tape.backward(model->loss(
        tape, batch,
        {.grad_scale = make_tensor(&scale, {1}, DType::f64), .sums = make_tensor(sums, {2}, DType::f64)}));
    tape.reset();
    return sums[0] / sums[1];
  }
  double gradient_norm() const {
    double squares = 0;
    for (const auto& p : params.all())
      for (int64_t i = 0; i < p->shape.numel(); ++i)
        squares += static_cast<double>(p->grad.as<float>()[i]) * p->grad.as<float>()[i];
    return std::sqrt(squares);
  }

  HubModel hub;
  std::unique_ptr<LanguageModel> model;
  ParamStore params;
  Arena arena{"activations", {}, int64_t{16} << 20};
  Pool pool{"gradients", {}};
  Tape tape;
};

class GoldenModel : public testing::TestWithParam<const char*> {
 protected:
  std::vector<int32_t> ids = golden()["ids"].get<std::vector<int32_t>>();
  json expected = golden()[GetParam()];

  /// max |got - want| / max |want|
  double error(const std::vector<float>& logits) const {
    const auto want = expected["logits"].get<std::vector<float>>();
    EXPECT_EQ(logits.size(), want.size());
    double worst = 0, most = 0;
    for (size_t i = 0; i < std::min(logits.size(), want.size()); ++i) {
      worst = std::max(worst, std::abs(static_cast<double>(logits[i]) - want[i]));
      most = std::max(most, static_cast<double>(std::abs(want[i])));
    }
    return worst / most;
  }
};

TEST_P(GoldenModel, HasTheLogitsLossAndGradientNormOfTransformers) {
  Loaded m(golden_dir() / GetParam(), ParamStore::Gradients::on);
  EXPECT_LT(error(m.decode(ids)), 2e-5);
  EXPECT_NEAR(m.train(ids), expected["loss"].get<double>(), 1e-5);
  EXPECT_NEAR(m.gradient_norm() / expected["gradient_norm"].get<double>(), 1, 1e-5);
}

TEST_P(GoldenModel, ConfigAloneSaysWhatModelItIs) {
  const TempDir dir;
  fs::copy_file(golden_dir() / GetParam() / "config.json", dir.path() / "config.json");
  EXPECT_FALSE(has_weights(dir.path()));
  EXPECT_TRUE(has_weights(golden_dir() / GetParam()));
  EXPECT_EQ(dump_spec(read_model_config(dir.path())), dump_spec(HubModel(golden_dir() / GetParam()).spec()));
}

TEST_P(GoldenModel, ExportedInShardsIsTheSameModel) {
  const HubModel hub(golden_dir() / GetParam());
  TempDir dir;
  const HubLayout layout = hub_layout(hub.spec(), hub.context());
  const auto files =
      write_hub_model(Queue{}, dir.path(), layout, read_values(hub), hub.context().file_type(), 6000);
  EXPECT_GT(files.size(), 3u);
  write_hub_texts(dir.path(), layout, golden_dir() / GetParam());
  const json config = read_json(dir / "config.json", 1 << 16, 8),
             source = read_json(golden_dir() / GetParam() / "config.json", 1 << 16, 8);
  for (const char* key : {"architectures", "model_type", "torch_dtype", "bos_token_id", "eos_token_id"})
    EXPECT_EQ(config[key], source[key]) << key;
  const HubModel again(dir.path());
  EXPECT_EQ(again.context().file_type(), hub.context().file_type());
  EXPECT_EQ(again.tensors().names(), hub.tensors().names());
  for (const std::string& name : again.tensors().names()) {
    const StoredTensor &a = hub.tensors().tensor(name), &b = again.tensors().tensor(name);
    ASSERT_EQ(a.shape, b.shape) << name;
    EXPECT_EQ(a.type, b.type) << name;
    std::vector<float> x(static_cast<size_t>(a.numel())), y = x;
    hub.tensors().read(name, make_tensor(x.data(), {a.numel()}, DType::f32));
    again.tensors().read(name, make_tensor(y.data(), {a.numel()}, DType::f32));
    // What is written without being read: see HubTensor::unread_rows.
    if (name.ends_with("embed_positions.weight")) std::fill_n(x.begin(), 2 * a.shape[1], 0.0f);
    EXPECT_EQ(x, y) << name;
  }
  Loaded m(dir.path());
  EXPECT_LT(error(m.decode(ids)), 2e-5);
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenModel,
                         testing::Values("llama3", "llama_bias", "mistral", "qwen2", "qwen2_windows", "qwen3",
                                         "gpt2", "opt"),
                         [](const auto& one) { return std::string(one.param); });

}  // namespace
}  // namespace osprey
