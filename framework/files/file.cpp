#include "framework/files/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/core/check.h"

namespace osprey {

namespace fs = std::filesystem;

namespace {

constexpr size_t chunk_bytes = size_t{1} << 20;

bool lacks_room(int error) { return error == ENOSPC || error == EDQUOT || error == EFBIG; }

std::string system_problem(const char* what, const fs::path& path, int error) {
  const std::string problem = fmt::format("cannot {} {}: {}", what, path.string(), std::strerror(error));
  if (!lacks_room(error)) return problem;
  return problem + "; files published before are untouched, free some space or lower checkpoint.keep";
}

[[noreturn]] void fail_system(const char* what, const fs::path& path, int error) {
  fail("file", "{}", system_problem(what, path, error));
}

struct Descriptor {
  int fd = -1;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

/// Calls `consume` with every chunk of the file.
template <class Consume>
void read_chunks(const fs::path& path, const Consume& consume) {
  Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.fd < 0) fail_system("open", path, errno);
  std::vector<std::byte> chunk(chunk_bytes);
  for (;;) {
    const ssize_t n = ::read(file.fd, chunk.data(), chunk.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_system("read", path, errno);
    if (n == 0) return;
    consume(std::span<const std::byte>(chunk.data(), static_cast<size_t>(n)));
  }
}

uint32_t extend_crc(uint32_t crc, std::span<const std::byte> data) {
  return static_cast<uint32_t>(
      ::crc32_z(crc, reinterpret_cast<const unsigned char*>(data.data()), data.size()));
}

}  // namespace

OutputFile::OutputFile(const fs::path& path) : path_(path) {
  fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd_ < 0) fail_system("create", path, errno);
}

OutputFile::~OutputFile() {
  if (fd_ >= 0) ::close(fd_);
}

void OutputFile::write(std::span<const std::byte> data) {
  require(fd_ >= 0, "file", "{} is finished and takes no more data", path_.string());
  while (!data.empty()) {
    // Hash and write in pieces that stay in the cache.
    const auto piece = data.first(std::min(data.size(), chunk_bytes));
    const ssize_t n = ::write(fd_, piece.data(), piece.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_system("write", path_, errno);
    crc32_ = extend_crc(crc32_, piece.first(static_cast<size_t>(n)));
    size_bytes_ += n;
    data = data.subspan(static_cast<size_t>(n));
  }
}

FileRecord OutputFile::finish() {
  require(fd_ >= 0, "file", "{} was finished twice", path_.string());
  if (::fsync(fd_) != 0) fail_system("fsync", path_, errno);
  const int closed = ::close(fd_);
  fd_ = -1;
  if (closed != 0) fail_system("close", path_, errno);
  return {path_.filename().string(), size_bytes_, crc32_};
}

FileRecord write_file(const fs::path& path, std::string_view text) {
  OutputFile file(path);
  file.write(text);
  return file.finish();
}

void replace_file(const fs::path& path, std::string_view text) {
  const fs::path aside = path.string() + ".partial";
  std::error_code ignored;
  fs::remove(aside, ignored);  // of a process that was killed here
  try {
    write_file(aside, text);
    if (::rename(aside.c_str(), path.c_str()) != 0) fail_system("replace", path, errno);
  } catch (...) {
    fs::remove(aside, ignored);
    throw;
  }
}

AppendFile::AppendFile(const fs::path& path, Tell tell) : path_(path), tell_(std::move(tell)) {
  fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd_ < 0) fail_system("open", path, errno);
}

AppendFile::~AppendFile() {
  if (fd_ >= 0) ::close(fd_);
}

/// Writes what the system takes and leaves the rest in `record`; returns the error, or 0.
int AppendFile::put(std::string_view& record) {
  while (!record.empty()) {
    const ssize_t n = ::write(fd_, record.data(), record.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    record.remove_prefix(static_cast<size_t>(n));
  }
  return 0;
}

void AppendFile::write(std::string_view record) {
  if (!tell_) {
    if (const int error = put(record)) fail_system("write", path_, error);
    return;
  }
  if (static_cast<int64_t>(waiting_.size() + record.size()) > most_waiting_bytes)
    ++lost_records_;
  else
    waiting_ += record;
  put_waiting();
}

void AppendFile::put_waiting() {
  std::string_view rest = waiting_;
  const int error = put(rest);
  waiting_.erase(0, waiting_.size() - rest.size());
  if (error && !lacks_room(error)) fail_system("write", path_, error);
  if (error && !std::exchange(told_, true))
    tell_(fmt::format("{}; up to {} MiB of it wait in memory until there is room",
                      system_problem("write", path_, error), most_waiting_bytes >> 20));
  if (error || !std::exchange(told_, false)) return;
  const std::string lost = lost_records_ ? fmt::format(", without {} records", lost_records_) : "";
  tell_(fmt::format("{} is written again{}", path_.string(), lost));
  lost_records_ = 0;
}

void AppendFile::finish() {
  if (waiting_.empty()) return;
  put_waiting();
  if (!waiting_.empty())
    tell_(fmt::format("{}: the last {} bytes and {} records are lost", path_.string(), waiting_.size(),
                      lost_records_));
}

FileRecord copy_file_durably(const fs::path& from, const fs::path& to) {
  OutputFile file(to);
  read_chunks(from, [&](std::span<const std::byte> data) { file.write(data); });
  return file.finish();
}

std::string read_file(const fs::path& path, int64_t most_bytes) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) fail_system("open", path, errno);
  require(S_ISREG(info.st_mode), "file", "{} is not a regular file", path.string());
  std::string text;
  read_chunks(path, [&](std::span<const std::byte> data) {
    require(static_cast<int64_t>(text.size() + data.size()) <= most_bytes, "file",
            "{} is longer than {} bytes, which such a file never is", path.string(), most_bytes);
    text.append(reinterpret_cast<const char*>(data.data()), data.size());
  });
  return text;
}

FileRecord hash_file(const fs::path& path) {
  FileRecord record{path.filename().string(), 0, 0};
  read_chunks(path, [&](std::span<const std::byte> data) {
    record.crc32 = extend_crc(record.crc32, data);
    record.size_bytes += static_cast<int64_t>(data.size());
  });
  return record;
}

FileRecord sync_file(const fs::path& path) {
  Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.fd < 0) fail_system("open", path, errno);
  if (::fsync(file.fd) != 0) fail_system("fsync", path, errno);
  return hash_file(path);
}

void sync_directory(const fs::path& path) {
  Descriptor directory{::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (directory.fd < 0) fail_system("open", path, errno);
  // Some network file systems cannot sync a directory and say so with EINVAL.
  if (::fsync(directory.fd) != 0 && errno != EINVAL) fail_system("fsync", path, errno);
}

bool is_plain_file_name(std::string_view name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string_view::npos &&
         name.find('\0') == std::string_view::npos;
}

std::string shown(std::string_view text) {
  std::string out(text.substr(0, 200));
  for (char& c : out)
    if (static_cast<unsigned char>(c) < 0x20) c = '?';
  return text.size() > 200 ? out + "..." : out;
}

}  // namespace osprey
