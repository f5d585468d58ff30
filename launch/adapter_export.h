#pragma once
// Adapters as files of their own, in the layout of the PEFT library.

#include <filesystem>
#include <string>

#include "framework/files/file.h"

namespace osprey {

struct AdapterExport {
  FileRecord file;          // adapter_model.safetensors
  std::string base;         // the directory that they adapt
  std::string base_format;  // in which its weights were packed in training; empty: not
  int64_t matrices = 0;
};

/// Writes adapter_model.safetensors (F32) and adapter_config.json of a checkpoint with adapters into `to`:
///   base_model.model.MODULE.lora_A.weight (rank, in), lora_B.weight (out, rank), and with dora
///   lora_magnitude_vector (out), for each adapted MODULE by its name in transformers.
/// `base`: the directory that the run started from; empty: the one that its recipe names. Only dora reads it,
/// for the lengths of its rows. Numerics: from the fp32 masters where the checkpoint has them. Errors: a
/// checkpoint without adapters; a model that transformers does not compute, or holds as other matrices.
/// Reference: PEFT 0.15, LoraConfig.
AdapterExport export_adapters(const std::filesystem::path& checkpoint, const std::string& base,
                              const std::filesystem::path& to);

}  // namespace osprey
