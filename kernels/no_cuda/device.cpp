#include "kernels/device.h"

#include "kernels/cuda/workspace.h"
#include "kernels/no_cuda/absent.h"

namespace osprey::cuda {

int gpu_count() { return 0; }
std::string why_no_gpu() {
  return "this osprey was built without CUDA; build where nvcc is found, or set run.device: cpu";
}
kernels::GpuInfo gpu_info(int) { absent("gpu"); }
std::string why_no_cudnn(const Queue&) { absent("gpu"); }
Stream* open_stream(int, kernels::StreamUse) { absent("gpu"); }
void close_stream(Stream*) {}
int64_t stream_workspace_bytes() { return stream_scratch_bytes + stream_gemm_bytes; }
void* allocate(int, int64_t, const std::string&) { absent("memory"); }
void release(int, void*) {}
void* allocate_host(int64_t, const std::string&) { absent("memory"); }
void release_host(void*) {}
void upload(const Queue&, const RowCopy&) { absent("upload"); }
void download(const Queue&, const RowCopy&) { absent("download"); }
void upload_async(const Queue&, void*, const void*, int64_t) { absent("upload"); }
void download_async(const Queue&, void*, const void*, int64_t) { absent("download"); }
void fill_bytes(const Queue&, void*, unsigned char, int64_t) { absent("fill"); }
void synchronize(const Queue&) {}
void* make_event(int) { absent("event"); }
void destroy_event(void*) {}
void record_event(void*, const Queue&) {}
void hold_for_event(void*, const Queue&) {}
void wait_for_event(void*) {}
void* make_timed_event(int) { absent("timeline"); }
double seconds_between(void*, void*) { absent("timeline"); }
void begin_range(const char*, int) {}
void end_range() {}
void begin_recording(const Queue&) { absent("graph"); }
void* end_recording(const Queue&, Recording) { absent("graph"); }
void launch_graph(void*, const Queue&) { absent("graph"); }
void destroy_graph(void*) {}
bool passed_event(void*) { return true; }

}  // namespace osprey::cuda
