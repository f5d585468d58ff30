#include <fmt/format.h>
#include <omp.h>

#include "kernels/cpu/isa.h"
#include "kernels/device.h"
#include "launch/commands/command.h"

namespace osprey {

static void print_devices() {
  fmt::print("cpu   {} threads, {}{}\n", omp_get_max_threads(), cpu::name(cpu::active_isa()),
             cpu::has_amx() ? ", AMX" : "");
  const int count = kernels::gpu_count();
  if (count == 0) fmt::print("cuda  none: {}\n", kernels::why_no_gpu());
  for (int i = 0; i < count; ++i) {
    const kernels::GpuInfo gpu = kernels::gpu_info(i);
    fmt::print("cuda  {}: {}, sm_{}, {} multiprocessors, {:.1f} of {:.1f} GiB free, driver for CUDA {}\n", i,
               gpu.name, gpu.compute_capability, gpu.multiprocessors,
               static_cast<double>(gpu.free_bytes) / (1 << 30),
               static_cast<double>(gpu.total_bytes) / (1 << 30), gpu.driver);
    try {
      kernels::open_stream({DeviceKind::cuda, i});
    } catch (const Error& e) {
      fmt::print("      cannot be used: {}\n", e.what());
    }
  }
}

void add_devices(CLI::App& app) {
  CLI::App* command = app.add_subcommand("devices", "what this program can run on here, and if not, why");
  command->footer("Example:\n  osprey devices");
  command->callback(print_devices);
}

}  // namespace osprey
