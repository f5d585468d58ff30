#pragma once
// What a Hugging Face directory says beside the model itself.

#include <cstdint>
#include <optional>
#include <vector>

#include "framework/checkpoint/safetensors.h"

namespace osprey {

struct HubContext {
  int64_t sequence_len = 0;
  DType dtype = DType::bf16;  // to compute with
  std::optional<int32_t> bos_id, eos_id;
  std::vector<int32_t> stop_ids = {};  // all that end a text; eos_id alone if empty
  std::optional<int32_t> pad_id = {};
  std::optional<StoredType> stored_as = {};  // in files, where that is not `dtype` (F16)

  StoredType file_type() const { return stored_as.value_or(stored(dtype)); }
};

}  // namespace osprey
