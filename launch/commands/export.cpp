#include <unistd.h>

#include <charconv>
#include <filesystem>
#include <memory>

#include "framework/checkpoint/directory.h"
#include "framework/checkpoint/gguf_tokenizer.h"
#include "framework/checkpoint/shards.h"
#include "launch/adapter_files.h"
#include "launch/commands/command.h"
#include "launch/loaded_model.h"
#include "launch/recipe.h"
#include "models/hf/hub_model.h"
#include "models/llama/gguf.h"

namespace osprey {

namespace {

namespace fs = std::filesystem;

struct Options {
  std::string checkpoint, to = "hf", output, dtype, type, shard_size, base;
};

/// Are there masters of every parameter? Weights with adapters have none, nor layers that sleep, unless their
/// state does so with them.
bool has_all_masters(const FinetuneSpec& f) {
  return (!f.takes_turns() || f.reference) && !f.adapts() && f.trains(f.train_embedding) &&
         f.trains(f.train_head) && f.trains(f.train_final_norm);
}

/// What is exported, opened and checked.
struct Source {
  explicit Source(const fs::path& directory)
      : from(directory), hub(from), spec(hub.spec()), context(hub.context()) {
    require(
        !hub.quantization(), "export",
        "the weights of {} are packed as only Osprey reads them; export the checkpoint that they were made "
        "of",
        from.string());
    const auto beyond = beyond_transformers(spec);
    require(!beyond, "export",
            "no architecture of transformers computes {}; {} itself is what Osprey loads (osprey eval, "
            "osprey generate)",
            beyond.value_or(""), from.string());
  }
  /// Checks the files, and for fp32 takes the masters where the checkpoint has them.
  void prepare(bool fp32) {
    if (fs::exists(from / "manifest.json")) verify_files(from, read_manifest(from));
    widened = fp32 && hub.context().dtype == DType::bf16;
    if (!widened || !fs::exists(from / shard_name(0))) return;
    const Recipe recipe = read_recipe((from / "recipe.yaml").string());
    if (recipe.train.masters == Masters::none || !has_all_masters(recipe.finetune)) return;
    if (recipe.model_path.empty()) spec = recipe.model;
    masters = std::make_unique<ShardIndex>(from);
  }
  ReadParameter read() const { return masters ? read_masters(*masters) : read_values(hub); }
  /// Where the values come from, where that is not plain.
  std::string origin() const {
    if (masters) return ", from the fp32 masters";
    return widened ? fmt::format(", widened from {} (no masters here)", name(hub.context().file_type())) : "";
  }

  fs::path from;
  HubModel hub;
  ModelSpec spec;
  HubContext context;
  bool widened = false;
  std::unique_ptr<ShardIndex> masters;
};

/// "2GB" as bytes, 5 GB where nothing is said. Errors: no number with MB or GB behind it.
int64_t shard_bytes(const std::string& text) {
  if (text.empty()) return 5'000'000'000;
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const std::string unit(static_cast<const char*>(end), text.data() + text.size());
  require(error == std::errc() && value > 0 && value < 1'000'000 && (unit == "MB" || unit == "GB"), "export",
          "--shard-size must be a number of MB or GB such as 5GB, not '{}'", text);
  return value * (unit == "GB" ? 1'000'000'000 : 1'000'000);
}

void export_hf(const Options& options) {
  require(options.type.empty(), "export", "--type is for --to gguf; --to hf has --dtype");
  const int64_t shard = shard_bytes(options.shard_size);
  const fs::path to = options.output;
  require(to.extension() != ".gguf", "export",
          "{} is the name of a GGUF file, and --to hf writes a directory; add --to gguf", to.string());
  Source source(checkpoint_of(options.checkpoint));
  require_new_directory("export", source.from, to);
  HubContext context = source.context;
  if (!options.dtype.empty()) {
    context.dtype = options.dtype == "f32" ? DType::f32 : DType::bf16;
    context.stored_as.reset();
    if (options.dtype == "f16") context.stored_as = StoredType::f16;
  }
  const StoredType type = context.file_type();
  source.prepare(type == StoredType::f32);
  const HubLayout layout = hub_layout(source.spec, context);
  PartialDirectory partial(to);
  const std::vector<FileRecord> files =
      write_hub_model(Queue{}, partial.path(), layout, source.read(), type, shard);
  write_hub_texts(partial.path(), layout, source.from);
  partial.publish(PartialDirectory::Manifest::left_out);
  int64_t bytes = 0;
  for (const FileRecord& file : files) bytes += file.size_bytes;
  fmt::print("{}: {} tensors, {:.1f} MB of {}{}{}\n", to.string(), layout.tensors.size(),
             static_cast<double>(bytes) / 1e6, name(type),
             files.size() > 1 ? fmt::format(" in {} shards", files.size() - 1) : "", source.origin());
}

GgufType gguf_type(const std::string& word, StoredType otherwise) {
  if (word.empty())
    return otherwise == StoredType::f32   ? GgufType::f32
           : otherwise == StoredType::f16 ? GgufType::f16
                                          : GgufType::bf16;
  for (const GgufType type : {GgufType::f32, GgufType::f16, GgufType::bf16, GgufType::q8_0, GgufType::mxfp4})
    if (word == name(type)) return type;
  fail("export", "--type {} is unknown", word);
}

void export_gguf(const Options& options) {
  require(options.dtype.empty(), "export", "--dtype is for --to hf; --to gguf has --type");
  require(options.shard_size.empty(), "export", "--shard-size is for --to hf; a GGUF file is one");
  const fs::path to = fs::absolute(options.output);
  require(!fs::exists(to), "export", "{} exists; give the name of a new file such as model.gguf",
          to.string());
  Source source(checkpoint_of(options.checkpoint));
  const GgufType type = gguf_type(options.type, source.context.file_type());
  GgufKeys keys = gguf_keys(source.spec, source.context, to.stem().string(), type);
  add_gguf_tokenizer(keys, source.from, source.spec.vocab_size);
  source.prepare(type == GgufType::f32);
  fs::create_directories(to.parent_path());
  // Seen only when it is complete.
  const fs::path partial = fmt::format("{}.partial-{}", to.string(), getpid());
  FileRecord file;
  try {
    file = write_gguf(Queue{.device = {}, .threads = CheckpointOptions().threads}, partial, keys, source.spec,
                      source.context, type, source.read());
    fs::rename(partial, to);
  } catch (...) {
    std::error_code ignored;
    fs::remove(partial, ignored);
    throw;
  }
  sync_directory(to.parent_path());
  fmt::print("{}: {:.1f} MB of {}{}\n", options.output, static_cast<double>(file.size_bytes) / 1e6,
             name(type), source.origin());
  if (source.spec.attention.window > 0 && source.spec.attention.window < source.context.sequence_len)
    fmt::print(
        "note: llama.cpp has no sliding window for this model; its context_length is the window, {} tokens\n",
        source.spec.attention.window);
}

void export_peft(const Options& options) {
  require(options.dtype.empty() && options.type.empty() && options.shard_size.empty(), "export",
          "adapters are written in F32, one file; --dtype, --type and --shard-size are for whole models");
  const fs::path from = checkpoint_of(options.checkpoint), to = options.output;
  require_new_directory("export", from, to);
  if (fs::exists(from / "manifest.json")) verify_files(from, read_manifest(from));
  PartialDirectory partial(to);
  const AdapterExport done = export_adapters(from, options.base, partial.path());
  partial.publish(PartialDirectory::Manifest::left_out);
  fmt::print("{}: adapters of {} matrices, {:.1f} MB of F32, for {}\n", to.string(), done.matrices,
             static_cast<double>(done.file.size_bytes) / 1e6, done.base);
  if (!done.base_format.empty())
    fmt::print(
        "note: they were trained beside weights in {}; beside weights that are not packed they give another "
        "model\n",
        done.base_format);
}

}  // namespace

void add_export(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("export", "write a checkpoint's model as another program wants it");
  command
      ->add_option(
          "checkpoint", options->checkpoint,
          "a checkpoint, a run (its newest checkpoint), or a Hugging Face directory of a family that Osprey "
          "knows")
      ->required();
  command
      ->add_option("output", options->output,
                   "what to write, a directory (hf, peft) or a file (gguf): new, or empty")
      ->required();
  command
      ->add_option(
          "--to", options->to,
          "hf: a clean Hugging Face directory; gguf: one file for llama.cpp and its relatives; peft: the "
          "adapters of a lora or dora run alone, as the PEFT library reads them")
      ->check(CLI::IsMember({"hf", "gguf", "peft"}))
      ->capture_default_str();
  command
      ->add_option(
          "--type", options->type,
          "of the matrices of a GGUF file: f32, f16, bf16, q8_0 or mxfp4 (with embedding and head in "
          "q8_0); as in the checkpoint when absent")
      ->check(CLI::IsMember({"f32", "f16", "bf16", "q8_0", "mxfp4"}));
  command
      ->add_option("--dtype", options->dtype,
                   "bf16, f16 or f32; as in the checkpoint when absent. f32 starts from the fp32 "
                   "masters where the checkpoint has them")
      ->check(CLI::IsMember({"bf16", "f16", "f32"}));
  command->add_option(
      "--shard-size", options->shard_size,
      "the most a file of weights of --to hf holds, in MB or GB (10^6 or 10^9 bytes); 5GB when absent");
  command->add_option(
      "--base", options->base,
      "of --to peft: the directory that the run started from; as the recipe says when absent");
  command->footer(
      "Examples:\n  osprey export runs/osp/checkpoints/step-00000500 --to hf osp-hf\n"
      "  osprey export osp-hf --to gguf --type q8_0 osp.gguf\n"
      "  osprey export runs/finetune_lora --to peft adapter");
  command->callback([options] {
    require(options->base.empty() || options->to == "peft", "export", "--base is for --to peft");
    if (options->to == "peft") return export_peft(*options);
    options->to == "gguf" ? export_gguf(*options) : export_hf(*options);
  });
}

}  // namespace osprey
