#pragma once
// The Hugging Face half of a checkpoint: which tensors it has, as formulas over Osprey's parameters. Models
// say the formulas (models/hf/family.h), this file carries them out.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "framework/checkpoint/safetensors.h"
#include "kernels/quantize.h"

namespace osprey {

/// How a tensor is quantized on its way into the file.
struct HubPacking {
  BlockFormat format;
  ScaleRule scale = ScaleRule::even;
  kernels::Rotation rotation = {};
  std::string step = {};  // the parameter that holds its learnt step sizes; empty: none
  Shape step_shape = {};
};

/// Names of the tensors that a packed weight is stored as; framework/quant/packed_checkpoint.h.
struct PackedNames {
  explicit PackedNames(const std::string& weight)
      : codes(weight + "_packed"), scales(weight + "_scale"), tensor_scale(weight + "_global_scale") {}
  std::string codes, scales, tensor_scale;
};

/// One tensor of the exported model; a packed one is stored as the two or three of PackedNames.
struct HubTensor {
  enum class Rule {
    copy,              // a, and those below it
    transposed,        // the transpose of that
    broadcast,         // the one element of a, at every place
    times_transposed,  // a b^T
    times,             // a b
  };
  std::string name;
  Shape shape;
  Rule rule = Rule::copy;
  std::string a, b;  // names of parameters
  Shape b_shape;     // of b, a square matrix
  std::optional<HubPacking> packed = {};
  std::vector<std::string> below = {};  // parameters of a's shape, stacked under a; copy and transposed only
  int64_t unread_rows = 0;              // before a, which no model reads: zeros when written; copy only

  /// Those that the tensor holds one by one: a and what is below it.
  std::vector<std::string> parameters() const;
  /// Of each of them. Of a tensor that copies or transposes.
  Shape parameter_shape() const;
};

struct HubLayout {
  std::string config_json;
  std::string generation_config_json;
  std::vector<HubTensor> tensors;
};

/// Elements [begin, begin + out.numel()) of the flattened parameter, as f32.
using ReadParameter = std::function<void(const std::string& name, int64_t begin, Tensor out)>;

/// Elements [begin, begin + out.numel()) of the flattened parameter `name`, out of the stored tensor that `t`
/// copies or transposes it into. Numerics: as SafetensorsFile::read.
void read_hub_parameter(const SafetensorsModel& model, const HubTensor& t, const std::string& name,
                        int64_t begin, const Tensor& out);

/// Calls use(rows) for a tensor that is not packed, in fp32, a few rows (n, last dimension) after the other.
void for_each_hub_rows(const Queue& queue, const HubTensor& t, const ReadParameter& read,
                       const std::function<void(const Tensor& rows)>& use);

/// Writes all tensors of `layout` into one safetensors file, a few rows at a time.
/// Numerics: everything is formed in fp32 from what `read` gives and rounded once to `type`; a packed tensor
/// is quantized from there. Errors: throws where a packed tensor holds NaN or Inf, or F16 a number beyond
/// 65504.
FileRecord write_hub_tensors(const Queue& queue, const std::filesystem::path& path, const HubLayout& layout,
                             const ReadParameter& read, StoredType type);

/// As above, into `model.safetensors`, or into shards of at most `shard_bytes` each (a larger tensor has one
/// to itself) with `model.safetensors.index.json`, as Hugging Face names them. They are filled in the order
/// of the layout.
std::vector<FileRecord> write_hub_model(const Queue& queue, const std::filesystem::path& directory,
                                        const HubLayout& layout, const ReadParameter& read, StoredType type,
                                        int64_t shard_bytes);

/// Writes config.json and generation_config.json and copies the files of tokenizer and chat template that
/// `tokenizer` holds (may be empty). Names are relative to `directory`.
std::vector<FileRecord> write_hub_texts(const std::filesystem::path& directory, const HubLayout& layout,
                                        const std::filesystem::path& tokenizer);

}  // namespace osprey
