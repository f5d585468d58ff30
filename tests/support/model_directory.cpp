#include "tests/support/model_directory.h"

#include "models/hf/hub_model.h"

namespace osprey::test {

void write_model_directory(const std::filesystem::path& directory, const ModelSpec& spec, uint64_t seed) {
  ParamStore params;
  make_model(spec, 64)->declare(params);
  params.materialize({}, DType::bf16, ParamStore::Gradients::off);
  params.initialize(Queue{}, seed);
  const HubLayout layout = hub_layout(spec, {.sequence_len = 64, .bos_id = {}, .eos_id = {}});
  std::filesystem::create_directories(directory);
  const ReadParameter read = [&](const std::string& name, int64_t begin, Tensor out) {
    const auto* from = params.at(name).value.as<bf16>() + begin;
    for (int64_t i = 0; i < out.numel(); ++i) out.as<float>()[i] = to_float(from[i]);
  };
  write_hub_tensors(Queue{}, directory / "model.safetensors", layout, read, StoredType::bf16);
  write_hub_texts(directory, layout, {});
}

}  // namespace osprey::test
