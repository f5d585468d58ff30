#pragma once
// Adapters as files of their own, in the layout of the PEFT library: adapter_config.json, and
// adapter_model.safetensors with
//   base_model.model.MODULE.lora_A.weight (rank, in), lora_B.weight (out, rank), and with dora
//   lora_magnitude_vector (out), whole lengths, for each adapted MODULE by its name in transformers.
// Reference: PEFT 0.15, LoraConfig.

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "framework/files/file.h"
#include "framework/finetune/adapters.h"
#include "framework/train/updater.h"
#include "launch/recipe.h"

namespace osprey {

struct AdapterExport {
  FileRecord file;          // adapter_model.safetensors
  std::string base;         // the directory that they adapt
  std::string base_format;  // in which its weights were packed in training; empty: not
  int64_t matrices = 0;
};

/// Writes the adapters of a checkpoint into `to`, in F32.
/// `base`: the directory that the run started from; empty: the one that its recipe names. Only dora reads it,
/// for the lengths of its rows. Numerics: from the fp32 masters where the checkpoint has them. Errors: a
/// checkpoint without adapters; a model that transformers does not compute, or holds as other matrices.
AdapterExport export_adapters(const std::filesystem::path& checkpoint, const std::string& base,
                              const std::filesystem::path& to);

/// What adapter_config.json says that the values do not.
struct AdapterConfig {
  int64_t rank = 0;
  double alpha = 0;
  bool rank_stabilized = false, lengths = false;  // rsLoRA, DoRA
};
/// `where` names the file. Errors: no configuration of LoRA; options that change what adapters mean and that
/// Osprey does not compute, by key.
AdapterConfig parse_adapter_config(const std::string& where, std::string_view text);

/// Are there files in finetune.adapter, and does their configuration fit the recipe?
/// Errors: they are not there; a configuration that is not the recipe's.
void check_adapter_files(const FinetuneSpec& finetune);
/// Sets the adapters of a run, values and masters, to those of finetune.adapter.
/// Errors: as check_adapter_files(); tensors that are missing, unknown, of other shapes, or
/// not finite.
void load_adapters(const Queue& queue, const Recipe& recipe, const std::vector<AdapterNames>& adapters,
                   ParamStore& params, Updater& updater);

}  // namespace osprey
