#include "launch/loaded_model.h"

#include "framework/checkpoint/directory.h"
#include "framework/files/mapped_file.h"
#include "launch/data_source.h"
#include "launch/memory_check.h"

namespace osprey {

namespace fs = std::filesystem;

/// On the CPU address space; on a GPU memory, of which parameters and caches need some as well.
static int64_t activation_capacity(Device device) {
  return device.kind == DeviceKind::cuda ? kernels::gpu_info(device.index).free_bytes / 2 : int64_t{64} << 30;
}

fs::path checkpoint_of(const fs::path& given) {
  require(fs::is_directory(given), "checkpoint",
          "{} is not a directory; give a checkpoint or a run that osprey train wrote", given.string());
  if (fs::exists(given / "config.json")) return given;
  const auto published = list_checkpoints(given / "checkpoints");
  require(!published.empty(), "checkpoint",
          "{} is neither a checkpoint (no config.json) nor a run with a complete checkpoint; give one that "
          "osprey train wrote",
          given.string());
  return published.back().path;
}

fs::path run_of(const fs::path& checkpoint) {
  const fs::path checkpoints = fs::absolute(checkpoint).lexically_normal().parent_path();
  const fs::path run = checkpoints.parent_path();
  return checkpoints.filename() == "checkpoints" && fs::exists(run / "metrics.jsonl") ? run : fs::path();
}

/// Declares the model as this directory stores it, on `device`.
static std::unique_ptr<QuantSchemes> declare(const HubModel& hub, LanguageModel& model, ParamStore& params,
                                             Device device) {
  model.declare(params);
  std::unique_ptr<QuantSchemes> schemes;
  if (const QuantizationConfig* config = hub.quantization()) {
    hub.declare_packed(params);
    try {
      schemes = std::make_unique<QuantSchemes>(config->groups, params, config->seed);
    } catch (const Error& e) {
      fail((hub.tensors().path() / "config.json").string(), "quantization_config does not fit the model: {}",
           e.what());
    }
  }
  params.materialize(device, hub.context().dtype, ParamStore::Gradients::off);
  if (schemes) schemes->activate(0);
  return schemes;
}

LoadedModel::LoadedModel(const fs::path& given, int threads, Device device)
    : path(checkpoint_of(given)),
      hub(path),
      open(kernels::open_queue(device, threads)),
      queue(open.queue),
      activation_capacity_bytes(activation_capacity(device)),
      activations("activations", queue.device, activation_capacity_bytes),
      pool("activation gradients", queue.device),
      tape(queue, activations, pool) {
  if (fs::exists(path / "manifest.json")) verify_files(path, read_manifest(path));
  model = make_model(hub.spec(), std::max<int64_t>(1, hub.context().sequence_len));
  schemes = declare(hub, *model, params, queue.device);
  hub.load(queue, params);
  tape.set_mode(Tape::Mode::evaluate);
  tokenizer = load_tokenizer(path.string());
  require(
      tokenizer->vocab_size() <= hub.spec().vocab_size, path.string(),
      "the tokenizer has {} tokens, but the model only {}; put the tokenizer that the model was trained with "
      "beside it",
      tokenizer->vocab_size(), hub.spec().vocab_size);
}

void LoadedModel::require_unpacked(const char* what) const {
  require(!schemes, "checkpoint",
          "the weights of {} are packed, and {}; take the checkpoint that they were made of", path.string(),
          what);
}

void require_evaluation_memory(const LoadedModel& loaded, int64_t rows, int64_t sequence_len) {
  const Queue meta{
      .device = {DeviceKind::meta, 0}, .threads = loaded.queue.threads, .planned = loaded.queue.device.kind};
  const auto model = make_model(loaded.hub.spec(), sequence_len);
  ParamStore params;
  const auto schemes = declare(loaded.hub, *model, params, meta.device);
  Arena activations("activations", meta.device, 0), tokens("token buffers", meta.device, 0);
  Pool pool("activation gradients", meta.device);
  Tape tape(meta, activations, pool);
  tape.set_mode(Tape::Mode::evaluate);
  auto make = [&] { return tokens.alloc({rows, sequence_len}, DType::i32); };
  const BatchView batch{.tokens = make(), .targets = make(), .positions = make(), .document_start = make()};
  model->loss(tape, batch, {.grad_scale = {}, .sums = tokens.alloc({2}, DType::f64)});
  const int64_t needed = activations.high_water_bytes() + tokens.high_water_bytes(),
                available = loaded.queue.device.kind == DeviceKind::cuda
                                ? loaded.activation_capacity_bytes
                                : std::min(available_memory_bytes(), loaded.activation_capacity_bytes);
  require(needed <= available, "memory",
          "{} sequences of {} tokens at a time take {:.2f} GiB of activations, there are {:.2f} GiB; "
          "evaluate fewer sequences at a time or shorter ones",
          rows, sequence_len, static_cast<double>(needed) / (1 << 30),
          static_cast<double>(available) / (1 << 30));
}

void use_template_of(const fs::path& checkpoint, DataSpec& spec) {
  spec.tokenizer = checkpoint.string();
  if (spec.chat_template.ends_with(".jinja")) spec.chat_template = "auto";
}

std::unique_ptr<ValidationData> validation_data(const LoadedModel& loaded,
                                                const std::vector<std::string>& data, int64_t sequence_len,
                                                int64_t max_tokens) {
  Recipe recipe;
  if (fs::exists(loaded.path / "recipe.yaml"))
    recipe = read_recipe((loaded.path / "recipe.yaml").string(), {});
  DataSpec& spec = recipe.data;
  if (!data.empty()) {
    spec.validation.clear();
    spec.validation_fraction = 0;
    for (const std::string& path : data) {
      SourceSpec source;
      source.path = path;
      spec.validation.push_back(source);
      require(source.instructions() == spec.validation.front().instructions(), "eval",
              "--data mixes token shards and instruction data; give one kind at a time");
    }
  }
  spec.sequence_len = sequence_len;
  use_template_of(loaded.path, spec);
  const auto& sources = spec.validation_fraction > 0 ? spec.train : spec.validation;
  require(!sources.empty(), "eval", "{} names no validation data; give --data 'shards-*'",
          loaded.path.string());
  if (data.empty())
    for (const SourceSpec& source : sources)
      require(!glob_paths(source.path + ".bin").empty() || !glob_paths(source.path).empty(), "eval",
              "no file matches {}, where the recipe of {} has its validation data; start in the folder "
              "that the recipe's paths begin in, or give --data 'shards-*'",
              source.path, loaded.path.string());
  return open_validation(spec, loaded.tokenizer, loaded.hub.spec().vocab_size,
                         static_cast<uint64_t>(recipe.run.seed), loaded.queue.threads, max_tokens);
}

StagedBatch::StagedBatch(const Queue& queue, const ValidationData& data, int64_t rows)
    : queue_(queue),
      host_memory_("token buffers", {}, 4 * rows * (data.spec().sequence_len * 4 + 64)),
      memory_("token buffers", queue.device, 4 * rows * (data.spec().sequence_len * 4 + 64)) {
  const auto make = [&](Arena& arena) {
    const auto one = [&] { return arena.alloc({rows, data.spec().sequence_len}, DType::i32); };
    BatchView view{.tokens = one(), .targets = one(), .positions = one(), .document_start = {}};
    if (data.spec().documents_apart()) view.document_start = one();
    return view;
  };
  host_ = make(host_memory_);
  view_ = make(memory_);
}

const BatchView& StagedBatch::fill(ValidationData& data, int64_t first) {
  data.batch(first, host_);
  for (Tensor BatchView::*t :
       {&BatchView::tokens, &BatchView::targets, &BatchView::positions, &BatchView::document_start})
    if ((view_.*t).defined()) kernels::upload(queue_, view_.*t, (host_.*t).data);
  return view_;
}

}  // namespace osprey
