#pragma once
// A model as a Hugging Face directory: names, config.json, and what has to be folded.
//
// A model that transformers knows is written as what it knows: by its biases, norms and windows as
// LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM or Qwen3ForCausalLM (models/llama/hub.cpp). Norms
// with one scale are written with that scale in every channel; embedding projections are multiplied into
// embedding and head. Any other variant is written as "OspreyForCausalLM" (model_type "osprey", with an
// "osprey" object that holds the recipe's keys), which only Osprey loads.

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "framework/checkpoint/hub.h"
#include "framework/parameter.h"
#include "framework/quant/packed_checkpoint.h"
#include "models/hf/context.h"
#include "models/make_model.h"

namespace osprey {

/// Config texts and tensor formulas of a model with this spec, some of whose weights are stored packed.
HubLayout hub_layout(const ModelSpec& spec, const HubContext& context,
                     const QuantizationConfig* quantization = nullptr);

/// Adds the learnt step sizes of `params` to a layout: as tensors beside their weights (StepNames), or, of a
/// weight that is packed here, as what it is packed by.
void add_step_sizes(HubLayout& layout, const ParamStore& params);

/// The recipe key that no architecture of transformers can express ("model.attention.kind: gated"), if any.
std::optional<std::string> beyond_transformers(const ModelSpec& spec);

/// How a directory says that its weights are packed, by its config.json alone; nothing where it does not.
/// Errors: no config.json, or one that read_quantization_config() refuses.
std::optional<QuantizationConfig> read_packing(const std::filesystem::path& directory);

/// Are there safetensors in a directory?
bool has_weights(const std::filesystem::path& directory);
/// What model a directory holds by its config.json alone, which has the last word on whether the head is
/// tied; there need not be weights. Errors: as HubModel has them before it looks at tensors.
ModelSpec read_model_config(const std::filesystem::path& directory);

struct HubFamily;

/// A Hugging Face directory opened for evaluation, generation or export.
class HubModel {
 public:
  /// Reads config.json, generation_config.json where there is one, and the headers of the tensors: nothing of
  /// the size of the model is allocated.
  /// Learnt step sizes may stand beside the weights of linear layers.
  /// Errors: an architecture or option that Osprey does not compute; weights that are pickled; all tensors
  /// that are missing, unknown, or of another shape or (packed ones) type than the config says, in one
  /// message.
  explicit HubModel(const std::filesystem::path& directory);

  /// Without embedding projections (they are folded), and with full-width norm weights.
  const ModelSpec& spec() const { return spec_; }
  const HubContext& context() const { return context_; }
  /// How weights are packed, or null when they are not.
  const QuantizationConfig* quantization() const { return quantization_ ? &*quantization_ : nullptr; }
  /// Sets Parameter::stored_format where this directory holds packed weights; before materialize().
  void declare_packed(ParamStore& params) const;
  /// Fills all values of a store in which make_model(spec(), ...) was declared, and step sizes that were too.
  /// A weight that is declared packed and is not so here is quantized as its scheme says, one at a time.
  /// Errors: packed weights that no quantization leaves (find_impossible()), weights to pack that hold NaN or
  /// Inf; a declared step size that is not stored, or is no number.
  void load(const Queue& queue, ParamStore& params) const;
  /// The names, shapes and formulas of this directory.
  const HubLayout& layout() const { return layout_; }
  const SafetensorsModel& tensors() const { return *tensors_; }

 private:
  void take_prefix_of_files(const HubFamily& family);
  void find_step_sizes();
  void check_tensors(const HubFamily& family) const;
  friend ReadParameter read_values(const HubModel& hub);
  void read_packed(const HubTensor& t, const Packed& host) const;
  void load_packed(const Queue& queue, const HubTensor& t, Parameter& p) const;
  void pack(const Queue& queue, const HubTensor& t, Parameter& p) const;
  ModelSpec spec_;
  HubContext context_;
  std::optional<QuantizationConfig> quantization_;
  HubLayout layout_;
  std::unique_ptr<SafetensorsModel> tensors_;
};

/// The parameters of a directory; packed weights as what they stand for, rotations left in, in whole rows.
/// Aliasing: `hub`, which must outlive it.
ReadParameter read_values(const HubModel& hub);

}  // namespace osprey
