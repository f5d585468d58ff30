#include "framework/telemetry/metrics_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/core/check.h"

namespace osprey {
namespace {

namespace fs = std::filesystem;

/// Bytes of the UTF-8 sequence that starts at text[at], or 0 when it is not valid.
size_t utf8_length(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) -> uint32_t {
    return i < text.size() ? static_cast<uint8_t>(text[i]) : 0u;
  };
  const auto tail = [&](size_t i) { return (byte(i) & 0xC0u) == 0x80u; };
  const uint32_t a = byte(at), b = byte(at + 1);
  if (a < 0x80) return 1;
  if (a >= 0xC2 && a <= 0xDF && tail(at + 1)) return 2;
  if (a >= 0xE0 && a <= 0xEF && tail(at + 1) && tail(at + 2)) {
    const bool overlong = a == 0xE0 && b < 0xA0, surrogate = a == 0xED && b >= 0xA0;
    return overlong || surrogate ? 0 : 3;
  }
  if (a >= 0xF0 && a <= 0xF4 && tail(at + 1) && tail(at + 2) && tail(at + 3)) {
    const bool overlong = a == 0xF0 && b < 0x90, beyond = a == 0xF4 && b >= 0x90;
    return overlong || beyond ? 0 : 4;
  }
  return 0;
}

void write_all(int descriptor, std::string_view text, const fs::path& file) {
  while (!text.empty()) {
    const ssize_t n = ::write(descriptor, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    require(n > 0, "metrics", "cannot write {}: {}", file.string(), std::strerror(errno));
    text.remove_prefix(static_cast<size_t>(n));
  }
}

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

void replace_file(const fs::path& file, std::string_view text) {
  const fs::path aside = file.string() + ".partial";
  const int descriptor = open(aside.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  require(descriptor >= 0, "metrics", "cannot write {}: {}", aside.string(), std::strerror(errno));
  try {
    write_all(descriptor, text, aside);
    require(fsync(descriptor) == 0, "metrics", "cannot write {}: {}", aside.string(), std::strerror(errno));
  } catch (...) {
    close(descriptor);
    throw;
  }
  close(descriptor);
  require(std::rename(aside.c_str(), file.c_str()) == 0, "metrics", "cannot replace {}: {}", file.string(),
          std::strerror(errno));
}

}  // namespace

std::string json_number(double value) {
  if (std::isnan(value)) return "\"NaN\"";
  if (std::isinf(value)) return value > 0 ? "\"Infinity\"" : "\"-Infinity\"";
  return fmt::format("{}", value);
}

std::string json_string(std::string_view text) {
  std::string out = "\"";
  for (size_t i = 0; i < text.size();) {
    const auto c = static_cast<uint8_t>(text[i]);
    const size_t length = utf8_length(text, i);
    if (length == 0) {
      out += "\xEF\xBF\xBD";
      ++i;
      continue;
    }
    if (c == '"' || c == '\\')
      out += fmt::format("\\{}", static_cast<char>(c));
    else if (c == '\n')
      out += "\\n";
    else if (c == '\t')
      out += "\\t";
    else if (c < 0x20 || c == 0x7f)
      out += fmt::format("\\u{:04x}", c);
    else
      out += text.substr(i, length);
    i += length;
  }
  return out + '"';
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

MetricsLog::MetricsLog(const fs::path& file, std::optional<int64_t> resumed_step) : file_(file) {
  std::error_code error;
  if (file.has_parent_path()) fs::create_directories(file.parent_path(), error);
  require(!error, "metrics", "cannot make {}: {}", file.parent_path().string(), error.message());
  if (fs::exists(file, error) && fs::file_size(file, error) > 0) {
    if (resumed_step)
      replace_file(file, entries_until(file, *resumed_step));
    else
      fs::rename(file, file.string() + ".old", error);
    require(!error, "metrics", "cannot set {} aside: {}", file.string(), error.message());
  }
  descriptor_ = open(file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  require(descriptor_ >= 0, "metrics", "cannot write {}: {}", file.string(), std::strerror(errno));
}

MetricsLog::~MetricsLog() {
  if (descriptor_ >= 0) close(descriptor_);
}

void MetricsLog::write(const MetricsEntry& entry) { write_all(descriptor_, entry.line(), file_); }

}  // namespace osprey
