#include "framework/checkpoint/hub.h"

#include <algorithm>

#include "kernels/core/check.h"
#include "kernels/matmul.h"

namespace osprey {

namespace fs = std::filesystem;

namespace {

constexpr int64_t block_elements = int64_t{1} << 20;

/// What transformers or another loader wants beside the model.
constexpr const char* tokenizer_files[] = {
    "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "vocab.json",      "merges.txt",     "osprey_tokenizer.json"};

/// Memory for the blocks of one file.
struct Scratch {
  std::vector<float> a, b, c;
  std::vector<bf16> narrow;
  std::string b_name;  // whose values b holds
};

Tensor sized(std::vector<float>& memory, const Shape& shape) {
  memory.resize(static_cast<size_t>(shape.numel()));
  return make_tensor(memory.data(), shape, DType::f32);
}

/// Rows [begin, end) of the tensor, in fp32.
Tensor rows_of(const Queue& queue, const HubTensor& t, const ReadParameter& read, int64_t begin, int64_t end,
               int64_t columns, Scratch& scratch) {
  const Tensor a = sized(scratch.a, {end - begin, columns});
  if (t.rule == HubTensor::Rule::broadcast) {
    float value = 0;
    read(t.a, 0, make_tensor(&value, {1}, DType::f32));
    std::fill(scratch.a.begin(), scratch.a.end(), value);
    return a;
  }
  read(t.a, begin * columns, a);
  if (t.rule == HubTensor::Rule::copy) return a;
  require(t.b_shape == Shape{columns, columns}, "export", "{} of {} must be a square of {} columns, it is {}",
          t.b, t.name, columns, t.b_shape.str());
  const Tensor b = sized(scratch.b, t.b_shape);
  if (scratch.b_name != t.b) read(t.b, 0, b);
  scratch.b_name = t.b;
  const Tensor c = sized(scratch.c, a.shape);
  kernels::matmul(queue,
                  {.c = c,
                   .a = a,
                   .b = b,
                   .op_b = t.rule == HubTensor::Rule::times ? kernels::Op::none : kernels::Op::transpose});
  return c;
}

}  // namespace

FileRecord write_hub_tensors(const Queue& queue, const fs::path& path, const HubLayout& layout,
                             const ReadParameter& read, StoredType type) {
  require(type == StoredType::bf16 || type == StoredType::f32, "export",
          "models are written as BF16 or F32, not {}", name(type));
  std::vector<StoredTensor> tensors;
  std::map<std::string_view, const HubTensor*> by_name;
  for (const HubTensor& t : layout.tensors) {
    StoredTensor s{t.name, type, {}, 0};
    for (int i = 0; i < t.shape.rank; ++i) s.shape.push_back(t.shape[i]);
    tensors.push_back(std::move(s));
    by_name[t.name] = &t;
  }
  SafetensorsWriter writer(path, std::move(tensors), {{"format", "pt"}});
  Scratch scratch;
  for (const StoredTensor& s : writer.order()) {
    const HubTensor& t = *by_name.at(s.name);
    const int64_t columns = t.shape[-1], rows = columns ? t.shape.numel() / columns : 0;
    const int64_t step = std::max<int64_t>(1, block_elements / std::max<int64_t>(1, columns));
    for (int64_t begin = 0; begin < rows; begin += step) {
      const Tensor block = rows_of(queue, t, read, begin, std::min(rows, begin + step), columns, scratch);
      const std::span<const float> values(block.as<float>(), static_cast<size_t>(block.numel()));
      if (type == StoredType::f32) {
        writer.write(s.name, std::as_bytes(values));
        continue;
      }
      scratch.narrow.resize(values.size());
      for (size_t i = 0; i < values.size(); ++i) scratch.narrow[i] = to_bf16(values[i]);
      writer.write(s.name, std::as_bytes(std::span(scratch.narrow)));
    }
  }
  return writer.finish();
}

std::vector<FileRecord> write_hub_texts(const fs::path& directory, const HubLayout& layout,
                                        const fs::path& tokenizer) {
  std::vector<FileRecord> records;
  records.push_back(write_file(directory / "config.json", layout.config_json));
  records.push_back(write_file(directory / "generation_config.json", layout.generation_config_json));
  if (!tokenizer.empty())
    for (const char* file : tokenizer_files)
      if (fs::exists(tokenizer / file))
        records.push_back(copy_file_durably(tokenizer / file, directory / file));
  return records;
}

}  // namespace osprey
