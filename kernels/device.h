#pragma once
// Devices as the rest of the house sees them: which there are, their memory, the order of work on them.
// On the CPU everything here is immediate.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/core/queue.h"

namespace osprey::kernels {

/// What a GPU is, in words that plans and errors use.
struct GpuInfo {
  std::string name;
  int compute_capability = 0;  // 90 for sm_90
  int multiprocessors = 0;
  int64_t total_bytes = 0, free_bytes = 0;
  std::string driver;  // "13.0": the newest CUDA version that the driver supports
};

/// How many GPUs this process can use; 0 when this build, the driver or the machine has none.
int gpu_count();
/// Why gpu_count() is 0, with the cure; empty when it is not.
std::string why_no_gpu();
/// Errors: throws when there is no such GPU.
GpuInfo gpu_info(int index);

struct CloseStream {
  void operator()(cuda::Stream* stream) const;
};
using StreamHandle = std::unique_ptr<cuda::Stream, CloseStream>;
/// What a stream is for: `compute` has its libraries' handles and a workspace (stream_workspace_bytes() of
/// GPU memory); `transfer` has neither, and goes before others where the GPU has a choice.
enum class StreamUse { compute, transfer };
/// Null on the CPU and on meta. Errors: throws, with the cure, when the GPU cannot be used: no driver, a
/// driver that is too old, no such GPU, an architecture that this build has no code for.
StreamHandle open_stream(Device device, StreamUse use = StreamUse::compute);
int64_t stream_workspace_bytes(DeviceKind kind);

/// A queue on a device with the stream it needs.
struct OpenQueue {
  StreamHandle stream;
  Queue queue;
};
/// Errors: as open_stream().
OpenQueue open_queue(Device device, int threads);

/// Why cuDNN computes no attention on this queue's GPU, so that Osprey's own kernel does; empty when it does,
/// and on other devices.
std::string why_no_cudnn(const Queue& queue);

/// Memory on a device, zeroed. On the CPU: address space whose pages become real when they are written.
/// Null on meta. Aligned to 256 bytes at least. Errors: throws when there is not so much; `what` names it.
void* allocate(Device device, int64_t bytes, const std::string& what);
void release(Device device, void* memory, int64_t bytes);
/// Memory of the host that this device copies from and to without a detour (pinned), zeroed.
void* allocate_host(Device device, int64_t bytes, const std::string& what);
void release_host(Device device, void* memory, int64_t bytes);

/// Copies `to.bytes()` bytes of host memory to a tensor. Rows of `to` may be strided; `from` is dense.
/// Async: `from` may be changed on return.
void upload(const Queue& queue, const Tensor& to, const void* from);
/// Copies a tensor to dense host memory. Async: complete on return; work queued before has finished.
void download(const Queue& queue, void* to, const Tensor& from);
/// As upload() and download() of contiguous tensors, but in order with the queue's work and without waiting:
/// `host` (of allocate_host()) stays untouched until the copy is known to be done.
void upload_async(const Queue& queue, const Tensor& to, const void* host);
void download_async(const Queue& queue, void* host, const Tensor& from);
/// Sets every byte of a contiguous tensor, in order.
void fill_bytes(const Queue& queue, const Tensor& t, unsigned char value);
/// Returns when all work queued so far is done. Errors: throws what the device reports.
void synchronize(const Queue& queue);

/// A point in a queue's work. On the CPU all points are passed.
class Event {
 public:
  explicit Event(Device device);
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  /// Moves the point to the end of what `queue` holds now.
  void record(const Queue& queue);
  /// Work put on `queue` from now on begins after the point.
  void hold(const Queue& queue) const;
  /// Returns when the point is passed. Errors: throws what the device reports.
  void wait() const;
  /// Whether the point is passed; does not wait. Errors: as wait().
  bool passed() const;

 private:
  Device device_;
  void* handle_ = nullptr;
};

/// When a queue's work reached points of it, to be read later.
class Timeline {
 public:
  explicit Timeline(Device device) : device_(device) {}
  ~Timeline();
  Timeline(const Timeline&) = delete;
  Timeline& operator=(const Timeline&) = delete;
  /// Puts a point at the end of what `queue` holds now.
  void mark(const Queue& queue);
  /// Seconds from the first point to each, and forgets them. Waits for the last.
  std::vector<double> take_seconds();

 private:
  Device device_;
  std::vector<double> host_s_;
  std::vector<void*> events_;  // kept for the next points
  size_t marks_ = 0;
};

/// Names what the host does while this lives for profilers that watch a GPU program from outside (NVTX).
class NamedRange {
 public:
  NamedRange(const char* name, int index);
  ~NamedRange();
  NamedRange(const NamedRange&) = delete;
  NamedRange& operator=(const NamedRange&) = delete;
};

/// A stretch of a queue's work that is recorded once and started again by one call: a CUDA graph. Kernels see
/// the arguments they were recorded with, so all that changes from run to run must lie in memory.
class Graph {
 public:
  explicit Graph(Device device) : device_(device) {}
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  bool recorded() const { return handle_ != nullptr; }
  /// Forgets what was recorded.
  void clear();
  /// Runs `work`, which puts on the queue what is to be recorded; nothing of it is executed, and it may not
  /// wait for the queue or allocate. Replaces what was recorded. Errors: throws on devices without graphs,
  /// and what CUDA refuses to record.
  void record(const Queue& queue, const std::function<void()>& work);
  /// Puts the recorded work on the queue.
  void launch(const Queue& queue) const;

 private:
  Device device_;
  void* handle_ = nullptr;
};

}  // namespace osprey::kernels

// The CPU needs no twin: kernels/device.cpp does its part.
namespace osprey::cuda {
int gpu_count();
std::string why_no_gpu();
kernels::GpuInfo gpu_info(int index);
std::string why_no_cudnn(const Queue& queue);
Stream* open_stream(int index, kernels::StreamUse use);
void close_stream(Stream* stream);
int64_t stream_workspace_bytes();
void* allocate(int index, int64_t bytes, const std::string& what);
void release(int index, void* memory);
void* allocate_host(int64_t bytes, const std::string& what);
void release_host(void* memory);
/// `rows` rows of `row_bytes` from one stride to another; host memory is dense.
struct RowCopy {
  void* to;
  int64_t to_stride_bytes;
  const void* from;
  int64_t from_stride_bytes;
  int64_t row_bytes, rows;
};
void upload(const Queue& queue, const RowCopy& copy);
void download(const Queue& queue, const RowCopy& copy);
void upload_async(const Queue& queue, void* to, const void* host, int64_t bytes);
void download_async(const Queue& queue, void* host, const void* from, int64_t bytes);
void fill_bytes(const Queue& queue, void* to, unsigned char value, int64_t bytes);
void synchronize(const Queue& queue);
void* make_event(int index);
void destroy_event(void* event);
void record_event(void* event, const Queue& queue);
void hold_for_event(void* event, const Queue& queue);
void wait_for_event(void* event);
void* make_timed_event(int index);
/// From one timed event to a later one, which is waited for.
double seconds_between(void* from, void* to);
void begin_range(const char* name, int index);
void end_range();
void begin_recording(const Queue& queue);
/// What was recorded, ready to be launched; `keep` false: throws it away and returns null.
enum class Recording { keep, discard };
void* end_recording(const Queue& queue, Recording recording);
void launch_graph(void* graph, const Queue& queue);
void destroy_graph(void* graph);
bool passed_event(void* event);
}  // namespace osprey::cuda
