#pragma once
// Tiny models with values, and directories of them.

#include <filesystem>
#include <memory>

#include "kernels/core/random.h"
#include "models/hf/hub_model.h"

namespace osprey::test {

inline ModelSpec tiny() {
  ModelSpec s;
  s.layers = 2;
  s.hidden_size = 32;
  s.heads = 4;
  s.kv_heads = 2;
  s.ffn_size = 48;
  s.vocab_size = 64;
  return s;
}

/// Declares a model and gives every parameter its initial value, norms a random one.
inline std::unique_ptr<LanguageModel> fill(const ModelSpec& spec, ParamStore& params) {
  auto model = make_model(spec, 16);
  model->declare(params);
  params.materialize({}, DType::bf16, ParamStore::Gradients::off);
  params.initialize(Queue{}, 5);
  for (const auto& p : params.all())
    if (p->shape.rank == 1)
      for (int64_t i = 0; i < p->shape.numel(); ++i)
        p->value.as<bf16>()[i] =
            to_bf16(0.5f + random_uniform(6, stream_of(p->name), static_cast<uint64_t>(i)));
  return model;
}

inline void write_hub(const ModelSpec& spec, ParamStore& params, const std::filesystem::path& dir,
                      StoredType type = StoredType::bf16) {
  std::filesystem::create_directories(dir);
  const HubLayout layout =
      hub_layout(spec, {.sequence_len = 16, .dtype = DType::bf16, .bos_id = {}, .eos_id = 3});
  const ReadParameter read = [&](const std::string& name, int64_t begin, Tensor out) {
    for (int64_t i = 0; i < out.numel(); ++i)
      out.as<float>()[i] = to_float(params.at(name).value.as<bf16>()[begin + i]);
  };
  write_hub_tensors(Queue{}, dir / "model.safetensors", layout, read, type);
  write_hub_texts(dir, layout, "");
}

}  // namespace osprey::test
