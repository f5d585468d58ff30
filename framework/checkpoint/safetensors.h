#pragma once
// The safetensors file format: named tensors behind a JSON header, mapped on reading, streamed on writing.
//
// Layout: u64 header length N (little endian), N bytes of JSON padded with spaces, then the data. Files
// come from others, so the reader trusts no number in them.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "framework/files/file.h"
#include "framework/files/mapped_file.h"
#include "kernels/core/tensor.h"

namespace osprey {

/// Element types that Osprey reads and writes, in the order in which the writer lays them out: wide
/// elements first, so that every tensor is aligned to its own element.
enum class StoredType : uint8_t { i64, f32, i32, bf16, f16, u8 };
int64_t size_bytes(StoredType type);
const char* name(StoredType type);  // "BF16", as in the file
/// Errors: throws on f64.
StoredType stored(DType dtype);

/// One tensor of a file.
struct StoredTensor {
  std::string name;
  StoredType type = StoredType::f32;
  std::vector<int64_t> shape;
  int64_t offset_bytes = 0;  // from the first byte behind the header

  int64_t numel() const;
  int64_t bytes() const { return numel() * size_bytes(type); }
  /// Errors: throws when the tensor has more than four dimensions.
  Shape as_shape() const;
};

/// What the header says, checked.
struct SafetensorsHeader {
  std::vector<StoredTensor> tensors;  // by offset
  std::map<std::string, std::string> metadata;
  int64_t data_begin_bytes = 0;
};

/// Reads and checks the header of a whole file image; `where` names the file in messages.
/// Errors: header length, JSON, dtype, shape, offsets, holes, overlaps, duplicate names, numbers that
/// are negative, fractional or too large, missing or trailing data: one Error each, before any tensor
/// is touched.
SafetensorsHeader parse_safetensors(const std::string& where, std::span<const std::byte> file);

/// A file mapped for reading.
class SafetensorsFile {
 public:
  /// Errors: as parse_safetensors, or when the file cannot be opened.
  explicit SafetensorsFile(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return path_; }
  const std::vector<StoredTensor>& tensors() const { return header_.tensors; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }
  /// Null when there is no such tensor.
  const StoredTensor* find(std::string_view tensor) const;
  /// Aliasing: the mapping of this file. The bytes may be unaligned for their element.
  std::span<const std::byte> bytes(const StoredTensor& tensor) const;
  /// Elements [begin, begin + out.numel()) of the flattened tensor, converted to the dtype of `out`.
  /// Numerics: f32, f16 and bf16 convert among each other by rounding once to nearest even; integers
  /// do not convert.
  /// Errors: range outside the tensor, or types that do not convert.
  void read(const StoredTensor& tensor, int64_t begin, Tensor out) const;

 private:
  std::filesystem::path path_;
  MappedFile map_;
  SafetensorsHeader header_;
  std::map<std::string, size_t, std::less<>> by_name_;
};

/// A model directory: `model.safetensors`, or the shards that `model.safetensors.index.json` lists.
class SafetensorsModel {
 public:
  /// Errors: shard names that leave the directory, tensors that the index and the shards do not agree on.
  explicit SafetensorsModel(const std::filesystem::path& directory);
  const std::filesystem::path& path() const { return directory_; }
  std::vector<std::string> names() const;
  bool has(std::string_view tensor) const { return where_.find(tensor) != where_.end(); }
  /// Errors: throws, naming the directory, when there is no such tensor.
  const StoredTensor& tensor(std::string_view name) const;
  /// The whole tensor, converted to the dtype of `out`. Errors: element counts differ.
  void read(std::string_view name, Tensor out) const;
  /// Elements [begin, begin + out.numel()) of the flattened tensor.
  void read_range(std::string_view name, int64_t begin, Tensor out) const;

 private:
  struct Place {
    const SafetensorsFile* file;
    const StoredTensor* tensor;
  };
  const Place& place(std::string_view name) const;
  std::filesystem::path directory_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, Place, std::less<>> where_;
};

/// Writes one file front to back without holding it in memory. The order of tensors depends only on
/// their types and names, so equal contents give equal bytes.
class SafetensorsWriter {
 public:
  /// Offsets in `tensors` are ignored. Creates `path` and writes the header.
  /// Errors: duplicate or empty names; a file that exists or cannot be written.
  SafetensorsWriter(const std::filesystem::path& path, std::vector<StoredTensor> tensors,
                    const std::map<std::string, std::string>& metadata);
  /// In the order in which write() must be called, offsets filled in.
  const std::vector<StoredTensor>& order() const { return order_; }
  /// Appends data of the next tensor that is not complete; may be called several times for one tensor.
  /// Errors: throws when `tensor` is not that tensor or the data exceed it.
  void write(std::string_view tensor, std::span<const std::byte> data);
  /// Makes the file durable. Errors: throws when a tensor is incomplete.
  FileRecord finish();

 private:
  std::vector<StoredTensor> order_;
  size_t next_ = 0;
  int64_t written_bytes_ = 0;  // of order_[next_]
  OutputFile file_;
};

}  // namespace osprey
