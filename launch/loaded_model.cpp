#include "launch/loaded_model.h"

#include "framework/checkpoint/directory.h"

namespace osprey {

namespace fs = std::filesystem;

fs::path checkpoint_of(const fs::path& given) {
  require(fs::is_directory(given), "checkpoint", "{} is not a directory", given.string());
  if (fs::exists(given / "config.json")) return given;
  const auto published = list_checkpoints(given / "checkpoints");
  require(!published.empty(), "checkpoint",
          "{} is neither a checkpoint (no config.json) nor a run with a complete checkpoint", given.string());
  return published.back().path;
}

fs::path run_of(const fs::path& checkpoint) {
  const fs::path checkpoints = fs::absolute(checkpoint).lexically_normal().parent_path();
  const fs::path run = checkpoints.parent_path();
  return checkpoints.filename() == "checkpoints" && fs::exists(run / "metrics.jsonl") ? run : fs::path();
}

LoadedModel::LoadedModel(const fs::path& given, int threads)
    : path(checkpoint_of(given)),
      hub(path),
      queue{.device = {}, .threads = threads},
      activations("activations", queue.device, int64_t{64} << 30),
      pool("activation gradients", queue.device),
      tape(queue, activations, pool) {
  if (fs::exists(path / "manifest.json")) verify_files(path, read_manifest(path));
  model = make_llama(hub.spec(), std::max<int64_t>(1, hub.context().sequence_len));
  model->declare(params);
  params.materialize(queue.device, hub.context().dtype, ParamStore::Gradients::off);
  hub.load(params);
  tape.set_mode(Tape::Mode::evaluate);
  tokenizer = load_tokenizer(path.string());
}

std::unique_ptr<ValidationLoader> validation_data(const LoadedModel& loaded,
                                                  const std::vector<std::string>& data,
                                                  int64_t sequence_len) {
  DataSpec spec;
  if (fs::exists(loaded.path / "recipe.yaml"))
    spec = load_recipe((loaded.path / "recipe.yaml").string(), {}).data;
  if (!data.empty()) {
    spec.validation.clear();
    for (const std::string& path : data) {
      SourceSpec source;
      source.path = path;
      spec.validation.push_back(source);
    }
  }
  require(!spec.validation.empty(), "eval", "{} names no validation data; give --data 'shards-*'",
          loaded.path.string());
  spec.sequence_len = sequence_len;
  return std::make_unique<ValidationLoader>(spec, *loaded.tokenizer, loaded.hub.spec().vocab_size);
}

BatchView make_batch(Arena& arena, const ValidationLoader& data, int64_t rows) {
  auto make = [&] { return arena.alloc({rows, data.spec().sequence_len}, DType::i32); };
  BatchView view{.tokens = make(), .targets = make(), .positions = make(), .document_start = {}};
  if (!data.spec().attention_across_documents) view.document_start = make();
  return view;
}

}  // namespace osprey
