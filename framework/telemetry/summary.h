#pragma once
// summary.json: how a run ended, in one small file.

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace osprey {

/// Who computed. Gathered from every rank's host.
struct HostInfo {
  std::string name, cpu, isa;
  int64_t cores = 0;
  int64_t memory_bytes = 0;
  std::string gpu = {};  // of the first rank there; empty where the CPU computes
};
/// This machine: host name, processor and memory as the kernel reports them; isa and gpu are the caller's to
/// set.
HostInfo this_host();

struct RunSummary {
  std::string name;
  std::string status;  // "running", "finished", "stopped" (by a signal), "failed"
  std::string version;
  int64_t step = 0, steps = 0;
  int64_t tokens = 0;
  std::optional<double> train_loss, validation_loss;  // nats per token
  double wall_s = 0;                                  // of this process, resumes not included
  std::optional<double> tokens_per_second;            // over all ranks, without the first step
  std::optional<double> gemm_percent;
  int64_t skipped_updates = 0;
  int64_t ranks = 1, threads_per_rank = 1;
  int64_t parameters = 0;
  std::map<std::string, int64_t> memory_peak_bytes;  // by category, of the rank with the most
  std::vector<HostInfo> hosts;
};

/// Writes `summary` as JSON, replacing the file atomically.
/// Errors: throws when it cannot be written.
void write_summary(const std::filesystem::path& file, const RunSummary& summary);

}  // namespace osprey
