#include "framework/checkpoint/hub.h"

#include <algorithm>
#include <map>
#include <memory>

#include "framework/memory/arena.h"
#include "kernels/core/check.h"
#include "kernels/matmul.h"

namespace osprey {

namespace fs = std::filesystem;

namespace {

constexpr int64_t block_elements = int64_t{1} << 20;

/// What transformers or another loader wants beside the model.
constexpr const char* tokenizer_files[] = {"tokenizer.model",
                                           "tokenizer.json",
                                           "tokenizer_config.json",
                                           "special_tokens_map.json",
                                           "chat_template.jinja",
                                           "vocab.json",
                                           "merges.txt",
                                           "osprey_tokenizer.json"};

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

/// Which tensor of the layout a stored one belongs to, and what of it.
struct Part {
  const HubTensor* tensor;
  enum class What { values, codes, scales, tensor_scale } what = What::values;
};

std::vector<int64_t> dims(const Shape& shape) {
  std::vector<int64_t> d;
  for (int i = 0; i < shape.rank; ++i) d.push_back(shape[i]);
  return d;
}

/// What the file will hold, and where each tensor of it comes from.
std::vector<StoredTensor> stored_tensors(const HubLayout& layout, StoredType type,
                                         std::map<std::string, Part>& parts) {
  std::vector<StoredTensor> tensors;
  const auto add = [&](const std::string& name, StoredType of, const Shape& shape, const Part& part) {
    tensors.push_back({name, of, dims(shape), 0});
    parts[name] = part;
  };
  for (const HubTensor& t : layout.tensors) {
    if (!t.packed) {
      add(t.name, type, t.shape, {&t});
      continue;
    }
    const PackedShapes s = packed_shapes(t.packed->format, t.shape[0], t.shape[1], t.name);
    const PackedNames names(t.name);
    add(names.codes, StoredType::u8, s.codes, {&t, Part::What::codes});
    add(names.scales, stored(s.scale_dtype), s.scales, {&t, Part::What::scales});
    if (s.has_tensor_scale) add(names.tensor_scale, StoredType::f32, {1}, {&t, Part::What::tensor_scale});
  }
  return tensors;
}

/// Calls use(values) for a few rows after the other, in `type`.
template <class Use>
void each_block(const Queue& queue, const HubTensor& t, const ReadParameter& read, StoredType type,
                Scratch& scratch, const Use& use) {
  const int64_t columns = t.shape[-1], rows = columns ? t.shape.numel() / columns : 0;
  const int64_t step = std::max<int64_t>(1, block_elements / std::max<int64_t>(1, columns));
  for (int64_t begin = 0; begin < rows; begin += step) {
    const Tensor block = rows_of(queue, t, read, begin, std::min(rows, begin + step), columns, scratch);
    const std::span<const float> values(block.as<float>(), static_cast<size_t>(block.numel()));
    if (type == StoredType::f32) {
      use(std::as_bytes(values));
      continue;
    }
    scratch.narrow.resize(values.size());
    for (size_t i = 0; i < values.size(); ++i) scratch.narrow[i] = to_bf16(values[i]);
    use(std::as_bytes(std::span(scratch.narrow)));
  }
}

/// A tensor packed in memory of its own.
struct PackedTensor {
  PackedTensor(const Queue& queue, const HubTensor& t, const ReadParameter& read, StoredType type,
               Scratch& scratch)
      : name(t.name),
        memory("a packed tensor", {},
               packed_bytes(t.packed->format, t.shape[0], t.shape[1]) + t.shape.numel() * size_bytes(type) +
                   256) {
    const Tensor x = memory.alloc(t.shape, type == StoredType::f32 ? DType::f32 : DType::bf16);
    auto* to = static_cast<std::byte*>(x.data);
    each_block(queue, t, read, type, scratch, [&](std::span<const std::byte> values) {
      std::copy(values.begin(), values.end(), to);
      to += values.size();
    });
    packed = make_packed(t.packed->format, t.shape[0], t.shape[1],
                         [&](const Shape& shape, DType dtype) { return memory.alloc(shape, dtype); });
    kernels::quantize(queue, {.y = packed, .x = x, .rule = t.packed->scale, .rotation = t.packed->rotation});
    const auto impossible = find_impossible(packed);
    require(!impossible, "quantize", "{} holds NaN or Inf: {}", t.name, impossible.value_or(""));
  }
  std::span<const std::byte> bytes(Part::What what) const {
    const Tensor& t = what == Part::What::codes    ? packed.codes
                      : what == Part::What::scales ? packed.scales
                                                   : packed.tensor_scale;
    return {static_cast<const std::byte*>(t.data), static_cast<size_t>(t.bytes())};
  }
  std::string name;
  Arena memory;
  Packed packed;
};

}  // namespace

FileRecord write_hub_tensors(const Queue& queue, const fs::path& path, const HubLayout& layout,
                             const ReadParameter& read, StoredType type) {
  require(type == StoredType::bf16 || type == StoredType::f32, "export",
          "models are written as BF16 or F32, not {}", name(type));
  std::map<std::string, Part> parts;
  SafetensorsWriter writer(path, stored_tensors(layout, type, parts), {{"format", "pt"}});
  Scratch scratch;
  std::unique_ptr<PackedTensor> packed;  // the last one: its parts mostly follow each other
  for (const StoredTensor& s : writer.order()) {
    const Part& part = parts.at(s.name);
    if (part.what == Part::What::values) {
      each_block(queue, *part.tensor, read, type, scratch,
                 [&](std::span<const std::byte> values) { writer.write(s.name, values); });
      continue;
    }
    if (!packed || packed->name != part.tensor->name) {
      packed.reset();
      packed = std::make_unique<PackedTensor>(queue, *part.tensor, read, type, scratch);
    }
    writer.write(s.name, packed->bytes(part.what));
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
