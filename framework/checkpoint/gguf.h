#pragma once
// The GGUF file format, version 3: what llama.cpp and its relatives read. Written front to back.
//
// Layout: "GGUF", u32 version, u64 tensors, u64 keys, the keys, the tensors' names and places, then the data,
// each tensor at a multiple of the alignment. Everything is little endian. Reference: ggml's docs/gguf.md;
// blocks as in ggml-common.h.

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "framework/files/file.h"
#include "kernels/core/queue.h"
#include "kernels/core/tensor.h"

namespace osprey {

/// Element types that Osprey writes, by ggml's numbers.
enum class GgufType : uint32_t { f32 = 0, f16 = 1, q8_0 = 8, bf16 = 30, mxfp4 = 39 };
const char* name(GgufType type);  // "q8_0"
/// Elements that a row must have a multiple of.
int64_t block_of(GgufType type);
/// Of a tensor of this type. Errors: rows that are no whole blocks.
int64_t gguf_bytes(GgufType type, const Shape& shape, std::string_view tensor);

/// The keys of a file, in the order in which they are added. Errors: a key that is empty or given twice.
class GgufKeys {
 public:
  void add(const std::string& key, uint32_t value);
  void add(const std::string& key, float value);
  void add(const std::string& key, bool value);
  void add(const std::string& key, std::string_view value);
  void add(const std::string& key, const char* value) { add(key, std::string_view(value)); }
  void add(const std::string& key, std::span<const std::string> values);
  void add(const std::string& key, std::span<const float> values);
  void add(const std::string& key, std::span<const int32_t> values);

  uint64_t count() const { return names_.size(); }
  const std::string& bytes() const { return bytes_; }

 private:
  enum class Type : uint32_t { u32 = 4, i32 = 5, f32 = 6, boolean = 7, string = 8, array = 9 };
  void begin(const std::string& key, Type type);
  void begin_array(const std::string& key, Type of, size_t count);
  std::vector<std::string> names_;
  std::string bytes_;
};

/// One tensor of a file, with its shape as ours: the last dimension is the one that lies together.
struct GgufTensor {
  std::string name;
  Shape shape;
  GgufType type = GgufType::f32;
};

/// Rows of fp32 as the bytes of `type`, which are appended to `to`.
/// Shapes: rows (n, cols) f32 in host memory. Numerics: rounded once, to nearest even; q8_0 as ggml's
/// reference (d = max / 127, half away from zero); mxfp4 with the scale of `osprey quantize --format mxfp4`.
/// Errors: F16 cannot hold the number, or mxfp4 meets NaN or Inf.
void encode_gguf(const Queue& queue, GgufType type, const Tensor& rows, std::string_view tensor,
                 std::string& to);

class GgufWriter {
 public:
  /// Creates `path` and writes all that comes before the data.
  /// Errors: names that are given twice, too long or empty; a file that exists or cannot be written.
  GgufWriter(const std::filesystem::path& path, const GgufKeys& keys, std::vector<GgufTensor> tensors);
  /// The next bytes of the data of `tensor`. Tensors come in the order they were given in.
  void write(std::string_view tensor, std::string_view data);
  /// Errors: a tensor lacks bytes.
  FileRecord finish();

 private:
  void end_tensor();
  std::vector<GgufTensor> tensors_;
  size_t next_ = 0;
  int64_t written_bytes_ = 0;
  OutputFile file_;
};

}  // namespace osprey
