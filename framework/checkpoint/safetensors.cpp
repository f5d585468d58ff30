#include "framework/checkpoint/safetensors.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "framework/files/json.h"
#include "kernels/core/check.h"
#include "kernels/numerics/half.h"

namespace osprey {

namespace fs = std::filesystem;

static_assert(std::endian::native == std::endian::little, "safetensors data are little endian");

namespace {

constexpr uint64_t most_header_bytes = 100'000'000;
constexpr size_t most_tensors = 1'000'000;
constexpr size_t most_dims = 16;
constexpr uint64_t most_number = uint64_t{1} << 53;

struct TypeRow {
  StoredType type;
  const char* name;
  int64_t bytes;
};
constexpr TypeRow types[] = {{StoredType::i64, "I64", 8}, {StoredType::f32, "F32", 4},
                             {StoredType::i32, "I32", 4}, {StoredType::bf16, "BF16", 2},
                             {StoredType::f16, "F16", 2}, {StoredType::u8, "U8", 1}};

/// Fed by the JSON parser token by token, so that a header of a hundred megabytes is never a tree.
struct HeaderHandler : nlohmann::json_sax<nlohmann::json> {
  enum class State { start, names, tensor, shape, offsets, metadata, done };

  struct Found {
    StoredTensor tensor;
    bool has_type = false, has_shape = false, has_offsets = false;
    std::vector<uint64_t> offsets;
    uint64_t end_bytes = 0;
  };

  std::string where;
  State state = State::start;
  std::vector<Found> found;
  std::set<std::string> names;  // of the tensors
  std::map<std::string, std::string> metadata;
  bool has_metadata = false;
  std::string last_key;

  explicit HeaderHandler(std::string file) : where(std::move(file)) {}

  [[noreturn]] void unexpected(const char* what) const {
    switch (state) {
      case State::shape:
      case State::offsets:
        fail(where, "tensor '{}': {} must hold whole numbers from 0 to 2^53, found {}",
             shown(found.back().tensor.name), state == State::shape ? "shape" : "data_offsets", what);
      case State::metadata:
        fail(where, "__metadata__ '{}' must be a string, found {}", shown(last_key), what);
      case State::tensor:
        fail(where, "tensor '{}': '{}' cannot be {}", shown(found.back().tensor.name), shown(last_key), what);
      default:
        fail(where, "the header must be an object of tensors, found {} at '{}'", what, shown(last_key));
    }
  }

  bool number(uint64_t value) {
    if (value > most_number) unexpected("a larger number");
    if (state == State::shape) {
      Found& f = found.back();
      require(f.tensor.shape.size() < most_dims, where, "tensor '{}' has more than {} dimensions",
              shown(f.tensor.name), most_dims);
      f.tensor.shape.push_back(static_cast<int64_t>(value));
    } else if (state == State::offsets) {
      Found& f = found.back();
      require(f.offsets.size() < 2, where, "tensor '{}': data_offsets must be two numbers",
              shown(f.tensor.name));
      f.offsets.push_back(value);
    } else {
      unexpected("a number");
    }
    return true;
  }

  bool null() override { unexpected("null"); }
  bool boolean(bool) override { unexpected("a boolean"); }
  bool number_integer(number_integer_t value) override {
    if (value < 0) unexpected("a negative number");
    return number(static_cast<uint64_t>(value));
  }
  bool number_unsigned(number_unsigned_t value) override { return number(value); }
  bool number_float(number_float_t, const string_t&) override { unexpected("a fraction or a huge number"); }
  bool binary(binary_t&) override { unexpected("binary data"); }

  bool string(string_t& value) override {
    if (state == State::metadata) {
      metadata[last_key] = value;
      return true;
    }
    if (state != State::tensor || last_key != "dtype") unexpected("a string");
    Found& f = found.back();
    const auto* row =
        std::find_if(std::begin(types), std::end(types), [&](const TypeRow& r) { return value == r.name; });
    require(row != std::end(types), where,
            "tensor '{}' has the dtype '{}'; Osprey reads F32, F16, BF16, I32, I64 and U8",
            shown(f.tensor.name), shown(value));
    f.tensor.type = row->type;
    f.has_type = true;
    return true;
  }

  bool start_object(std::size_t) override {
    if (state == State::start) {
      state = State::names;
    } else if (state == State::names) {
      state = last_key == "__metadata__" ? State::metadata : State::tensor;
      if (state == State::tensor) found.back().tensor.name = last_key;
    } else {
      unexpected("an object");
    }
    return true;
  }

  bool key(string_t& value) override {
    last_key = value;
    if (state == State::names) {
      require(value == "__metadata__" ? !std::exchange(has_metadata, true) : names.insert(value).second,
              where, "has the tensor '{}' twice", shown(value));
      if (value != "__metadata__") {
        require(found.size() < most_tensors, where, "has more than {} tensors", most_tensors);
        found.emplace_back();
      }
    } else if (state == State::metadata) {
      require(!metadata.contains(value), where, "__metadata__ has the key '{}' twice", shown(value));
    } else if (state == State::tensor) {
      Found& f = found.back();
      const bool* seen = value == "dtype"          ? &f.has_type
                         : value == "shape"        ? &f.has_shape
                         : value == "data_offsets" ? &f.has_offsets
                                                   : nullptr;
      require(seen != nullptr, where, "tensor '{}' has the unknown key '{}'", shown(f.tensor.name),
              shown(value));
      require(!*seen, where, "tensor '{}' has '{}' twice", shown(f.tensor.name), shown(value));
    }
    return true;
  }

  bool end_object() override {
    if (state == State::tensor) {
      const Found& f = found.back();
      require(f.has_type && f.has_shape && f.has_offsets, where,
              "tensor '{}' must have dtype, shape and data_offsets", shown(f.tensor.name));
    }
    state = state == State::names ? State::done : State::names;
    return true;
  }

  bool start_array(std::size_t) override {
    if (state != State::tensor || last_key == "dtype") unexpected("a list");
    Found& f = found.back();
    state = last_key == "shape" ? State::shape : State::offsets;
    (state == State::shape ? f.has_shape : f.has_offsets) = true;
    return true;
  }

  bool end_array() override {
    if (state == State::offsets) {
      const Found& f = found.back();
      require(f.offsets.size() == 2, where, "tensor '{}': data_offsets must be two numbers",
              shown(f.tensor.name));
    }
    state = State::tensor;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& e) override {
    fail(where, "the header is not valid JSON at byte {}: {}", position, shown(e.what()));
  }
};

/// The size in bytes of a tensor, or nothing when it overflows.
std::optional<uint64_t> checked_bytes(const StoredTensor& t) {
  uint64_t total = static_cast<uint64_t>(size_bytes(t.type));
  for (int64_t d : t.shape)
    if (__builtin_mul_overflow(total, static_cast<uint64_t>(d), &total)) return std::nullopt;
  return total;
}

/// Offsets must tile the data without holes or overlaps, and each must fit its shape.
void check_layout(const std::string& where, std::vector<HeaderHandler::Found>& found, uint64_t data_bytes) {
  for (auto& f : found) {
    const StoredTensor& t = f.tensor;
    require(f.offsets[0] <= f.offsets[1], where, "tensor '{}': offsets [{}, {}) run backwards", shown(t.name),
            f.offsets[0], f.offsets[1]);
    const auto bytes = checked_bytes(t);
    require(bytes.has_value(), where, "tensor '{}': its shape does not fit 64 bits", shown(t.name));
    require(*bytes == f.offsets[1] - f.offsets[0], where,
            "tensor '{}': shape and dtype make {} bytes, the offsets [{}, {}) make {}", shown(t.name), *bytes,
            f.offsets[0], f.offsets[1], f.offsets[1] - f.offsets[0]);
    require(f.offsets[1] <= data_bytes, where,
            "tensor '{}' ends at byte {} of the data, but the file holds {}; it is truncated", shown(t.name),
            f.offsets[1], data_bytes);
    f.tensor.offset_bytes = static_cast<int64_t>(f.offsets[0]);
    f.end_bytes = f.offsets[1];
  }
  std::stable_sort(found.begin(), found.end(), [](const auto& a, const auto& b) {
    return std::pair(a.tensor.offset_bytes, a.end_bytes) < std::pair(b.tensor.offset_bytes, b.end_bytes);
  });
  uint64_t end = 0;
  for (const auto& f : found) {
    const auto begin = static_cast<uint64_t>(f.tensor.offset_bytes);
    require(begin >= end, where,
            "tensor '{}' starts at byte {}, inside the tensor before it, which ends at {}",
            shown(f.tensor.name), begin, end);
    require(begin == end, where, "{} bytes before tensor '{}' belong to no tensor", begin - end,
            shown(f.tensor.name));
    end = f.end_bytes;
  }
  require(end == data_bytes, where, "{} bytes behind the last tensor belong to no tensor", data_bytes - end);
}

/// Reads element i of unaligned data.
template <class T>
T load(const std::byte* data, int64_t i) {
  T value;
  std::memcpy(&value, data + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

template <class Out>
void convert(StoredType from, const std::byte* data, Out* out, int64_t n) {
  if (from == StoredType::f32)
    for (int64_t i = 0; i < n; ++i) out[i] = Convert<Out>::from(load<float>(data, i));
  else if (from == StoredType::bf16)
    for (int64_t i = 0; i < n; ++i) out[i] = Convert<Out>::from(to_float(load<bf16>(data, i)));
  else
    for (int64_t i = 0; i < n; ++i) out[i] = Convert<Out>::from(half_to_float(load<uint16_t>(data, i)));
}

}  // namespace

int64_t size_bytes(StoredType type) { return types[static_cast<size_t>(type)].bytes; }
const char* name(StoredType type) { return types[static_cast<size_t>(type)].name; }

StoredType stored(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return StoredType::f32;
    case DType::bf16:
      return StoredType::bf16;
    case DType::i32:
      return StoredType::i32;
    case DType::u8:
      return StoredType::u8;
    case DType::f64:
      break;
  }
  fail("safetensors", "{} is no type that Osprey stores", name(dtype));
}

int64_t StoredTensor::numel() const {
  int64_t n = 1;
  for (int64_t d : shape) n *= d;
  return n;
}

Shape StoredTensor::as_shape() const {
  require(shape.size() <= 4, "safetensors", "tensor '{}' has {} dimensions; Osprey uses at most 4",
          shown(name), shape.size());
  Shape s;
  for (int64_t d : shape) s.dims[static_cast<size_t>(s.rank++)] = d;
  return s;
}

SafetensorsHeader parse_safetensors(const std::string& where, std::span<const std::byte> file) {
  require(file.size() >= 8, where, "holds {} bytes, a safetensors file has at least 8; it is truncated",
          file.size());
  uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);
  require(length <= most_header_bytes, where,
          "says its header has {} bytes, at most {} are allowed; this is no safetensors file", length,
          most_header_bytes);
  require(length <= file.size() - 8, where,
          "says its header has {} bytes, but the file holds {}; it is truncated", length, file.size());
  const auto* text = reinterpret_cast<const char*>(file.data()) + 8;
  require(length >= 2 && text[0] == '{', where,
          "the header does not start with '{{'; this is no safetensors file");

  // The parser takes a NUL for the end of its input and would not look behind it.
  require(std::memchr(text, 0, length) == nullptr, where, "the header is not valid JSON: it holds a NUL");

  HeaderHandler handler(where);
  nlohmann::json::sax_parse(text, text + length, &handler);
  require(handler.state == HeaderHandler::State::done, where, "the header ends too early");
  check_layout(where, handler.found, file.size() - 8 - length);

  SafetensorsHeader header;
  header.data_begin_bytes = static_cast<int64_t>(8 + length);
  header.metadata = std::move(handler.metadata);
  header.tensors.reserve(handler.found.size());
  for (auto& f : handler.found) header.tensors.push_back(std::move(f.tensor));
  return header;
}

SafetensorsFile::SafetensorsFile(const fs::path& path)
    : path_(path), map_(path.string()), header_(parse_safetensors(map_.path(), map_.bytes())) {
  for (size_t i = 0; i < header_.tensors.size(); ++i) by_name_[header_.tensors[i].name] = i;
}

const StoredTensor* SafetensorsFile::find(std::string_view tensor) const {
  const auto it = by_name_.find(tensor);
  return it == by_name_.end() ? nullptr : &header_.tensors[it->second];
}

std::span<const std::byte> SafetensorsFile::bytes(const StoredTensor& tensor) const {
  return map_.bytes().subspan(static_cast<size_t>(header_.data_begin_bytes + tensor.offset_bytes),
                              static_cast<size_t>(tensor.bytes()));
}

void SafetensorsFile::read(const StoredTensor& tensor, int64_t begin, Tensor out) const {
  const int64_t n = out.numel();
  require(begin >= 0 && n <= tensor.numel() - begin, path_.string(),
          "elements [{}, {}) of tensor '{}' do not exist, it has {}", begin, begin + n, shown(tensor.name),
          tensor.numel());
  require(out.contiguous(), path_.string(), "tensor '{}' can only be read into contiguous memory",
          shown(tensor.name));
  if (n == 0) return;
  const std::byte* data = bytes(tensor).data() + begin * size_bytes(tensor.type);
  const bool floating =
      tensor.type == StoredType::f32 || tensor.type == StoredType::bf16 || tensor.type == StoredType::f16;
  if (tensor.type == stored(out.dtype)) {
    std::memcpy(out.data, data, static_cast<size_t>(out.bytes()));
  } else if (floating && out.dtype == DType::f32) {
    convert(tensor.type, data, out.as<float>(), n);
  } else if (floating && out.dtype == DType::bf16) {
    convert(tensor.type, data, out.as<bf16>(), n);
  } else {
    fail(path_.string(), "tensor '{}' is {} and cannot be read as {}", shown(tensor.name), name(tensor.type),
         name(out.dtype));
  }
}

SafetensorsModel::SafetensorsModel(const fs::path& directory) : directory_(directory) {
  const auto add = [&](const fs::path& path) -> const SafetensorsFile& {
    files_.push_back(std::make_unique<SafetensorsFile>(path));
    return *files_.back();
  };
  if (fs::exists(directory / "model.safetensors")) {
    const auto& file = add(directory / "model.safetensors");
    for (const auto& t : file.tensors()) where_[t.name] = {&file, &t};
    return;
  }
  const fs::path index = directory / "model.safetensors.index.json";
  require(fs::exists(index), "safetensors",
          "{} has neither model.safetensors nor model.safetensors.index.json", directory.string());
  const nlohmann::json json = read_json(index, int64_t{1} << 26, 3);
  const std::string at = index.string();
  require(json.is_object() && json.contains("weight_map") && json["weight_map"].is_object(), at,
          "has no object 'weight_map'");
  std::map<std::string, const SafetensorsFile*> shards;
  for (const auto& [tensor, file] : json["weight_map"].items()) {
    require(file.is_string(), at, "the file of tensor '{}' is not a string", shown(tensor));
    const auto shard = file.get<std::string>();
    require(is_plain_file_name(shard), at,
            "the file '{}' of tensor '{}' must be a plain name inside the directory", shown(shard),
            shown(tensor));
    auto& opened = shards[shard];
    if (!opened) opened = &add(directory / shard);
    const StoredTensor* found = opened->find(tensor);
    require(found != nullptr, at, "says that tensor '{}' is in {}, where it is not", shown(tensor),
            shown(shard));
    where_[tensor] = {opened, found};
  }
  for (const auto& [shard, file] : shards)
    for (const auto& t : file->tensors()) {
      const auto it = where_.find(t.name);
      require(it != where_.end() && it->second.file == file, at, "does not list tensor '{}' of {}",
              shown(t.name), shard);
    }
}

std::vector<std::string> SafetensorsModel::names() const {
  std::vector<std::string> names;
  for (const auto& [name, place] : where_) names.push_back(name);
  return names;
}

const SafetensorsModel::Place& SafetensorsModel::place(std::string_view name) const {
  const auto it = where_.find(name);
  require(it != where_.end(), "safetensors", "{} has no tensor '{}'", directory_.string(), name);
  return it->second;
}

const StoredTensor& SafetensorsModel::tensor(std::string_view name) const { return *place(name).tensor; }

void SafetensorsModel::read(std::string_view name, Tensor out) const {
  const Place& p = place(name);
  require(p.tensor->numel() == out.numel(), p.file->path().string(),
          "tensor '{}' has {} elements, {} are wanted", name, p.tensor->numel(), out.numel());
  p.file->read(*p.tensor, 0, out);
}

void SafetensorsModel::read_range(std::string_view name, int64_t begin, Tensor out) const {
  const Place& p = place(name);
  p.file->read(*p.tensor, begin, out);
}

SafetensorsWriter::SafetensorsWriter(const fs::path& path, std::vector<StoredTensor> tensors,
                                     const std::map<std::string, std::string>& metadata)
    : order_(std::move(tensors)), file_(path) {
  std::sort(order_.begin(), order_.end(), [](const StoredTensor& a, const StoredTensor& b) {
    return a.type != b.type ? a.type < b.type : a.name < b.name;
  });
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) {
    auto& meta = header["__metadata__"] = nlohmann::ordered_json::object();
    for (const auto& [key, value] : metadata) meta[key] = value;
  }
  // Appending by hand: ordered_json looks a new key up among all others, which is quadratic.
  std::string text = header.dump();
  text.pop_back();
  int64_t offset = 0;
  std::set<std::string_view> names;
  for (StoredTensor& t : order_) {
    require(!t.name.empty() && t.name != "__metadata__", path.string(), "'{}' cannot name a tensor", t.name);
    require(names.insert(t.name).second, path.string(), "the tensor '{}' is given twice", t.name);
    t.offset_bytes = offset;
    offset += t.bytes();
    text += fmt::format("{}{}:{{\"dtype\":\"{}\",\"shape\":{},\"data_offsets\":[{},{}]}}",
                        text.size() > 1 ? "," : "", nlohmann::json(t.name).dump(), osprey::name(t.type),
                        nlohmann::json(t.shape).dump(), t.offset_bytes, offset);
  }
  text += '}';
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t length = text.size();
  file_.write(std::as_bytes(std::span(&length, 1)));
  file_.write(text);
}

void SafetensorsWriter::write(std::string_view tensor, std::span<const std::byte> data) {
  while (next_ < order_.size() && written_bytes_ == order_[next_].bytes() && order_[next_].name != tensor) {
    ++next_;
    written_bytes_ = 0;
  }
  require(next_ < order_.size() && order_[next_].name == tensor, file_.path().string(),
          "tensor '{}' is written out of turn; the next is '{}'", tensor,
          next_ < order_.size() ? order_[next_].name : "none");
  written_bytes_ += static_cast<int64_t>(data.size());
  require(written_bytes_ <= order_[next_].bytes(), file_.path().string(),
          "tensor '{}' has {} bytes, more were given", tensor, order_[next_].bytes());
  file_.write(data);
}

FileRecord SafetensorsWriter::finish() {
  for (; next_ < order_.size(); ++next_, written_bytes_ = 0)
    require(written_bytes_ == order_[next_].bytes(), file_.path().string(),
            "tensor '{}' lacks {} of its {} bytes", order_[next_].name,
            order_[next_].bytes() - written_bytes_, order_[next_].bytes());
  return file_.finish();
}

}  // namespace osprey
