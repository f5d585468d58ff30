#pragma once
// Reading and writing whole files. What must survive is written once, hashed while written, and on the disk
// before anyone relies on it.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>

namespace osprey {

/// What a manifest knows of a file.
struct FileRecord {
  std::string name;  // relative to the directory of the manifest, with '/'
  int64_t size_bytes = 0;
  uint32_t crc32 = 0;  // of zlib
  bool operator==(const FileRecord&) const = default;
};

/// A new file. Closing without finish() leaves an incomplete file behind; the directory it stands in is
/// then not published.
/// Errors: every failure of the system names the file and the reason; a full disk says that nothing that
/// was published before is touched.
class OutputFile {
 public:
  /// Errors: throws when `path` exists.
  explicit OutputFile(const std::filesystem::path& path);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(std::span<const std::byte> data);
  void write(std::string_view text) { write(std::as_bytes(std::span(text.data(), text.size()))); }
  /// fsync and close. The record's name is the file name without directories.
  FileRecord finish();
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  int fd_ = -1;
  int64_t size_bytes_ = 0;
  uint32_t crc32_ = 0;
};

/// A log that others read while it grows: each record is in the file when write() returns.
class AppendFile {
 public:
  /// Hears a sentence about the file.
  using Tell = std::function<void(const std::string&)>;
  /// What waits for room at most; records beyond it are lost.
  static constexpr int64_t most_waiting_bytes = int64_t{64} << 20;

  /// Creates `path` where it is missing. With `tell` the file is patient: what a full disk does not take
  /// waits in memory and goes before the next record. `tell` hears of it when that begins and when it ends.
  /// Errors: throws when `path` cannot be opened.
  explicit AppendFile(const std::filesystem::path& path, Tell tell = {});
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;

  /// Errors: throws when it cannot be written; a patient file throws for want of room alone never.
  void write(std::string_view record);
  /// Tries a last time to write what waits, and tells what is lost for want of room. Errors: as write().
  void finish();
  const std::filesystem::path& path() const { return path_; }

 private:
  int put(std::string_view& record);
  void put_waiting();
  std::filesystem::path path_;
  Tell tell_;
  int fd_ = -1;
  std::string waiting_;
  int64_t lost_records_ = 0;
  bool told_ = false;
};

/// Writes a small file durably.
FileRecord write_file(const std::filesystem::path& path, std::string_view text);
/// Puts a small file where another may stand, durably and in one instant: readers see the old or the new.
/// Written aside as `<path>.partial`.
void replace_file(const std::filesystem::path& path, std::string_view text);
/// Copies a file durably.
FileRecord copy_file_durably(const std::filesystem::path& from, const std::filesystem::path& to);
/// The whole of a small file. Errors: missing, not a regular file, or longer than `most_bytes`.
std::string read_file(const std::filesystem::path& path, int64_t most_bytes);
/// Size and hash of a file as it is now. Errors: missing or unreadable.
FileRecord hash_file(const std::filesystem::path& path);
/// Makes a file that someone else wrote durable, and hashes it.
FileRecord sync_file(const std::filesystem::path& path);
/// Makes the names in a directory durable.
void sync_directory(const std::filesystem::path& path);

/// A plain file name: not empty, no '/', no NUL, neither "." nor "..".
bool is_plain_file_name(std::string_view name);
/// Text out of a file, fit for a message: at most 200 bytes, control characters as '?'.
std::string shown(std::string_view text);

}  // namespace osprey
