#include "framework/checkpoint/hub.h"

#include <algorithm>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "framework/memory/arena.h"
#include "kernels/core/check.h"
#include "kernels/matmul.h"
#include "kernels/numerics/half.h"

namespace osprey {

namespace fs = std::filesystem;

namespace {

constexpr int64_t block_elements = int64_t{1} << 20;

/// What transformers or another loader wants beside the model.
constexpr const char* tokenizer_files[] = {
    "tokenizer.model",    "tokenizer.json",       "tokenizer_config.json", "special_tokens_map.json",
    "vocab.json",         "merges.txt",           "added_tokens.json",     "chat_template.jinja",
    "chat_template.json", "osprey_tokenizer.json"};

/// Memory for the blocks of one file.
struct Scratch {
  std::vector<float> a, b, c;
  std::vector<bf16> narrow;
  std::vector<uint16_t> halves;
  std::string b_name;  // whose values b holds
};

Tensor sized(std::vector<float>& memory, const Shape& shape) {
  memory.resize(static_cast<size_t>(shape.numel()));
  return make_tensor(memory.data(), shape, DType::f32);
}

/// Elements [begin, begin + out.numel()) of the parameters of `t`, one below the other behind the unread
/// rows.
void read_stack(const HubTensor& t, const ReadParameter& read, int64_t begin, Tensor out) {
  const std::vector<std::string> names = t.parameters();
  const int64_t zeros = t.unread_rows * t.shape[-1], size = t.parameter_shape().numel();
  float* to = out.as<float>();
  for (int64_t left = out.numel(); left > 0;) {
    const int64_t at = begin - zeros, n = std::min(left, at < 0 ? -at : size - at % size);
    if (at < 0)
      std::fill_n(to, n, 0.0f);
    else
      read(names[static_cast<size_t>(at / size)], at % size, make_tensor(to, {n}, DType::f32));
    to += n;
    begin += n;
    left -= n;
  }
}

/// Rows [begin, end) of the transpose; the whole matrix is read once.
void transposed_rows(const HubTensor& t, const ReadParameter& read, int64_t begin, const Tensor& rows,
                     Scratch& scratch) {
  const int64_t columns = rows.cols(), height = t.shape[0];
  if (scratch.b_name != t.name) read_stack(t, read, 0, sized(scratch.b, {t.shape.numel()}));
  scratch.b_name = t.name;
  for (int64_t r = 0; r < rows.rows(); ++r)
    for (int64_t c = 0; c < columns; ++c)
      rows.as<float>()[r * columns + c] = scratch.b[static_cast<size_t>(c * height + begin + r)];
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
  if (t.rule == HubTensor::Rule::transposed) {
    transposed_rows(t, read, begin, a, scratch);
    return a;
  }
  if (t.rule == HubTensor::Rule::copy) {
    read_stack(t, read, begin * columns, a);
    return a;
  }
  read(t.a, begin * columns, a);
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

/// Calls use(rows) for a few rows after the other, in fp32.
template <class Use>
void each_rows(const Queue& queue, const HubTensor& t, const ReadParameter& read, Scratch& scratch,
               const Use& use) {
  const int64_t columns = t.shape[-1], rows = columns ? t.shape.numel() / columns : 0;
  const int64_t step = std::max<int64_t>(1, block_elements / std::max<int64_t>(1, columns));
  for (int64_t begin = 0; begin < rows; begin += step)
    use(rows_of(queue, t, read, begin, std::min(rows, begin + step), columns, scratch));
}

/// Calls use(values) for a few rows after the other, in `type`.
template <class Use>
void each_block(const Queue& queue, const HubTensor& t, const ReadParameter& read, StoredType type,
                Scratch& scratch, const Use& use) {
  each_rows(queue, t, read, scratch, [&](const Tensor& block) {
    const std::span<const float> values(block.as<float>(), static_cast<size_t>(block.numel()));
    if (type == StoredType::f32) return use(std::as_bytes(values));
    if (type == StoredType::f16) {
      scratch.halves.resize(values.size());
      for (size_t i = 0; i < values.size(); ++i)
        scratch.halves[i] = checked_half(values[i], "export", t.name);
      return use(std::as_bytes(std::span(scratch.halves)));
    }
    scratch.narrow.resize(values.size());
    for (size_t i = 0; i < values.size(); ++i) scratch.narrow[i] = to_bf16(values[i]);
    use(std::as_bytes(std::span(scratch.narrow)));
  });
}

/// A tensor packed in memory of its own.
struct PackedTensor {
  PackedTensor(const Queue& queue, const HubTensor& t, const ReadParameter& read, StoredType type,
               Scratch& scratch)
      : name(t.name),
        formed(type == StoredType::f16 ? StoredType::f32 : type),
        memory("a packed tensor", {},
               packed_bytes(t.packed->format, t.shape[0], t.shape[1]) + t.shape.numel() * size_bytes(formed) +
                   256) {
    const Tensor x = memory.alloc(t.shape, formed == StoredType::f32 ? DType::f32 : DType::bf16);
    auto* to = static_cast<std::byte*>(x.data);
    each_block(queue, t, read, formed, scratch, [&](std::span<const std::byte> values) {
      std::copy(values.begin(), values.end(), to);
      to += values.size();
    });
    packed = make_packed(t.packed->format, t.shape[0], t.shape[1],
                         [&](const Shape& shape, DType dtype) { return memory.alloc(shape, dtype); });
    std::vector<float> steps;
    Tensor step;
    if (!t.packed->step.empty()) {
      step = sized(steps, t.packed->step_shape);
      read(t.packed->step, 0, step);
    }
    kernels::quantize(
        queue, {.y = packed, .x = x, .rule = t.packed->scale, .rotation = t.packed->rotation, .step = step});
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
  StoredType formed;  // what is quantized; kernels know no F16
  Arena memory;
  Packed packed;
};

}  // namespace

std::vector<std::string> HubTensor::parameters() const {
  std::vector<std::string> names = {a};
  names.insert(names.end(), below.begin(), below.end());
  return names;
}

Shape HubTensor::parameter_shape() const {
  const auto count = static_cast<int64_t>(below.size()) + 1;
  if (rule == Rule::transposed) return {shape[1] / count, shape[0]};
  Shape one = shape;
  one.dims[0] = (shape[0] - unread_rows) / count;
  return one;
}

void read_hub_parameter(const SafetensorsModel& model, const HubTensor& t, const std::string& name,
                        int64_t begin, const Tensor& out) {
  const std::vector<std::string> names = t.parameters();
  const auto index = std::find(names.begin(), names.end(), name) - names.begin();
  const Shape shape = t.parameter_shape();
  if (t.rule != HubTensor::Rule::transposed) {
    const int64_t skipped = t.unread_rows * t.shape[-1];
    return model.read_range(t.name, skipped + index * shape.numel() + begin, out);
  }
  const int64_t in = shape[1], height = t.shape[1], row = index * shape[0];
  std::vector<float> all(static_cast<size_t>(t.shape.numel()));
  model.read(t.name, make_tensor(all.data(), t.shape, DType::f32));
  for (int64_t i = 0; i < out.numel(); ++i) {
    const float value = all[static_cast<size_t>((begin + i) % in * height + row + (begin + i) / in)];
    if (out.dtype == DType::f32)
      out.as<float>()[i] = value;
    else
      out.as<bf16>()[i] = to_bf16(value);
  }
}

FileRecord write_hub_tensors(const Queue& queue, const fs::path& path, const HubLayout& layout,
                             const ReadParameter& read, StoredType type) {
  require(type == StoredType::bf16 || type == StoredType::f16 || type == StoredType::f32, "export",
          "models are written as BF16, F16 or F32, not {}", name(type));
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

void for_each_hub_rows(const Queue& queue, const HubTensor& t, const ReadParameter& read,
                       const std::function<void(const Tensor& rows)>& use) {
  Scratch scratch;
  each_rows(queue, t, read, scratch, use);
}

/// Bytes of a tensor of the layout in the file.
static int64_t stored_bytes(const HubTensor& t, StoredType type) {
  return t.packed ? packed_bytes(t.packed->format, t.shape[0], t.shape[1])
                  : t.shape.numel() * size_bytes(type);
}

std::vector<FileRecord> write_hub_model(const Queue& queue, const fs::path& directory,
                                        const HubLayout& layout, const ReadParameter& read, StoredType type,
                                        int64_t shard_bytes) {
  std::vector<HubLayout> shards(1);
  int64_t bytes = 0, total = 0;
  for (const HubTensor& t : layout.tensors) {
    const int64_t more = stored_bytes(t, type);
    if (!shards.back().tensors.empty() && bytes + more > shard_bytes) {
      shards.emplace_back();
      bytes = 0;
    }
    shards.back().tensors.push_back(t);
    bytes += more;
    total += more;
  }
  if (shards.size() == 1)
    return {write_hub_tensors(queue, directory / "model.safetensors", layout, read, type)};
  std::vector<FileRecord> records;
  std::map<std::string, std::string> shard_of;  // by tensor
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string file = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    records.push_back(write_hub_tensors(queue, directory / file, shards[i], read, type));
    std::map<std::string, Part> parts;
    for (const StoredTensor& t : stored_tensors(shards[i], type, parts)) shard_of[t.name] = file;
  }
  const nlohmann::ordered_json index = {{"metadata", {{"total_size", total}}}, {"weight_map", shard_of}};
  records.push_back(write_file(directory / "model.safetensors.index.json", index.dump(2) + "\n"));
  return records;
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
