// What transformers computes for directories that Osprey writes (hf_logits.py).

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>

#include "tests/models/hf/tiny_hub.h"
#include "tests/support/paths.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::fill;
using test::TempDir;
using test::tiny;
using test::write_hub;

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
