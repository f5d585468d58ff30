#pragma once
// Bytes of a file, plain or compressed.

#include <cstdint>
#include <memory>
#include <string>

namespace osprey {

class ByteStream {
 public:
  virtual ~ByteStream() = default;
  /// Appends up to `most_bytes` to `out` and returns how many; 0 at the end.
  /// Errors: a file that cannot be read, or whose compressed data is damaged or ends early, is
  /// named.
  virtual size_t read(std::string& out, size_t most_bytes) = 0;
};

/// gzip (also of several members, and dictzip) and zstd are told by their first bytes, whatever the
/// name. Errors: no such file; a name in .gz, .dz or .zst over something else, or of
/// another compression (.xz, .bz2, ...).
std::unique_ptr<ByteStream> open_bytes(const std::string& path);

}  // namespace osprey
