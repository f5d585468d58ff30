#include <charconv>
#include <filesystem>
#include <memory>

#include "framework/checkpoint/directory.h"
#include "framework/checkpoint/shards.h"
#include "launch/commands/command.h"
#include "launch/loaded_model.h"
#include "launch/recipe.h"
#include "models/hf/hub_model.h"

namespace osprey {

namespace {

namespace fs = std::filesystem;

struct Options {
  std::string checkpoint, to = "hf", directory, dtype, shard_size = "5GB";
};

/// Parameters as the checkpoint's optimizer keeps them, in fp32.
ReadParameter read_masters(const ShardIndex& shards) {
  return [&shards](const std::string& name, int64_t begin, Tensor out) {
    const auto it = shards.tensors().find(name + ":master");
    require(it != shards.tensors().end(), "export", "{} holds no master of {}", shards.path().string(), name);
    shards.read({name, "master", it->second.shape, begin, begin + out.numel(), out.view({out.numel()})});
  };
}

/// Are there masters of every parameter? Layers that sleep and weights with adapters have none.
bool has_all_masters(const FinetuneSpec& f) {
  return !f.takes_turns() && !f.adapts() && f.trains(f.train_embedding) && f.trains(f.train_head) &&
         f.trains(f.train_final_norm);
}

/// "5GB" as bytes. Errors: no number with MB or GB behind it.
int64_t shard_bytes(const std::string& text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const std::string unit(static_cast<const char*>(end), text.data() + text.size());
  require(error == std::errc() && value > 0 && value < 1'000'000 && (unit == "MB" || unit == "GB"), "export",
          "--shard-size must be a number of MB or GB such as 5GB, not '{}'", text);
  return value * (unit == "GB" ? 1'000'000'000 : 1'000'000);
}

void export_hf(const Options& options) {
  const fs::path from = checkpoint_of(options.checkpoint), to = options.directory;
  const HubModel hub(from);
  require(
      !hub.quantization(), "export",
      "the weights of {} are packed as only Osprey reads them; export the checkpoint that they were made of",
      from.string());
  const auto beyond = beyond_transformers(hub.spec());
  require(!beyond, "export",
          "no architecture of transformers computes {}; {} itself is what Osprey loads (osprey eval, "
          "osprey generate)",
          beyond.value_or(""), from.string());
  require_new_directory("export", from, to);
  if (fs::exists(from / "manifest.json")) verify_files(from, read_manifest(from));

  HubContext context = hub.context();
  if (!options.dtype.empty()) {
    context.dtype = options.dtype == "f32" ? DType::f32 : DType::bf16;
    context.stored_as.reset();
    if (options.dtype == "f16") context.stored_as = StoredType::f16;
  }
  const bool widened = context.dtype == DType::f32 && hub.context().dtype == DType::bf16;
  HubLayout layout = hub_layout(hub.spec(), context);
  std::unique_ptr<ShardIndex> shards;
  bool from_masters = widened && fs::exists(from / shard_name(0));
  if (from_masters) {
    const Recipe recipe = load_recipe((from / "recipe.yaml").string(), {});
    from_masters = recipe.train.masters == Masters::kept && has_all_masters(recipe.finetune);
    if (from_masters) layout = hub_layout(recipe.model, context);
  }
  if (from_masters) {
    shards = std::make_unique<ShardIndex>(from);
  }
  PartialDirectory partial(to);
  const StoredType type = context.file_type();
  const std::vector<FileRecord> files =
      write_hub_model(Queue{}, partial.path(), layout, shards ? read_masters(*shards) : read_values(hub),
                      type, shard_bytes(options.shard_size));
  write_hub_texts(partial.path(), layout, from);
  partial.publish(PartialDirectory::Manifest::left_out);
  int64_t bytes = 0;
  for (const FileRecord& file : files) bytes += file.size_bytes;
  fmt::print("{}: {} tensors, {:.1f} MB of {}{}{}\n", to.string(), layout.tensors.size(),
             static_cast<double>(bytes) / 1e6, name(type),
             files.size() > 1 ? fmt::format(" in {} shards", files.size() - 1) : "",
             from_masters ? ", from the fp32 masters"
             : widened ? fmt::format(", widened from {} (no masters here)", name(hub.context().file_type()))
                       : "");
}

}  // namespace

void add_export(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("export", "write a checkpoint's model as another program wants it");
  command
      ->add_option(
          "checkpoint", options->checkpoint,
          "a checkpoint, a run (its newest checkpoint), or any Hugging Face directory of a family that Osprey knows")
      ->required();
  command->add_option("directory", options->directory, "what to write; must not exist, or be empty")
      ->required();
  command->add_option("--to", options->to, "hf: a clean Hugging Face directory")
      ->check(CLI::IsMember({"hf"}))
      ->capture_default_str();
  command
      ->add_option("--dtype", options->dtype,
                   "bf16, f16 or f32; as in the checkpoint when absent. f32 starts from the fp32 "
                   "masters where the checkpoint has them")
      ->check(CLI::IsMember({"bf16", "f16", "f32"}));
  command
      ->add_option("--shard-size", options->shard_size,
                   "the most a file of weights holds, in MB or GB (10^6 or 10^9 bytes)")
      ->capture_default_str();
  command->footer("Example:\n  osprey export runs/osp/checkpoints/step-00000500 --to hf osp-hf");
  command->callback([options] { export_hf(*options); });
}

}  // namespace osprey
