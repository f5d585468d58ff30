#include "launch/memory_check.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <iterator>
#include <sstream>

#include "launch/together.h"

namespace osprey {

namespace {

/// The number a text begins with; nothing for "max" or an empty one.
std::optional<int64_t> number_in(const std::string& text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && value >= 0 ? std::optional(value) : std::nullopt;
}

/// The text of a small file of the kernel; empty where it is not there.
std::string text_of(const char* path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

int64_t saturated_sum(int64_t a, int64_t b) {
  int64_t sum = 0;
  return __builtin_add_overflow(a, b, &sum) ? INT64_MAX : sum;
}

int64_t total(const std::vector<MemoryCategory>& categories) {
  int64_t bytes = 0;
  for (const MemoryCategory& c : categories) bytes = saturated_sum(bytes, c.bytes);
  return bytes;
}

std::string gib(int64_t bytes) { return fmt::format("{:.2f} GiB", static_cast<double>(bytes) / (1 << 30)); }

/// The keys of the recipe that make a category smaller.
std::string keys_of(const std::string& category) {
  if (category == "activations")
    return "train.micro_batch_size, data.sequence_len, model.layers or model.hidden_size, or set "
           "train.recompute: block";
  if (category == "activation gradients")
    return "train.micro_batch_size, data.sequence_len, model.hidden_size or model.ffn_size";
  if (category == "oscillation") return "telemetry.oscillation: false, or the groups of quant";
  if (category == "token buffers") return "train.global_batch_tokens, or use more ranks";
  const char* model = "model.layers, model.hidden_size, model.ffn_size or model.vocab_size";
  if (category.starts_with("optimizer"))
    return fmt::format("{}, or use more ranks with parallel.zero: 1", model);
  return model;
}

}  // namespace

int64_t control_group_spare_bytes(const std::string& max, const std::string& current,
                                  const std::string& stat) {
  const auto limit = number_in(max), used = number_in(current);
  if (!limit || !used) return INT64_MAX;
  constexpr std::string_view key = "inactive_file ";
  std::istringstream lines(stat);
  int64_t reclaimable = 0;
  for (std::string line; std::getline(lines, line);)
    if (line.starts_with(key)) reclaimable = number_in(line.substr(key.size())).value_or(0);
  return std::max<int64_t>(0, *limit - std::max<int64_t>(0, *used - reclaimable));
}

int64_t available_memory_bytes() {
  int64_t bytes = INT64_MAX;
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    constexpr std::string_view key = "MemAvailable:";
    if (!line.starts_with(key)) continue;
    const size_t digits = line.find_first_of("0123456789");
    int64_t kib = 0;
    if (digits != std::string::npos) std::from_chars(line.data() + digits, line.data() + line.size(), kib);
    if (kib > 0) bytes = kib * 1024;
  }
  return std::min(bytes, control_group_spare_bytes(text_of("/sys/fs/cgroup/memory.max"),
                                                   text_of("/sys/fs/cgroup/memory.current"),
                                                   text_of("/sys/fs/cgroup/memory.stat")));
}

std::string memory_problem(const std::vector<MemoryCategory>& categories, int64_t host_bytes, int ranks,
                           int64_t available_bytes) {
  if (host_bytes <= available_bytes || categories.empty()) return "";
  const auto largest =
      std::max_element(categories.begin(), categories.end(),
                       [](const MemoryCategory& a, const MemoryCategory& b) { return a.bytes < b.bytes; });
  return fmt::format(
      "this run takes {} of memory on this machine ({} rank{}), which has {} to spare; most of a rank's {} "
      "are {} "
      "({}): lower {}. osprey plan shows all categories",
      gib(host_bytes), ranks, ranks == 1 ? "" : "s", gib(available_bytes), gib(total(categories)),
      largest->name, gib(largest->bytes), keys_of(largest->name));
}

static std::vector<MemoryCategory> part(const std::vector<MemoryCategory>& all, MemoryCategory::Where where) {
  std::vector<MemoryCategory> some;
  std::copy_if(all.begin(), all.end(), std::back_inserter(some),
               [&](const MemoryCategory& c) { return c.where == where; });
  return some;
}

std::string gpu_memory_problem(const std::vector<MemoryCategory>& categories, const kernels::GpuInfo& gpu) {
  const std::vector<MemoryCategory> own = part(categories, MemoryCategory::Where::device);
  const int64_t available = gpu.free_bytes - gpu_reserve_bytes, wanted = total(own);
  if (wanted <= available || own.empty()) return "";
  const auto largest =
      std::max_element(own.begin(), own.end(),
                       [](const MemoryCategory& a, const MemoryCategory& b) { return a.bytes < b.bytes; });
  return fmt::format(
      "this run takes {} of the GPU's memory ({}, {} of {} free, {} of it kept for the driver and libraries); most of it "
      "are {} ({}): lower {}. osprey plan --device cuda shows all categories",
      gib(wanted), gpu.name, gib(gpu.free_bytes), gib(gpu.total_bytes), gib(gpu_reserve_bytes), largest->name,
      gib(largest->bytes), keys_of(largest->name));
}

void require_memory(const std::vector<MemoryCategory>& all, Device device, Communicator& world) {
  const bool gpu = device.kind == DeviceKind::cuda;
  const std::vector<MemoryCategory> categories = gpu ? part(all, MemoryCategory::Where::host) : all;
  char host[256] = {};
  ::gethostname(host, sizeof host - 1);
  // Read before the gathering, so before any peer allocates.
  const int64_t mine = total(categories), available = available_memory_bytes();
  const std::string name = std::string(host) + ' ';
  int64_t bytes = 0;
  int ranks = 0;
  for (const std::string& text : world.gather_strings(name + std::to_string(mine))) {
    if (!text.starts_with(name)) continue;
    int64_t other = 0;
    std::from_chars(text.data() + name.size(), text.data() + text.size(), other);
    bytes = saturated_sum(bytes, other);
    ++ranks;
  }
  together(world, [&] {
    const std::string problem = memory_problem(categories, bytes, ranks, available);
    require(problem.empty(), "memory", "{}", problem);
    if (!gpu) return;
    const std::string gpu_problem = gpu_memory_problem(all, kernels::gpu_info(device.index));
    require(gpu_problem.empty(), "memory", "{}", gpu_problem);
  });
}

}  // namespace osprey
