#include "framework/files/mapped_file.h"

#include <fcntl.h>
#include <glob.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "kernels/core/check.h"

namespace osprey {

MappedFile::MappedFile(const std::string& path, std::string_view cure) : path_(path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  require(fd >= 0, "file", "cannot open {}: {}; {}", path, std::strerror(errno), cure);
  struct stat info {};
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd);
    fail("file", "{} is not a regular file; {}", path, cure);
  }
  size_bytes_ = info.st_size;
  if (size_bytes_ > 0) {
    void* map = ::mmap(nullptr, static_cast<size_t>(size_bytes_), PROT_READ, MAP_SHARED, fd, 0);
    const int why = errno;
    ::close(fd);
    require(map != MAP_FAILED, "file", "cannot map {} ({} bytes): {}", path, size_bytes_, std::strerror(why));
    data_ = static_cast<unsigned char*>(map);
  } else {
    ::close(fd);
  }
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)), data_(other.data_), size_bytes_(other.size_bytes_) {
  other.data_ = nullptr;
  other.size_bytes_ = 0;
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(data_, static_cast<size_t>(size_bytes_));
}

std::vector<std::string> glob_paths(const std::string& pattern) {
  glob_t found{};
  std::vector<std::string> paths;
  const int rc = ::glob(pattern.c_str(), GLOB_NOSORT | GLOB_TILDE, nullptr, &found);
  if (rc == 0) paths.assign(found.gl_pathv, found.gl_pathv + found.gl_pathc);
  ::globfree(&found);
  require(rc == 0 || rc == GLOB_NOMATCH, "data", "cannot list {}: {}", pattern, std::strerror(errno));
  std::sort(paths.begin(),
            paths.end());  // by bytes: the locale must not decide the order of shards
  return paths;
}

}  // namespace osprey
