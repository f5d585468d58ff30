#pragma once
// TensorBoard event files, written without TensorFlow: TFRecord frames around hand-encoded protobuf.

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "framework/files/file.h"

namespace osprey {

/// CRC-32C (Castagnoli) of `bytes`.
uint32_t crc32c(std::string_view bytes);

/// One frame: length (u64, little endian), masked CRC of the length, payload, masked CRC of the payload.
std::string tfrecord(std::string_view payload);

struct TfScalar {
  std::string_view tag;
  double value = 0;
};

/// Protobuf of tensorflow.Event. Units: wall time in seconds since 1970.
/// Errors: none; tags are taken as UTF-8 text.
std::string tf_version_event(double wall_s);
std::string tf_start_event(double wall_s, int64_t step);  // TensorBoard forgets points at or after `step`
std::string tf_scalar_event(double wall_s, int64_t step, std::span<const TfScalar> scalars);

/// Appends scalars to one new events.out.tfevents.* file.
class TfEventsWriter {
 public:
  /// Makes `dir` and the file. A resumed run opens a new file and says from which step it goes on, so
  /// that TensorBoard drops the points of the abandoned steps.
  /// tell: with it, events that a full disk does not take wait, as AppendFile says.
  /// Errors: throws when the directory or file cannot be written.
  TfEventsWriter(const std::filesystem::path& dir, int64_t first_step, AppendFile::Tell tell = {});

  /// One event; on disk when the call returns (as far as the kernel is concerned). NaN is legal.
  /// Errors: without `tell`, throws when the disk is full.
  void scalars(int64_t step, std::span<const TfScalar> scalars);
  /// Tells what is lost of the events that still wait.
  void finish() { file_.finish(); }
  const std::filesystem::path& path() const { return file_.path(); }

 private:
  AppendFile file_;
};

}  // namespace osprey
