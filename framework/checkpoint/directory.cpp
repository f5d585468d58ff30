#include "framework/checkpoint/directory.h"

#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>

#include "framework/files/json.h"
#include "kernels/core/check.h"

namespace osprey {

namespace fs = std::filesystem;

namespace {

constexpr std::string_view partial_mark = ".partial-";
constexpr const char* manifest_name = "manifest.json";
constexpr int manifest_format = 1;

std::string host_name() {
  char name[HOST_NAME_MAX + 1] = {};
  ::gethostname(name, HOST_NAME_MAX);
  return name;
}

/// Names that this process took, to be told from those of an earlier one with the same number: in a container
/// every run may be process 1.
struct TakenNames {
  std::mutex mutex;
  std::set<fs::path> paths;  // absolute
};
TakenNames& taken_names() {
  static TakenNames names;
  return names;
}

/// A fresh hidden name beside `path`, which is absolute. The number keeps it apart from others of this
/// process and from what an earlier one left.
fs::path partial_path(const fs::path& path) {
  TakenNames& taken = taken_names();
  const std::lock_guard lock(taken.mutex);
  for (int number = 0;; ++number) {
    const fs::path name =
        path.parent_path() / fmt::format("{}{}{}.{}{}", path.filename().string(), partial_mark, ::getpid(),
                                         host_name(), number ? fmt::format(".{}", number) : "");
    std::error_code ignored;
    if (!fs::exists(name, ignored) && taken.paths.insert(name).second) return name;
  }
}

/// Whose leftover a name is; nothing when it is not a partial name.
struct Owner {
  pid_t pid = 0;
  bool this_host = false;
};
std::optional<Owner> owner_of(const std::string& name) {
  const size_t mark = name.rfind(partial_mark);
  if (mark == std::string::npos) return std::nullopt;
  const std::string rest = name.substr(mark + partial_mark.size());
  Owner owner;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), owner.pid);
  if (error != std::errc() || owner.pid <= 0 || end == rest.data() + rest.size() || *end != '.')
    return std::nullopt;
  const std::string host = rest.substr(static_cast<size_t>(end - rest.data()) + 1);
  owner.this_host = host == host_name() || host.starts_with(host_name() + ".");
  return owner;
}

bool alive(pid_t pid) { return ::kill(pid, 0) == 0 || errno == EPERM; }

bool taken_here(const fs::path& path) {
  TakenNames& taken = taken_names();
  const std::lock_guard lock(taken.mutex);
  return taken.paths.contains(path);
}

fs::path absolute_without_slash(const fs::path& path) {
  fs::path p = fs::absolute(path).lexically_normal();
  return p.has_filename() ? p : p.parent_path();
}

void rename_or_fail(const fs::path& from, const fs::path& to) {
  require(::rename(from.c_str(), to.c_str()) == 0, "checkpoint", "cannot rename {} to {}: {}", from.string(),
          to.string(), std::strerror(errno));
}

void create(const fs::path& directory) {
  std::error_code error;
  fs::create_directories(directory, error);
  require(!error, "checkpoint", "cannot create the directory {}: {}", directory.string(), error.message());
}

std::string hex(uint32_t crc) { return fmt::format("{:08x}", crc); }

}  // namespace

void require_new_directory(const char* where, const fs::path& from, const fs::path& to) {
  require(!fs::exists(to) || (fs::is_directory(to) && fs::is_empty(to)), where,
          "{} exists and is not an empty directory; choose another", to.string());
  const fs::path inside = fs::weakly_canonical(to).lexically_relative(fs::canonical(from));
  require(inside.empty() || *inside.begin() == "..", where,
          "{} lies inside the checkpoint; choose a directory elsewhere", to.string());
}

PartialDirectory::PartialDirectory(fs::path published) : published_(absolute_without_slash(published)) {
  path_ = partial_path(published_);
  create(path_.parent_path());
  std::error_code error;
  const bool created = fs::create_directory(path_, error);
  require(created, "checkpoint", "cannot create the directory {}: {}", path_.string(),
          error ? error.message() : "it exists already");
}

PartialDirectory::~PartialDirectory() {
  std::error_code ignored;
  if (!done_) fs::remove_all(path_, ignored);
}

void PartialDirectory::write_manifest() {
  std::sort(records_.begin(), records_.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  nlohmann::ordered_json files = nlohmann::ordered_json::array();
  for (const FileRecord& r : records_)
    files.push_back({{"name", r.name}, {"size_bytes", r.size_bytes}, {"crc32", hex(r.crc32)}});
  const nlohmann::ordered_json manifest = {{"format", manifest_format}, {"files", std::move(files)}};
  write_file(path_ / manifest_name, manifest.dump(1) + "\n");
}

void PartialDirectory::publish(Manifest manifest) {
  if (manifest == Manifest::written) write_manifest();
  for (const auto& entry : fs::directory_iterator(path_))
    if (entry.is_directory()) sync_directory(entry.path());
  sync_directory(path_);
  if (!fs::exists(published_)) {
    rename_or_fail(path_, published_);
    done_ = true;
  } else {
    // The older directory takes the partial name and is deleted by the destructor.
    if (::renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, published_.c_str(), RENAME_EXCHANGE) != 0) {
      require(errno == EINVAL || errno == ENOSYS, "checkpoint", "cannot rename {} to {}: {}", path_.string(),
              published_.string(), std::strerror(errno));
      const fs::path aside = partial_path(published_);
      rename_or_fail(published_, aside);
      rename_or_fail(path_, published_);
      path_ = aside;
    }
  }
  sync_directory(published_.parent_path());
}

std::vector<FileRecord> read_manifest(const fs::path& directory) {
  const fs::path path = directory / manifest_name;
  require(fs::exists(path), "checkpoint", "{} is no complete checkpoint: it has no {}", directory.string(),
          manifest_name);
  const std::string where = path.string();
  const nlohmann::json json = read_json(path, int64_t{1} << 26, 4);
  const auto field = [&](const nlohmann::json& object, const char* key) -> const nlohmann::json& {
    require(object.is_object() && object.contains(key), where, "has no '{}'; the file is damaged", key);
    return object[key];
  };
  const auto& format = field(json, "format");
  require(format == manifest_format, where, "has the format {}, this Osprey reads {}", shown(format.dump()),
          manifest_format);
  const auto& files = field(json, "files");
  require(files.is_array(), where, "'files' must be a list; the file is damaged");
  std::vector<FileRecord> records;
  for (const auto& file : files) {
    const auto &name = field(file, "name"), &size = field(file, "size_bytes"), &crc = field(file, "crc32");
    require(name.is_string() && size.is_number_unsigned() && size.get<uint64_t>() < (uint64_t{1} << 62) &&
                crc.is_string(),
            where, "the entry {} is damaged", shown(file.dump()));
    FileRecord r{name.get<std::string>(), size.get<int64_t>(), 0};
    for (const fs::path& part : fs::path(r.name))
      require(is_plain_file_name(part.string()), where, "the file name '{}' leaves the directory",
              shown(r.name));
    const auto text = crc.get<std::string>();
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), r.crc32, 16);
    require(error == std::errc() && end == text.data() + text.size() && text.size() == 8, where,
            "'{}' of '{}' is no crc32", shown(text), shown(r.name));
    records.push_back(std::move(r));
  }
  return records;
}

void verify_files(const fs::path& directory, const std::vector<FileRecord>& records, int part, int parts) {
  constexpr const char* cure = "choose another checkpoint with checkpoint.resume or delete this one";
  for (const FileRecord& r : records) {
    std::error_code error;
    const auto size = fs::file_size(directory / r.name, error);
    require(!error, "checkpoint", "{} is missing or unreadable ({}); {}", (directory / r.name).string(),
            error.message(), cure);
    require(static_cast<int64_t>(size) == r.size_bytes, "checkpoint",
            "{} holds {} bytes, its manifest says {}; {}", (directory / r.name).string(), size, r.size_bytes,
            cure);
  }
  for (size_t i = static_cast<size_t>(part); i < records.size(); i += static_cast<size_t>(parts)) {
    const FileRecord& r = records[i];
    const FileRecord now = hash_file(directory / r.name);
    require(now.crc32 == r.crc32, "checkpoint", "{} is damaged: its crc32 is {}, its manifest says {}; {}",
            (directory / r.name).string(), hex(now.crc32), hex(r.crc32), cure);
  }
}

void remove_directory(const fs::path& directory) {
  const fs::path path = absolute_without_slash(directory);
  const fs::path aside = partial_path(path);
  rename_or_fail(path, aside);
  std::error_code error;
  fs::remove_all(aside, error);
  require(!error, "checkpoint", "cannot delete {}: {}", aside.string(), error.message());
}

std::vector<fs::path> remove_leftovers(const fs::path& parent) {
  std::vector<fs::path> dead, left;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(parent, error)) {
    const auto owner = owner_of(entry.path().filename().string());
    if (!owner) continue;
    const bool mine = owner->pid == ::getpid();
    const bool in_use = mine ? taken_here(absolute_without_slash(entry.path())) : alive(owner->pid);
    (owner->this_host && !in_use ? dead : left).push_back(entry.path());
  }
  for (const fs::path& path : dead) fs::remove_all(path, error);
  std::sort(left.begin(), left.end());
  return left;
}

std::string checkpoint_name(int64_t step) { return fmt::format("step-{:08}", step); }

std::vector<PublishedCheckpoint> list_checkpoints(const fs::path& parent) {
  std::vector<PublishedCheckpoint> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(parent, error)) {
    const std::string name = entry.path().filename().string();
    int64_t step = 0;
    if (!name.starts_with("step-")) continue;
    const auto [end, wrong] = std::from_chars(name.data() + 5, name.data() + name.size(), step);
    if (wrong != std::errc() || end != name.data() + name.size() || step < 0 || name != checkpoint_name(step))
      continue;
    if (fs::exists(entry.path() / manifest_name)) found.push_back({step, entry.path()});
  }
  std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.step < b.step; });
  return found;
}

void keep_newest(const fs::path& parent, int64_t keep) {
  require(keep >= 1, "checkpoint", "keep must be at least 1, got {}", keep);
  const auto all = list_checkpoints(parent);
  const auto count = static_cast<int64_t>(all.size());
  for (int64_t i = 0; i + keep < count; ++i) remove_directory(all[static_cast<size_t>(i)].path);
}

RunLock::RunLock(const fs::path& run_directory) {
  std::error_code ignored;
  if (!fs::exists(run_directory, ignored)) created_ = run_directory;
  create(run_directory);
  const fs::path path = run_directory / ".lock";
  fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  require(fd_ >= 0, "run", "cannot open {}: {}", path.string(), std::strerror(errno));
  if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
    const int error = errno;
    char holder[512] = {};
    const ssize_t n = ::pread(fd_, holder, sizeof holder - 1, 0);
    ::close(fd_);
    require(error == EWOULDBLOCK, "run", "cannot lock {}: {}", path.string(), std::strerror(error));
    std::string who(holder, n > 0 ? static_cast<size_t>(n) : 0);
    while (!who.empty() && who.back() == '\n') who.pop_back();
    fail("run", "{} is being written by {}; stop it or give this run another run.name or run.output_dir",
         run_directory.string(), who.empty() ? "another process" : shown(who));
  }
  const std::string mine = fmt::format("process {} on {}\n", ::getpid(), host_name());
  if (::ftruncate(fd_, 0) != 0 || ::pwrite(fd_, mine.data(), mine.size(), 0) < 0) {
    // Only the name in another run's message is lost; the lock itself holds.
  }
}

RunLock::~RunLock() {
  if (fd_ >= 0 && !created_.empty()) {
    // A run that was refused before its first byte leaves no directory. remove() spares what is not empty.
    std::error_code error;
    fs::remove(created_ / "checkpoints", error);
    const auto entries = std::distance(fs::directory_iterator(created_, error), fs::directory_iterator());
    if (!error && entries == 1) {
      fs::remove(created_ / ".lock", error);
      fs::remove(created_, error);
    }
  }
  if (fd_ >= 0) ::close(fd_);
}

}  // namespace osprey
