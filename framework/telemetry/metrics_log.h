#pragma once
// metrics.jsonl: what happened in a run, one JSON object a line. docs/run-directory.md lists every key.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "framework/files/file.h"

namespace osprey {

/// One line of metrics.jsonl. Keys keep the order in which they were added.
/// Numerics: doubles are written with the fewest digits that read back to the same value; JSON has no
/// NaN, so non-finite values are the strings "NaN", "Infinity" and "-Infinity".
class MetricsEntry {
 public:
  MetricsEntry(std::string_view event, int64_t step, int64_t tokens);

  MetricsEntry& add(std::string_view key, double value);
  MetricsEntry& add(std::string_view key, int64_t value);
  MetricsEntry& add(std::string_view key, int value) { return add(key, static_cast<int64_t>(value)); }
  MetricsEntry& add(std::string_view key, std::string_view text);
  MetricsEntry& add(std::string_view key, const char* text) { return add(key, std::string_view(text)); }
  /// An absent value leaves the key out.
  template <class T>
  MetricsEntry& add(std::string_view key, const std::optional<T>& value) {
    return value ? add(key, *value) : *this;
  }

  std::string line() const { return text_ + "}\n"; }

 private:
  void key(std::string_view key);
  std::string text_;
};

/// `text` as a JSON string with its quotes; bytes that are no UTF-8 become U+FFFD.
std::string json_string(std::string_view text);
/// A finite double as JSON, others as the strings named at MetricsEntry.
std::string json_number(double value);

/// Adds one line to a metrics.jsonl that a run may be writing at this moment: by one write at its end, after
/// a line break where the last line is torn. The file is never replaced. Errors: throws when it cannot be
/// written.
void append_entry(const std::filesystem::path& file, const MetricsEntry& entry);

/// metrics.jsonl of the run that this process trains. One writer per run: rank 0; others use append_entry().
class MetricsLog {
 public:
  /// resumed_step: the step of the checkpoint the run goes on from. Entries of later steps, and lines
  /// that are no entries (a torn last line), are removed before the first append; the file is replaced
  /// atomically. Without it the run starts anew: a file that is already there is kept as
  /// metrics.jsonl.old.
  /// tell: with it, lines that a full disk does not take wait, as AppendFile says.
  /// Errors: throws when the file cannot be read or written.
  MetricsLog(const std::filesystem::path& file, std::optional<int64_t> resumed_step,
             AppendFile::Tell tell = {});

  /// Appends one line by one write; a killed process loses no line that was returned from.
  /// Errors: without `tell`, throws when the disk is full.
  void write(const MetricsEntry& entry);
  /// Tells what is lost of the lines that still wait.
  void finish() { file_.finish(); }

 private:
  AppendFile file_;
};

}  // namespace osprey
