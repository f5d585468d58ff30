#include "framework/telemetry/metrics_log.h"

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/core/check.h"

namespace osprey {
namespace {

namespace fs = std::filesystem;

/// The lines of `file` that are entries of steps up to `step`.
std::string entries_until(const fs::path& file, int64_t step) {
  std::ifstream in(file, std::ios::binary);
  require(in.good(), "metrics", "cannot read {}", file.string());
  std::string kept, line;
  while (std::getline(in, line)) {
    const auto entry = nlohmann::json::parse(line, nullptr, false);
    if (!entry.is_object()) continue;
    const auto found = entry.find("step");
    if (found == entry.end() || !found->is_number_integer()) continue;
    if (found->get<int64_t>() <= step) kept += line + "\n";
  }
  require(!in.bad(), "metrics", "cannot read {}", file.string());
  return kept;
}

}  // namespace

std::string json_number(double value) {
  if (std::isnan(value)) return "\"NaN\"";
  if (std::isinf(value)) return value > 0 ? "\"Infinity\"" : "\"-Infinity\"";
  return fmt::format("{}", value);
}

std::string json_string(std::string_view text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

MetricsEntry::MetricsEntry(std::string_view event, int64_t step, int64_t tokens) {
  text_ = fmt::format("{{\"event\":{},\"step\":{},\"tokens\":{}", json_string(event), step, tokens);
}

void MetricsEntry::key(std::string_view key) { text_ += fmt::format(",{}:", json_string(key)); }

MetricsEntry& MetricsEntry::add(std::string_view name, double value) {
  key(name);
  text_ += json_number(value);
  return *this;
}
MetricsEntry& MetricsEntry::add(std::string_view name, int64_t value) {
  key(name);
  text_ += fmt::format("{}", value);
  return *this;
}
MetricsEntry& MetricsEntry::add(std::string_view name, std::string_view text) {
  key(name);
  text_ += json_string(text);
  return *this;
}

void append_entry(const fs::path& file, const MetricsEntry& entry) {
  AppendFile to(file);
  std::ifstream in(file, std::ios::binary);
  char last = '\n';
  if (in.seekg(-1, std::ios::end)) in.get(last);
  to.write((last == '\n' ? "" : "\n") + entry.line());
}

/// Makes room for the file of this run; returns where it is.
static fs::path prepared(const fs::path& file, std::optional<int64_t> resumed_step) {
  std::error_code error;
  if (file.has_parent_path()) fs::create_directories(file.parent_path(), error);
  require(!error, "metrics", "cannot make {}: {}", file.parent_path().string(), error.message());
  if (!fs::exists(file, error) || fs::file_size(file, error) == 0) return file;
  if (resumed_step)
    replace_file(file, entries_until(file, *resumed_step));
  else
    fs::rename(file, file.string() + ".old", error);
  require(!error, "metrics", "cannot set {} aside: {}", file.string(), error.message());
  return file;
}

MetricsLog::MetricsLog(const fs::path& file, std::optional<int64_t> resumed_step, AppendFile::Tell tell)
    : file_(prepared(file, resumed_step), std::move(tell)) {}

void MetricsLog::write(const MetricsEntry& entry) { file_.write(entry.line()); }

}  // namespace osprey
