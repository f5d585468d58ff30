#pragma once
// Files to read: maps of whole files, and names found by shell patterns.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace osprey {

/// A whole file mapped read-only; an empty file is a valid map of no bytes.
/// Errors: a file that is missing, is not a regular file or cannot be mapped is named, with `cure`.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path, std::string_view cure = "check the path");
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;
  ~MappedFile();

  const unsigned char* data() const { return data_; }
  int64_t size_bytes() const { return size_bytes_; }
  std::span<const std::byte> bytes() const {
    return std::as_bytes(std::span(data_, static_cast<size_t>(size_bytes_)));
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  unsigned char* data_ = nullptr;
  int64_t size_bytes_ = 0;
};

/// Existing paths that match a shell pattern, sorted by bytes; empty when none does.
std::vector<std::string> glob_paths(const std::string& pattern);

}  // namespace osprey
