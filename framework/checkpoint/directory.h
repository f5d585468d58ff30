#pragma once
// Directories that are either complete or not there: written aside, made durable, shown by one rename.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "framework/files/file.h"

namespace osprey {

/// Throws unless `to` can become a model made of the checkpoint `from`: no directory yet or an empty one, and
/// not inside of `from`. `where` begins the message.
void require_new_directory(const char* where, const std::filesystem::path& from,
                           const std::filesystem::path& to);

/// A directory under construction, beside the place where it will appear:
/// `<published>.partial-<pid>.<host>`. Destroying it unpublished removes it.
class PartialDirectory {
 public:
  /// Creates the parent of `published` and the partial directory.
  explicit PartialDirectory(std::filesystem::path published);
  ~PartialDirectory();
  PartialDirectory(const PartialDirectory&) = delete;
  PartialDirectory& operator=(const PartialDirectory&) = delete;

  /// Where to write.
  const std::filesystem::path& path() const { return path_; }
  /// Names a durable file of the directory; names are relative to path() and may hold one '/'.
  void add(FileRecord record) { records_.push_back(std::move(record)); }
  /// Writes `manifest.json` with the size and hash of every added file, makes all directories durable and
  /// renames. A complete directory that stands at the place already is exchanged in the same instant.
  enum class Manifest { written, left_out };
  void publish(Manifest manifest = Manifest::written);

 private:
  void write_manifest();
  std::filesystem::path published_, path_;
  std::vector<FileRecord> records_;
  bool done_ = false;
};

/// The files that make a published directory.
/// Errors: no manifest, or one that is not what publish() writes.
std::vector<FileRecord> read_manifest(const std::filesystem::path& directory);

/// Compares files with the manifest: sizes of all of them, hashes of every `parts`-th beginning with
/// `part` (so that ranks can share the reading).
/// Errors: the first file that is missing or damaged, by name.
void verify_files(const std::filesystem::path& directory, const std::vector<FileRecord>& records,
                  int part = 0, int parts = 1);

/// Hides a directory by a rename and then deletes it, so that a kill never leaves half of it in sight.
void remove_directory(const std::filesystem::path& directory);

/// Deletes partial directories in `parent` whose process, on this host, has ended; of those that bear the
/// number of this process, which an earlier one may have had, those that are not its own.
/// Returns the paths of those that were left because they belong to a living process or another host.
std::vector<std::filesystem::path> remove_leftovers(const std::filesystem::path& parent);

/// "step-00000500".
std::string checkpoint_name(int64_t step);
struct PublishedCheckpoint {
  int64_t step = 0;
  std::filesystem::path path;
};
/// Complete checkpoints in `parent`, oldest first; partial ones and other names are not seen.
std::vector<PublishedCheckpoint> list_checkpoints(const std::filesystem::path& parent);
/// Deletes the oldest so that `keep` remain; never the newest. Errors: throws when keep < 1.
void keep_newest(const std::filesystem::path& parent, int64_t keep);

/// The right to write into a run directory, held until destruction or death of the process.
class RunLock {
 public:
  /// Creates the directory when it is missing; the destructor takes it back if nothing was written into it.
  /// Errors: throws, naming process and host, when another process holds it.
  explicit RunLock(const std::filesystem::path& run_directory);
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

 private:
  std::filesystem::path created_;  // the run directory, when it was missing
  int fd_ = -1;
};

}  // namespace osprey
