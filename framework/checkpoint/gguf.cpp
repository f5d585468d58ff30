#include "framework/checkpoint/gguf.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "framework/memory/arena.h"
#include "kernels/core/check.h"
#include "kernels/numerics/half.h"
#include "kernels/quantize.h"

namespace osprey {

namespace {

constexpr int64_t alignment = 32;  // the default of the format
constexpr uint32_t version = 3;
constexpr size_t longest_name = 63;

template <class T>
void put(std::string& to, T value) {
  to.append(reinterpret_cast<const char*>(&value), sizeof(T));
}

void put_string(std::string& to, std::string_view text) {
  put(to, static_cast<uint64_t>(text.size()));
  to += text;
}

int64_t aligned(int64_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }

constexpr int64_t block_elements = 32;

/// Half of d, then 32 signed bytes.
void encode_q8_0(const float* x, int64_t n, std::string& to) {
  for (; n > 0; n -= block_elements, x += block_elements) {
    float most = 0;
    for (int64_t i = 0; i < block_elements; ++i) most = std::max(most, std::abs(x[i]));
    const float d = most / 127.0f, inverse = d > 0 ? 1.0f / d : 0.0f;
    put(to, float_to_half(d));
    for (int64_t i = 0; i < block_elements; ++i) put(to, static_cast<int8_t>(std::round(x[i] * inverse)));
  }
}

/// A scale, then 16 bytes: element i in the low half of byte i, element i + 16 in its high half.
void encode_mxfp4(const Queue& queue, const Tensor& rows, std::string_view tensor, std::string& to) {
  const BlockFormat& format = block_format("mxfp4");
  Arena memory("a packed tensor", {}, packed_bytes(format, rows.rows(), rows.cols()) + 256);
  const Packed packed = make_packed(format, rows.rows(), rows.cols(),
                                    [&](const Shape& s, DType d) { return memory.alloc(s, d); });
  kernels::quantize(queue, {.y = packed, .x = rows});
  const auto impossible = find_impossible(packed);
  require(!impossible, "gguf", "{} holds NaN or Inf: {}", tensor, impossible.value_or(""));
  const auto* codes = packed.codes.as<uint8_t>();
  const auto* scales = packed.scales.as<uint8_t>();
  for (int64_t b = 0; b < packed.scales.numel(); ++b, codes += block_elements / 2) {
    const auto code = [&](int64_t i) { return (codes[i / 2] >> (i % 2 * 4)) & 0xf; };
    put(to, scales[b]);
    for (int64_t i = 0; i < block_elements / 2; ++i)
      put(to, static_cast<uint8_t>(code(i) | code(i + block_elements / 2) << 4));
  }
}

}  // namespace

const char* name(GgufType type) {
  switch (type) {
    case GgufType::f32:
      return "f32";
    case GgufType::f16:
      return "f16";
    case GgufType::q8_0:
      return "q8_0";
    case GgufType::bf16:
      return "bf16";
    case GgufType::mxfp4:
      return "mxfp4";
  }
  fail("gguf", "no such type");
}

int64_t block_of(GgufType type) {
  return type == GgufType::q8_0 || type == GgufType::mxfp4 ? block_elements : 1;
}

int64_t gguf_bytes(GgufType type, const Shape& shape, std::string_view tensor) {
  const int64_t block = block_of(type);
  require(shape[-1] % block == 0, "gguf",
          "rows of {} have {} elements, and {} wants a multiple of {}; take f16 or f32", tensor, shape[-1],
          name(type), block);
  const int64_t of_block = type == GgufType::f32     ? 4
                           : type == GgufType::q8_0  ? 2 + block_elements
                           : type == GgufType::mxfp4 ? 1 + block_elements / 2
                                                     : 2;
  return shape.numel() / block * of_block;
}

void GgufKeys::begin(const std::string& key, Type type) {
  require(!key.empty() && std::find(names_.begin(), names_.end(), key) == names_.end(), "gguf",
          "the key '{}' is empty or given twice", key);
  names_.push_back(key);
  put_string(bytes_, key);
  put(bytes_, type);
}

void GgufKeys::begin_array(const std::string& key, Type of, size_t count) {
  begin(key, Type::array);
  put(bytes_, of);
  put(bytes_, static_cast<uint64_t>(count));
}

void GgufKeys::add(const std::string& key, uint32_t value) {
  begin(key, Type::u32);
  put(bytes_, value);
}
void GgufKeys::add(const std::string& key, float value) {
  begin(key, Type::f32);
  put(bytes_, value);
}
void GgufKeys::add(const std::string& key, bool value) {
  begin(key, Type::boolean);
  put(bytes_, static_cast<uint8_t>(value));
}
void GgufKeys::add(const std::string& key, std::string_view value) {
  begin(key, Type::string);
  put_string(bytes_, value);
}
void GgufKeys::add(const std::string& key, std::span<const std::string> values) {
  begin_array(key, Type::string, values.size());
  for (const std::string& value : values) put_string(bytes_, value);
}
void GgufKeys::add(const std::string& key, std::span<const float> values) {
  begin_array(key, Type::f32, values.size());
  for (const float value : values) put(bytes_, value);
}
void GgufKeys::add(const std::string& key, std::span<const int32_t> values) {
  begin_array(key, Type::i32, values.size());
  for (const int32_t value : values) put(bytes_, value);
}

void encode_gguf(const Queue& queue, GgufType type, const Tensor& rows, std::string_view tensor,
                 std::string& to) {
  const float* x = rows.as<float>();
  const int64_t n = rows.numel();
  switch (type) {
    case GgufType::f32:
      to.append(reinterpret_cast<const char*>(x), static_cast<size_t>(n) * sizeof(float));
      return;
    case GgufType::f16:
      for (int64_t i = 0; i < n; ++i) put(to, checked_half(x[i], "gguf", tensor));
      return;
    case GgufType::bf16:
      for (int64_t i = 0; i < n; ++i) put(to, to_bf16(x[i]).bits);
      return;
    case GgufType::q8_0:
      return encode_q8_0(x, n, to);
    case GgufType::mxfp4:
      return encode_mxfp4(queue, rows, tensor, to);
  }
}

GgufWriter::GgufWriter(const std::filesystem::path& path, const GgufKeys& keys,
                       std::vector<GgufTensor> tensors)
    : tensors_(std::move(tensors)), file_(path) {
  std::string head = "GGUF";
  put(head, version);
  put(head, static_cast<uint64_t>(tensors_.size()));
  put(head, keys.count());
  head += keys.bytes();
  int64_t offset = 0;
  std::set<std::string_view> names;
  for (const GgufTensor& t : tensors_) {
    require(!t.name.empty() && t.name.size() <= longest_name && names.insert(t.name).second, path.string(),
            "the tensor name '{}' is empty, longer than {} bytes, or given twice", t.name, longest_name);
    put_string(head, t.name);
    put(head, static_cast<uint32_t>(t.shape.rank));
    for (int d = t.shape.rank - 1; d >= 0; --d) put(head, static_cast<uint64_t>(t.shape[d]));
    put(head, t.type);
    put(head, static_cast<uint64_t>(offset));
    offset += aligned(gguf_bytes(t.type, t.shape, t.name));
  }
  head.resize(static_cast<size_t>(aligned(static_cast<int64_t>(head.size()))), '\0');
  file_.write(head);
}

void GgufWriter::end_tensor() {
  const GgufTensor& t = tensors_[next_];
  const int64_t bytes = gguf_bytes(t.type, t.shape, t.name);
  require(written_bytes_ == bytes, file_.path().string(), "tensor '{}' has {} of its {} bytes", t.name,
          written_bytes_, bytes);
  file_.write(std::string(static_cast<size_t>(aligned(bytes) - bytes), '\0'));
  ++next_;
  written_bytes_ = 0;
}

void GgufWriter::write(std::string_view tensor, std::string_view data) {
  if (next_ < tensors_.size() && tensors_[next_].name != tensor) end_tensor();
  require(next_ < tensors_.size() && tensors_[next_].name == tensor, file_.path().string(),
          "tensor '{}' is written out of turn", tensor);
  written_bytes_ += static_cast<int64_t>(data.size());
  file_.write(data);
}

FileRecord GgufWriter::finish() {
  if (next_ < tensors_.size()) end_tensor();
  require(next_ == tensors_.size(), file_.path().string(), "{} tensors were not written",
          tensors_.size() - next_);
  return file_.finish();
}

}  // namespace osprey
