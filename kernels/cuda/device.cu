#include "kernels/device.h"

#include <cstdio>
#include <cstring>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.h"

namespace osprey::cuda {

namespace {

/// Never launched: whether its code can be loaded tells whether this build knows the GPU's architecture.
__global__ void probe() {}

std::string version(int v) { return fmt::format("{}.{}", v / 1000, v % 1000 / 10); }

int driver_version() {
  int v = 0;
  return cudaDriverGetVersion(&v) == cudaSuccess ? v : 0;
}

/// Allocations happen on the device they are for, whatever thread asks.
void enter(int index) { check(cudaSetDevice(index), "cudaSetDevice"); }

void require_code_for(int index) {
  cudaFuncAttributes attributes;
  const cudaError_t code = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(probe));
  if (code == cudaSuccess) return;
  cudaGetLastError();
  const kernels::GpuInfo gpu = gpu_info(index);
  if (code == cudaErrorNoKernelImageForDevice || code == cudaErrorInvalidDeviceFunction)
    fail("run.device",
         "GPU {} is a {} (sm_{}), and this build has code for {}; configure with "
         "-DCMAKE_CUDA_ARCHITECTURES={}",
         index, gpu.name, gpu.compute_capability, OSPREY_CUDA_ARCHITECTURES, gpu.compute_capability);
  check(code, "loading kernels");
}

}  // namespace

int gpu_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

std::string why_no_gpu() {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code == cudaSuccess && count > 0) return "";
  cudaGetLastError();
  int runtime = 0;
  cudaRuntimeGetVersion(&runtime);
  const int driver = driver_version();
  if (driver == 0)
    return "no NVIDIA driver is loaded on this machine (nvidia-smi should list a GPU); install one, or set "
           "run.device: cpu";
  if (code == cudaErrorInsufficientDriver)
    return fmt::format(
        "the NVIDIA driver supports CUDA {}, this build needs {}; update the driver, or build with an older "
        "toolkit",
        version(driver), version(runtime));
  if (code == cudaErrorNoDevice || (code == cudaSuccess && count == 0))
    return "the NVIDIA driver shows no GPU to this process; look at CUDA_VISIBLE_DEVICES and at what the job "
           "was given";
  return fmt::format("CUDA cannot start: {} ({})", cudaGetErrorString(code), cudaGetErrorName(code));
}

kernels::GpuInfo gpu_info(int index) {
  cudaDeviceProp p;
  check(cudaGetDeviceProperties(&p, index), "cudaGetDeviceProperties");
  kernels::GpuInfo info;
  info.name = p.name;
  info.compute_capability = p.major * 10 + p.minor;
  info.multiprocessors = p.multiProcessorCount;
  info.driver = version(driver_version());
  enter(index);
  size_t free_bytes = 0, total_bytes = 0;
  check(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo");
  info.free_bytes = static_cast<int64_t>(free_bytes);
  info.total_bytes = static_cast<int64_t>(total_bytes);
  return info;
}

Stream* open_stream(int index, kernels::StreamUse use) {
  const int count = gpu_count();
  if (count == 0) fail("run.device", "{}", why_no_gpu());
  require(0 <= index && index < count, "run.device",
          "GPU {} is asked for, and this process sees {}; start at most one rank a GPU on each host", index,
          count);
  enter(index);
  require_code_for(index);
  return new Stream(index, use);
}

void close_stream(Stream* stream) { delete stream; }

int64_t stream_workspace_bytes() { return Stream::scratch_bytes + Stream::gemm_workspace_bytes; }

void* allocate(int index, int64_t bytes, const std::string& what) {
  enter(index);
  void* p = nullptr;
  const cudaError_t code = cudaMalloc(&p, static_cast<size_t>(bytes));
  if (code == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    fail("memory", "GPU {} has not the {} bytes for {} ({} bytes are free)", index, bytes, what,
         gpu_info(index).free_bytes);
  }
  check(code, "cudaMalloc");
  check(cudaMemset(p, 0, static_cast<size_t>(bytes)), "cudaMemset");
  check(cudaDeviceSynchronize(), "cudaMemset");  // our streams do not wait for the one it runs on
  return p;
}

void release(int index, void* memory) {
  cudaSetDevice(index);
  cudaFree(memory);
}

void* allocate_host(int64_t bytes, const std::string& what) {
  void* p = nullptr;
  const cudaError_t code = cudaHostAlloc(&p, static_cast<size_t>(bytes), cudaHostAllocDefault);
  if (code != cudaSuccess) {
    cudaGetLastError();
    fail("memory", "{} bytes of pinned host memory for {} cannot be had: {}", bytes, what,
         cudaGetErrorString(code));
  }
  memset(p, 0, static_cast<size_t>(bytes));
  return p;
}

void release_host(void* memory) { cudaFreeHost(memory); }

/// The addresses say which way: what the rest of the house calls memory of a GPU may be pinned memory of the
/// host.
static void copy_rows(const Queue& queue, const RowCopy& c) {
  Stream& stream = stream_of(queue);
  check(cudaMemcpy2DAsync(c.to, static_cast<size_t>(c.to_stride_bytes), c.from,
                          static_cast<size_t>(c.from_stride_bytes), static_cast<size_t>(c.row_bytes),
                          static_cast<size_t>(c.rows), cudaMemcpyDefault, stream.handle()),
        "copying between host and GPU");
  check(cudaStreamSynchronize(stream.handle()), "copying between host and GPU");
}

static void copy_flat(const Queue& queue, void* to, const void* from, int64_t bytes) {
  check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, stream_of(queue).handle()),
        "copying between host and GPU");
}

/// Dense rows are one copy: a pitch has a limit of its own.
static bool dense(const RowCopy& c) {
  return c.rows == 1 || (c.to_stride_bytes == c.row_bytes && c.from_stride_bytes == c.row_bytes);
}

void upload(const Queue& queue, const RowCopy& c) {
  if (!dense(c)) return copy_rows(queue, c);
  copy_flat(queue, c.to, c.from, c.row_bytes * c.rows);
  synchronize(queue);
}

void download(const Queue& queue, const RowCopy& c) {
  if (!dense(c)) return copy_rows(queue, c);
  copy_flat(queue, c.to, c.from, c.row_bytes * c.rows);
  synchronize(queue);
}

void upload_async(const Queue& queue, void* to, const void* host, int64_t bytes) {
  copy_flat(queue, to, host, bytes);
}

void download_async(const Queue& queue, void* host, const void* from, int64_t bytes) {
  copy_flat(queue, host, from, bytes);
}

void fill_bytes(const Queue& queue, void* to, unsigned char value, int64_t bytes) {
  check(cudaMemsetAsync(to, value, static_cast<size_t>(bytes), stream_of(queue).handle()),
        "filling GPU memory");
}

void synchronize(const Queue& queue) { check(cudaStreamSynchronize(stream_of(queue).handle()), "the GPU"); }

void* make_event(int index) {
  enter(index);
  cudaEvent_t event;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate");
  return event;
}
void destroy_event(void* event) { cudaEventDestroy(static_cast<cudaEvent_t>(event)); }
void record_event(void* event, const Queue& queue) {
  check(cudaEventRecord(static_cast<cudaEvent_t>(event), stream_of(queue).handle()), "cudaEventRecord");
}
void hold_for_event(void* event, const Queue& queue) {
  check(cudaStreamWaitEvent(stream_of(queue).handle(), static_cast<cudaEvent_t>(event), 0),
        "cudaStreamWaitEvent");
}
void begin_range(const char* name, int index) {
  char text[64];
  if (index < 0)
    snprintf(text, sizeof text, "%s", name);
  else
    snprintf(text, sizeof text, "%s %d", name, index);
  push_range(text);
}
void end_range() { pop_range(); }

void* make_timed_event(int index) {
  enter(index);
  cudaEvent_t event;
  check(cudaEventCreate(&event), "cudaEventCreate");
  return event;
}
double seconds_between(void* from, void* to) {
  wait_for_event(to);
  float ms = 0;
  check(cudaEventElapsedTime(&ms, static_cast<cudaEvent_t>(from), static_cast<cudaEvent_t>(to)),
        "cudaEventElapsedTime");
  return ms / 1e3;
}

void begin_recording(const Queue& queue) {
  // Thread-local: what other threads ask of the device meanwhile (a watchdog, a save) is not part of the
  // graph.
  check(cudaStreamBeginCapture(stream_of(queue).handle(), cudaStreamCaptureModeThreadLocal),
        "recording a step");
}

void* end_recording(const Queue& queue, Recording recording) {
  cudaGraph_t graph = nullptr;
  const cudaError_t code = cudaStreamEndCapture(stream_of(queue).handle(), &graph);
  if (recording == Recording::discard) {
    cudaGetLastError();
    if (graph) cudaGraphDestroy(graph);
    return nullptr;
  }
  check(code, "recording a step");
  cudaGraphExec_t executable = nullptr;
  const cudaError_t made = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  check(made, "cudaGraphInstantiate");
  return executable;
}

void launch_graph(void* graph, const Queue& queue) {
  check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), stream_of(queue).handle()), "cudaGraphLaunch");
}

void destroy_graph(void* graph) { cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)); }

void wait_for_event(void* event) { check(cudaEventSynchronize(static_cast<cudaEvent_t>(event)), "the GPU"); }
bool passed_event(void* event) {
  const cudaError_t code = cudaEventQuery(static_cast<cudaEvent_t>(event));
  if (code == cudaErrorNotReady) return false;
  check(code, "the GPU");
  return true;
}

}  // namespace osprey::cuda
