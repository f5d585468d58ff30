#pragma once
// Weights that a checkpoint holds packed: what config.json says of them, and the tensors they are stored as.
//
// `quantization_config` of config.json:
//   {"quant_method": "osprey", "version": 1, "seed": 42, "groups": [{"match": "layers.*.mlp.down.weight",
//    "weights": {"format": "mxfp4", "scale": "even"}, "activations": {"format": "mxint8", "scale": "even"},
//    "rotation": 32}]}
// Groups are entries of a recipe's `quant` section without what training needs; the first that matches takes
// a weight. A weight NAME whose group quantizes weights has no tensor NAME, but
//   NAME_packed        U8 (out, in * bits / 8)   codes, as Packed::codes
//   NAME_scale         U8 (e8m0, e4m3) or F32, as Packed::scales
//   NAME_global_scale  F32 (1), for formats whose scales are e4m3

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "framework/quant/scheme.h"

namespace osprey {

struct QuantizationConfig {
  uint64_t seed = 0;  // of rotations
  std::vector<QuantGroupSpec> groups;

  /// The group that packs this parameter: the first that matches, if the parameter is a linear layer of a
  /// block and the group has a format for weights; else null.
  const QuantGroupSpec* packs(const std::string& parameter) const;
};

/// Groups as a checkpoint keeps them: gradients, masks and steps left out. Where rotations were measured, the
/// caller says which layers have one.
QuantizationConfig for_inference(std::span<const QuantGroupSpec> groups, uint64_t seed);

nlohmann::ordered_json to_json(const QuantizationConfig& config);
/// Errors: another method or version, unknown keys, groups that a recipe could not have; `where` names the
/// file.
QuantizationConfig read_quantization_config(const std::string& where, const nlohmann::json& json);

}  // namespace osprey
