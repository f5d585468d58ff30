#include "framework/telemetry/summary.h"

#include <unistd.h>

#include <fstream>

#include "framework/files/file.h"
#include "framework/telemetry/metrics_log.h"
#include "kernels/core/check.h"

namespace osprey {
namespace {

/// One flat or nested JSON object, keys in order, two spaces of indent a level.
class Json {
 public:
  explicit Json(int level) : indent_(static_cast<size_t>(level) * 2, ' ') {}
  Json& raw(const std::string& key, const std::string& value) {
    text_ += fmt::format("{}\n{}{}: {}", text_.empty() ? "" : ",", indent_, json_string(key), value);
    return *this;
  }
  Json& add(const std::string& key, const std::string& value) { return raw(key, json_string(value)); }
  Json& add(const std::string& key, double value) { return raw(key, json_number(value)); }
  Json& add(const std::string& key, int64_t value) { return raw(key, std::to_string(value)); }
  Json& add(const std::string& key, const std::optional<double>& value) {
    return value ? add(key, *value) : *this;
  }
  std::string str() const { return fmt::format("{{{}\n{}}}", text_, indent_.substr(2)); }

 private:
  std::string indent_, text_;
};

std::string value_after(const std::string& file, const std::string& key) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    if (line.rfind(key, 0) != 0) continue;
    const size_t at = line.find_first_not_of(" \t", std::min(line.find(':'), line.size() - 1) + 1);
    return at == std::string::npos ? "" : line.substr(at);
  }
  return "";
}

}  // namespace

HostInfo this_host() {
  HostInfo host;
  char buffer[256] = "";
  gethostname(buffer, sizeof buffer - 1);
  host.name = buffer;
  host.cpu = value_after("/proc/cpuinfo", "model name");
  host.cores = sysconf(_SC_NPROCESSORS_ONLN);
  host.memory_bytes = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  return host;
}

void write_summary(const std::filesystem::path& file, const RunSummary& s) {
  Json memory(2);
  for (const auto& [category, bytes] : s.memory_peak_bytes) memory.add(category, bytes);
  std::string hosts;
  for (const HostInfo& h : s.hosts) {
    Json host(3);
    host.add("name", h.name).add("cpu", h.cpu).add("isa", h.isa);
    host.add("cores", h.cores).add("memory_bytes", h.memory_bytes);
    if (!h.gpu.empty()) host.add("gpu", h.gpu);
    hosts += (hosts.empty() ? "\n    " : ",\n    ") + host.str();
  }
  Json top(1);
  top.add("name", s.name).add("status", s.status).add("version", s.version);
  top.add("step", s.step).add("steps", s.steps).add("tokens", s.tokens);
  top.add("train_loss", s.train_loss).add("validation_loss", s.validation_loss);
  top.add("wall_s", s.wall_s)
      .add("tokens_per_second", s.tokens_per_second)
      .add("gemm_percent", s.gemm_percent);
  top.add("skipped_updates", s.skipped_updates)
      .add("ranks", s.ranks)
      .add("threads_per_rank", s.threads_per_rank);
  top.add("parameters", s.parameters).raw("memory_peak_bytes", memory.str());
  top.raw("hosts", "[" + hosts + (hosts.empty() ? "]" : "\n  ]"));

  replace_file(file, top.str() + "\n");
}

}  // namespace osprey
