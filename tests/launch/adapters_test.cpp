// Adapters beside frozen weights, plain and packed, as whole runs.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "framework/files/json.h"
#include "launch/adapter_files.h"
#include "models/hf/hub_model.h"
#include "tests/support/finetune_run.h"
#include "tests/support/fuzz.h"
#include "tests/support/refusal.h"

namespace osprey {
namespace {

using test::finetune_recipe;
using test::from_directory;
using test::model_directory;
using test::Outcome;
using test::Overrides;
using test::TempDir;
using test::tiny_run;
using test::TinyResult;
using test::train_in_stages;
using test::train_with_checkpoints;

const char* const lora = "{method: lora, rank: 4, alpha: 8}";

const char* const dora = "{method: dora, rank: 4, alpha: 8}";

TEST(Adapters, LearnBesideWeightsThatStayAndRanksAgree) {
  const TempDir folder;
  Overrides longer = from_directory(model_directory(folder));
  longer.push_back("train.steps=30");
  for (const char* method : {lora, dora}) {
    SCOPED_TRACE(method);
    std::vector<std::vector<double>> start;
    std::vector<std::string> names;
    const TinyResult r =
        tiny_run(finetune_recipe(method, longer), 1, 1, 4, {}, DeviceKind::cpu, [&](Session& s) {
          for (const auto& p : s.params.all()) {
            start.push_back(test::read(p->value));
            names.push_back(p->name);
          }
          return std::unique_ptr<StepHook>();
        });
    EXPECT_LT(r.losses.back(), r.losses.front() - 0.1);
    for (size_t i = 0; i < names.size(); ++i)
      EXPECT_EQ(r.parameters[i] != start[i], names[i].find("lora") != std::string::npos) << names[i];
    const TinyResult two = tiny_run(finetune_recipe(method, longer, 2), 2, 1, 4);
    for (size_t i = 0; i < 6; ++i) EXPECT_NEAR(r.losses[i], two.losses[i], 2e-5);
  }
}

TEST(Adapters, AreUpdatedInBackwardAsAfterIt) {
  const TempDir folder;
  Overrides base = from_directory(model_directory(folder));
  base.insert(base.end(), {"train.micro_batch_size=8", "train.max_grad_norm=null"});
  Overrides within = base;
  within.push_back("train.updates=in_backward");
  for (const char* method : {lora, dora}) {
    const TinyResult a = tiny_run(finetune_recipe(method, base), 1, 1, 4),
                     b = tiny_run(finetune_recipe(method, within), 1, 1, 4);
    EXPECT_EQ(a.losses, b.losses) << method;
    EXPECT_EQ(a.parameters, b.parameters) << method;
  }
}

TEST(Adapters, ResumingAdaptersIsExact) {
  const TempDir folder;
  const Overrides base = from_directory(model_directory(folder));
  const Outcome whole = train_in_stages(lora, base, {{1, 8}}),
                resumed = train_in_stages(lora, base, {{1, 3}, {1, 8}});
  EXPECT_EQ(whole.losses, resumed.losses);
  EXPECT_EQ(whole.parameters, resumed.parameters);
}

/// What the checkpoint of a run with adapters of rank 4 and scale 2 must hold of each adapted weight, in
/// double: weight + scale b a, with rows of the weight's own lengths plus the magnitude where there is one.
std::vector<double> merged_by_hand(std::map<std::string, std::vector<double>>& values,
                                   const AdapterNames& names) {
  std::vector<double> w = values.at(names.weight);
  const auto &a = values.at(names.a), &b = values.at(names.b);
  const size_t cols = static_cast<size_t>(names.a_shape[1]), rank = 4;
  const auto length = [&](size_t row) {
    double sum = 0;
    for (size_t c = 0; c < cols; ++c) sum += w[row * cols + c] * w[row * cols + c];
    return std::sqrt(sum);
  };
  for (size_t row = 0; row < w.size() / cols; ++row) {
    const double own = length(row);
    for (size_t c = 0; c < cols; ++c)
      for (size_t r = 0; r < rank; ++r) w[row * cols + c] += 2.0 * b[row * rank + r] * a[r * cols + c];
    if (names.magnitude.empty()) continue;
    const double factor = (own + values.at(names.magnitude)[row]) / length(row);
    for (size_t c = 0; c < cols; ++c) w[row * cols + c] *= factor;
  }
  return w;
}

TEST(Adapters, ResumingLengthsIsExact) {
  const TempDir folder;
  const std::string model = model_directory(folder);
  const char* const packed = "{method: dora, rank: 4, alpha: 8, base_format: mxfp4}";
  for (const char* method : {dora, packed})
    for (const char* precision : {"train.precision=fp32", "train.precision=bf16"}) {
      Overrides base = from_directory(model);
      base.push_back(precision);
      const Outcome whole = train_in_stages(method, base, {{1, 8}}),
                    resumed = train_in_stages(method, base, {{1, 3}, {1, 8}});
      EXPECT_EQ(whole.losses, resumed.losses) << method << precision;
      EXPECT_EQ(whole.parameters, resumed.parameters) << method << precision;
    }
}

const char* const packed_lora = "{method: lora, rank: 4, alpha: 8, base_format: mxfp4}";

/// The same model with its linear layers packed, beside `from`.
std::string packed_directory(const std::string& from, const char* format = "mxfp4", bool inputs = false) {
  const std::string to = from + "-" + format + (inputs ? "-inputs" : "");
  const HubModel hub(from);
  QuantizationConfig config;
  config.groups.emplace_back().weights.emplace().format = format;
  if (inputs) config.groups[0].activations.emplace();
  const HubLayout layout = hub_layout(hub.spec(), hub.context(), &config);
  std::filesystem::create_directories(to);
  write_hub_tensors(Queue{}, std::filesystem::path(to) / "model.safetensors", layout, read_values(hub),
                    hub.context().file_type());
  write_hub_texts(to, layout, from);
  return to;
}

/// What a packed weight stands for.
test::Values values_of(const Packed& packed) {
  std::vector<float> values(static_cast<size_t>(packed.rows * packed.cols));
  kernels::dequantize(Queue{},
                      {.y = make_tensor(values.data(), {packed.rows, packed.cols}, DType::f32), .x = packed});
  return {values.begin(), values.end()};
}

/// Makes the weights of a run what another one holds packed.
struct SetWeights {
  std::map<std::string, test::Values> values;
  std::unique_ptr<StepHook> remember(Session& s) {
    for (const auto& p : s.params.all())
      if (p->stored_format) values[p->name] = values_of(p->packed);
    return nullptr;
  }
  std::unique_ptr<StepHook> set(Session& s) {
    for (const auto& [name, v] : values) {
      test::write(s.params.at(name).value, v);
      ++s.params.at(name).version;
    }
    return nullptr;
  }
};

TEST(Adapters, AdaptersBesidePackedWeightsLearnWhatTheyWouldBesideTheirValues) {
  const TempDir folder;
  const std::string model = model_directory(folder);
  SetWeights weights;
  using Gradients = std::vector<std::vector<double>>;
  const auto run = [&](const char* method, const auto& start, Gradients& gradients) {
    return tiny_run(
        finetune_recipe(method, from_directory(model)), 1, 1, 1 << 20,
        [&](Session& s, int64_t) {
          for (const auto& p : s.params.all())
            if (p->trainable) gradients.push_back(test::read(p->grad));
        },
        DeviceKind::cpu, start);
  };
  Gradients packed, plain;
  const TinyResult a = run(
      packed_lora, [&](Session& s) { return weights.remember(s); }, packed);
  const TinyResult b = run(
      lora, [&](Session& s) { return weights.set(s); }, plain);
  EXPECT_EQ(weights.values.size(), 4u * 7u);
  ASSERT_EQ(packed.size(), 6u * 4u * 7u * 2u);
  // The same numbers are multiplied; what is summed up in another order differs by rounding.
  for (size_t i = 0; i < packed.size(); ++i) EXPECT_LT(test::relative_error(packed[i], plain[i]), 2e-6) << i;
  for (size_t i = 0; i < a.losses.size(); ++i) EXPECT_NEAR(a.losses[i], b.losses[i], 1e-5);
}

TEST(Adapters, ADirectoryOfPackedWeightsAndOneThatIsPackedAsItIsLoadedTrainAlike) {
  const TempDir folder;
  const std::string model = model_directory(folder);
  for (const std::string format : {"mxfp4", "int8_row", "nvfp4"}) {
    const std::string method = "{method: lora, rank: 4, alpha: 8, base_format: " + format + "}";
    const TinyResult loaded = tiny_run(finetune_recipe(method, from_directory(model))),
                     stored = tiny_run(
                         finetune_recipe(lora, from_directory(packed_directory(model, format.c_str()))));
    EXPECT_EQ(loaded.losses, stored.losses) << format;
    EXPECT_EQ(loaded.parameters, stored.parameters) << format;
    const TinyResult ranks = tiny_run(finetune_recipe(method, from_directory(model), 2), 2);
    for (size_t i = 0; i < loaded.losses.size(); ++i)
      EXPECT_NEAR(loaded.losses[i], ranks.losses[i], 2e-5) << format;
  }
}

TEST(Adapters, PackedWeightsTakeTheMemoryOfTheirFormatAndNoCopyIsKept) {
  const TempDir folder;
  const Overrides base = from_directory(model_directory(folder));
  const auto bytes = [&](const char* method, std::map<std::string, int64_t>& all) {
    for (const MemoryCategory& c :
         plan_memory(finetune_recipe(method, base), 0, 1, 1, test::test_device().kind))
      all[c.name] = c.bytes;
  };
  std::map<std::string, int64_t> plain, packed;
  bytes(lora, plain);
  bytes(packed_lora, packed);
  // Four layers of q (64, 64), k and v (32, 64), o (64, 64), gate and up (96, 64), down (64, 96): four bits,
  // and a byte for each 32, where there were four bytes.
  constexpr int64_t matrices = 4 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 96);
  EXPECT_EQ(plain["parameters"] - packed["parameters"], matrices * 4 - matrices * 17 / 32);
  EXPECT_EQ(packed["packed weights"], 0) << "a copy beside the weights";
  const TinyResult r = tiny_run(finetune_recipe(packed_lora, base));
  for (const MemoryCategory& m : r.memory)
    if (m.name != "token buffers") {
      EXPECT_NEAR(static_cast<double>(m.bytes), static_cast<double>(packed[m.name]),
                  0.05 * static_cast<double>(packed[m.name]))
          << m.name;
    }
}

/// The last checkpoint of a run from `model` into `out`, and its final parameters by name; packed: what they
/// stand for.
struct Finished {
  std::filesystem::path checkpoint;
  std::map<std::string, std::vector<double>> values;
  std::vector<AdapterNames> adapters;

  Finished(const std::string& method, const std::string& model, const TempDir& out,
           const Overrides& more = {})
      : checkpoint(out.path() / "tiny" / "checkpoints" / "step-00000006") {
    Overrides o = from_directory(model);
    o.push_back("run.output_dir=" + out.path().string());
    o.push_back("checkpoint.every_steps=null");
    o.insert(o.end(), more.begin(), more.end());
    const Recipe recipe = finetune_recipe(method, o);
    const Outcome trained = train_with_checkpoints(recipe, *make_self_comm());
    Session session(recipe, *make_self_comm(), Queue{}, {});
    session.initialize();
    for (size_t i = 0; i < trained.parameters.size(); ++i) {
      const Parameter& p = *session.params.all()[i];
      values[p.name] = p.stored_format ? values_of(p.packed) : trained.parameters[i];
    }
    adapters = session.finetuning->adapters();
  }
};

TEST(Adapters, ACheckpointIsWhatTheForwardPassComputes) {
  const TempDir folder;
  const std::string model = model_directory(folder);
  for (const char* method :
       {lora, packed_lora, dora, "{method: dora, rank: 4, alpha: 8, base_format: nvfp4}"}) {
    SCOPED_TRACE(method);
    const TempDir out;
    Finished run(method, model, out);
    const HubModel hub(run.checkpoint);
    EXPECT_EQ(hub.quantization(), nullptr);
    const ReadParameter read = read_values(hub);
    EXPECT_EQ(run.adapters.size(), 4u * 7u);
    for (const AdapterNames& names : run.adapters) {
      const std::vector<double> expected = merged_by_hand(run.values, names);
      std::vector<float> found(expected.size());
      read(names.weight, 0, make_tensor(found.data(), {static_cast<int64_t>(found.size())}, DType::f32));
      EXPECT_LT(test::largest_difference({found.begin(), found.end()}, expected), 1e-6) << names.weight;
    }
    int others = 0;
    for (const auto& [name, value] : run.values) {
      const bool adapted = std::any_of(run.adapters.begin(), run.adapters.end(),
                                       [&, &of = name](const AdapterNames& a) { return a.weight == of; });
      if (adapted || name.find(".lora_") != std::string::npos) continue;
      std::vector<float> found(value.size());
      read(name, 0, make_tensor(found.data(), {static_cast<int64_t>(found.size())}, DType::f32));
      EXPECT_EQ(std::vector<double>(found.begin(), found.end()), value) << name;
      ++others;
    }
    EXPECT_EQ(others, 2 + 1 + 4 * 2) << "embedding and head, norms";
  }
}

TEST(Adapters, ResumingBesidePackedWeightsIsExact) {
  const TempDir folder;
  const std::string model = model_directory(folder);
  const auto compare = [&](const char* method, const Overrides& base) {
    const Outcome whole = train_in_stages(method, base, {{1, 8}}),
                  resumed = train_in_stages(method, base, {{1, 3}, {1, 8}});
    EXPECT_EQ(whole.losses, resumed.losses);
    EXPECT_EQ(whole.parameters, resumed.parameters);
  };
  compare(packed_lora, from_directory(model));
  compare(lora, from_directory(packed_directory(model)));
}

TEST(Adapters, PackedWeightsThatDoNotFitAreRefused) {
  const TempDir folder;
  const std::string model = model_directory(folder), packed = packed_directory(model);
  const auto said = [](const std::string& method, const std::string& path, const Overrides& more = {}) {
    return test::refusal([&] {
      Overrides o = from_directory(path);
      o.insert(o.end(), more.begin(), more.end());
      plan_memory(finetune_recipe(method, o), 0, 1, 1, DeviceKind::cpu);
    });
  };
  const auto expect = [](const std::string& text, const char* part) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  };
  expect(said("{method: lora, base_format: mxfp3}", model), "'mxfp3' is no format; there are mxfp4,");
  expect(said("{method: lora, base_format: int4_g128}", model),
         "finetune.base_format] does not fit the model");
  expect(said(packed_lora, model, {"quant=[{preset: weight_only}]"}), "drop one of them");
  expect(said(packed_lora, packed), "holds its weights packed already; drop the key");
  expect(said("{method: full}", packed), "packed weights do not train");
  expect(said(lora, packed, {"quant=[{preset: weight_only}]"}), "which are packed already");
  expect(said(lora, packed_directory(model, "mxfp4", true)), "packed for inputs that are rounded as well");
}

TEST(Adapters, AsFilesAreTheMastersUnderTheNamesOfPeft) {
  const TempDir folder;
  const std::string model = model_directory(folder);
  for (const std::string method : {"lora", "dora"})
    for (const char* format : {"", ", base_format: mxfp4"}) {
      SCOPED_TRACE(method + format);
      const TempDir out, to;
      Finished run("{method: " + method + ", rank: 4, alpha: 6, rank_stabilized: true" + format + "}", model,
                   out);
      const AdapterExport done = export_adapters(run.checkpoint, "", to.path());
      EXPECT_EQ(done.base, model);
      EXPECT_EQ(done.matrices, 4 * 7);
      const SafetensorsFile file(to / "adapter_model.safetensors");
      EXPECT_EQ(file.tensors().size(), 4u * 7u * (method == "dora" ? 3u : 2u));
      const auto stored = [&](const std::string& name, const std::vector<int64_t>& shape) {
        const StoredTensor* t = file.find("base_model.model.model.layers.2." + name);
        EXPECT_NE(t, nullptr) << name;
        EXPECT_EQ(t->shape, shape) << name;
        std::vector<float> v(static_cast<size_t>(t->numel()));
        file.read(*t, 0, make_tensor(v.data(), {t->numel()}, DType::f32));
        return std::vector<double>(v.begin(), v.end());
      };
      EXPECT_EQ(stored("mlp.down_proj.lora_A.weight", {4, 96}),
                run.values.at("layers.2.mlp.down.lora_a.weight"));
      EXPECT_EQ(stored("mlp.down_proj.lora_B.weight", {64, 4}),
                run.values.at("layers.2.mlp.down.lora_b.weight"));
      if (method == "dora") {
        const auto lengths = stored("mlp.down_proj.lora_magnitude_vector", {64});
        const auto &w = run.values.at("layers.2.mlp.down.weight"),
                   &change = run.values.at("layers.2.mlp.down.lora_magnitude.weight");
        for (size_t r = 0; r < 64; ++r) {
          double sum = 0;
          for (size_t c = 0; c < 96; ++c) sum += w[r * 96 + c] * w[r * 96 + c];
          EXPECT_NEAR(lengths[r], std::sqrt(sum) + change[r], 1e-6);
        }
      }
      const nlohmann::json config = read_json(to / "adapter_config.json", 1 << 20, 8);
      EXPECT_EQ(config["peft_type"], "LORA");
      EXPECT_EQ(config["r"], 4);
      EXPECT_EQ(config["lora_alpha"], 6);
      EXPECT_EQ(config["use_rslora"], true);
      EXPECT_EQ(config["use_dora"], method == "dora");
      EXPECT_EQ(config["base_model_name_or_path"], model);
      EXPECT_EQ(config["target_modules"], nlohmann::json({"down_proj", "gate_proj", "k_proj", "o_proj",
                                                          "q_proj", "up_proj", "v_proj"}));
    }
}

TEST(Adapters, OfSomeLayersAreNamedOneByOne) {
  const TempDir folder, out, to;
  Finished run("{method: lora, rank: 4, targets: 'layers.{0,3}.attn.q.weight'}", model_directory(folder),
               out);
  export_adapters(run.checkpoint, "somewhere", to.path());
  const nlohmann::json config = read_json(to / "adapter_config.json", 1 << 20, 8);
  EXPECT_EQ(config["target_modules"],
            nlohmann::json({"model.layers.0.self_attn.q_proj", "model.layers.3.self_attn.q_proj"}));
  EXPECT_EQ(config["base_model_name_or_path"], "somewhere");
}

TEST(Adapters, ARunGoesOnFromFilesWhereTheirRunEnded) {
  const TempDir folder;
  const std::string model = model_directory(folder);
  for (const std::string method : {"{method: lora, rank: 4, alpha: 8", "{method: dora, rank: 4, alpha: 8",
                                   "{method: dora, rank: 4, alpha: 8, base_format: mxfp4"})
    for (const char* precision : {"fp32", "bf16"}) {
      SCOPED_TRACE(method + " " + precision);
      const TempDir out, to;
      Finished run(method + "}", model, out);
      export_adapters(run.checkpoint, "", to.path());
      Overrides o = from_directory(model);
      o.push_back(std::string("train.precision=") + precision);
      Session session(finetune_recipe(method + ", adapter: " + to.path().string() + "}", o),
                      *make_self_comm(), Queue{}, {});
      session.initialize();
      const bool rounds = precision == std::string("bf16");
      for (const Updater::Group& g : session.updater->groups())
        for (const ParamPiece& p : g.pieces) {
          const auto& wanted = run.values.at(std::string(p.name));
          EXPECT_LT(test::largest_difference(test::read(p.master), wanted), 1e-6) << p.name;
          EXPECT_LT(test::relative_error(test::read(p.value), wanted), rounds ? 4e-3 : 1e-5) << p.name;
        }
    }
}

TEST(Adapters, ARunGoesOnBesideTheModelThatItStartedFromAlone) {
  const TempDir folder, other_folder, out, to;
  const std::string model = model_directory(folder);
  Finished run("{method: dora, rank: 4, alpha: 8}", model, out);
  Overrides o = {"run.output_dir=" + other_folder.path().string(), "run.name=other", "run.seed=4",
                 "checkpoint.every_steps=null"};
  train_with_checkpoints(finetune_recipe("{method: full}", o), *make_self_comm());
  const std::string other = (other_folder.path() / "other" / "checkpoints" / "step-00000006").string();
  Overrides longer = from_directory(other);
  longer.insert(longer.end(),
                {"run.output_dir=" + out.path().string(), "checkpoint.every_steps=null", "train.steps=9"});
  const std::string resumed = test::refusal([&] {
    train_with_checkpoints(finetune_recipe("{method: dora, rank: 4, alpha: 8}", longer), *make_self_comm());
  });
  EXPECT_NE(resumed.find("was trained beside another model than model.path"), std::string::npos) << resumed;
  const std::string exported = test::refusal([&] { export_adapters(run.checkpoint, other, to.path()); });
  EXPECT_NE(exported.find("is not the model that the run started from"), std::string::npos) << exported;
}

TEST(Adapters, FilesThatDoNotFitTheRecipeAreRefused) {
  const TempDir folder, out, to;
  const std::string model = model_directory(folder);
  Finished run("{method: lora, rank: 4, alpha: 8}", model, out);
  export_adapters(run.checkpoint, "", to.path());
  const auto said = [&](const std::string& method, const std::filesystem::path& from) {
    return test::refusal([&] {
      Session session(
          finetune_recipe("{" + method + ", adapter: " + from.string() + "}", from_directory(model)),
          *make_self_comm(), Queue{}, {});
      session.initialize();
    });
  };
  const auto expect = [](const std::string& text, const char* part) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  };
  EXPECT_EQ(said("method: lora, rank: 4, alpha: 8", to.path()), "accepted");
  expect(said("method: lora, rank: 8, alpha: 8", to.path()), "for finetune.rank: 4, the recipe says 8");
  expect(said("method: lora, rank: 4, alpha: 16", to.path()), "for finetune.alpha: 8, the recipe says 16");
  expect(said("method: dora, rank: 4, alpha: 8", to.path()),
         "for finetune.method: lora, the recipe says dora");
  expect(said("method: lora, rank: 4, alpha: 8, rank_stabilized: true", to.path()),
         "for finetune.rank_stabilized");
  expect(said("method: lora, rank: 4, alpha: 8, targets: 'layers.*.attn.q.weight'", to.path()),
         "adapts nothing that finetune.targets matches");
  expect(said("method: lora, rank: 4, alpha: 8", model),
         "name a directory that PEFT or osprey export --to peft wrote");
}

TEST(Adapters, ConfigurationsThatMeanMoreAreRefusedByKey) {
  const auto said = [](const std::string& more) {
    return test::refusal([&] {
      parse_adapter_config("c.json", R"({"peft_type": "LORA", "r": 8, "lora_alpha": 16)" + more + "}");
    });
  };
  EXPECT_EQ(said(""), "accepted");
  EXPECT_EQ(
      said(
          R"(, "use_dora": true, "rank_pattern": {}, "modules_to_save": null, "bias": "none", "lora_dropout": 0.0)"),
      "accepted");
  for (const char* more :
       {R"(, "lora_dropout": 0.1)", R"(, "bias": "all")", R"(, "rank_pattern": {"q_proj": 4})",
        R"(, "modules_to_save": ["lm_head"])", R"(, "init_lora_weights": "pissa")",
        R"(, "fan_in_fan_out": true)", R"(, "use_dora": 1)"}) {
    const std::string key(more + 3, std::string(more).find('"', 3) - 3);
    EXPECT_NE(said(more).find(key), std::string::npos) << said(more);
  }
  for (const char* text :
       {"[]", "{}", R"({"peft_type": "IA3"})", R"({"peft_type": "LORA", "r": -1, "lora_alpha": 1})",
        R"({"peft_type": "LORA", "r": 1e9, "lora_alpha": 1})", R"({"peft_type": "LORA", "r": 8})"})
    EXPECT_NE(test::refusal([&] { parse_adapter_config("c.json", text); }).find("c.json"), std::string::npos)
        << text;
}

TEST(Adapters, FuzzedConfigurationsAreReadOrRefused) {
  const std::string valid =
      R"({"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16.5, "use_rslora": true, "use_dora": false,
          "target_modules": ["q_proj", "v_proj"], "bias": "none", "rank_pattern": {}, "init_lora_weights": true})";
  const test::FuzzCount count =
      test::fuzz({valid}, {"\"r\":", "null", "1e999", "-1", "{}", "[", "\"LORA\"", "\\ud800"},
                 [](const std::string& text) { parse_adapter_config("c.json", text); });
  EXPECT_GT(count.accepted, 0);
  EXPECT_GT(count.refused, 0);
}

TEST(Adapters, ThatAreNotThereOrLackTheirBaseAreRefused) {
  const TempDir folder, out, to;
  const std::string model = model_directory(folder);
  const auto said = [&](const std::filesystem::path& from, const std::string& base) {
    return test::refusal([&] { export_adapters(from, base, to.path()); });
  };
  EXPECT_NE(said(model, "").find("was trained without adapters"), std::string::npos) << said(model, "");
  Finished run("{method: dora, rank: 4}", model, out);
  EXPECT_NE(said(run.checkpoint, "nowhere").find("name the directory that the run started from with --base"),
            std::string::npos);
  std::filesystem::remove(run.checkpoint / "recipe.yaml");
  EXPECT_NE(said(run.checkpoint, "").find("holds no adapters, only a model"), std::string::npos);
}

}  // namespace
}  // namespace osprey
