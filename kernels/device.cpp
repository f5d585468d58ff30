#include "kernels/device.h"

#include <sys/mman.h>

#include <chrono>
#include <cstring>

namespace osprey::kernels {

namespace {

void* map_pages(int64_t bytes, const std::string& what) {
  void* p = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  require(p != MAP_FAILED, "memory", "cannot reserve {} bytes of address space for {}", bytes, what);
  madvise(p, static_cast<size_t>(bytes), MADV_HUGEPAGE);
  return p;
}

bool on_gpu(const Queue& queue) { return queue.device.kind == DeviceKind::cuda; }

void require_dense(const char* where, const Tensor& t) {
  require(t.contiguous(), where, "needs a contiguous tensor, got {} with gaps", t);
}

}  // namespace

int gpu_count() { return cuda::gpu_count(); }
std::string why_no_gpu() { return cuda::why_no_gpu(); }
GpuInfo gpu_info(int index) { return cuda::gpu_info(index); }

void CloseStream::operator()(cuda::Stream* stream) const { cuda::close_stream(stream); }

StreamHandle open_stream(Device device, StreamUse use) {
  return StreamHandle(device.kind == DeviceKind::cuda ? cuda::open_stream(device.index, use) : nullptr);
}

OpenQueue open_queue(Device device, int threads) {
  OpenQueue open{.stream = open_stream(device), .queue = {}};
  open.queue = {.device = device, .threads = threads, .stream = open.stream.get()};
  return open;
}

std::string why_no_cudnn(const Queue& queue) { return on_gpu(queue) ? cuda::why_no_cudnn(queue) : ""; }

int64_t stream_workspace_bytes(DeviceKind kind) {
  return kind == DeviceKind::cuda ? cuda::stream_workspace_bytes() : 0;
}

void* allocate(Device device, int64_t bytes, const std::string& what) {
  require(bytes >= 0, "memory", "{} bytes of {}", bytes, what);
  if (device.kind == DeviceKind::meta || bytes == 0) return nullptr;
  return device.kind == DeviceKind::cuda ? cuda::allocate(device.index, bytes, what) : map_pages(bytes, what);
}

void release(Device device, void* memory, int64_t bytes) {
  if (!memory) return;
  if (device.kind == DeviceKind::cuda)
    cuda::release(device.index, memory);
  else
    munmap(memory, static_cast<size_t>(bytes));
}

void* allocate_host(Device device, int64_t bytes, const std::string& what) {
  if (device.kind == DeviceKind::meta || bytes == 0) return nullptr;
  return device.kind == DeviceKind::cuda ? cuda::allocate_host(bytes, what) : map_pages(bytes, what);
}

void release_host(Device device, void* memory, int64_t bytes) {
  if (!memory) return;
  if (device.kind == DeviceKind::cuda)
    cuda::release_host(memory);
  else
    munmap(memory, static_cast<size_t>(bytes));
}

void upload(const Queue& queue, const Tensor& to, const void* from) {
  if (queue.meta() || to.numel() == 0) return;
  const int64_t row = to.cols() * size_bytes(to.dtype), stride = to.row_stride() * size_bytes(to.dtype);
  if (on_gpu(queue)) return cuda::upload(queue, {to.data, stride, from, row, row, to.rows()});
  for (int64_t r = 0; r < to.rows(); ++r)
    std::memcpy(static_cast<char*>(to.data) + r * stride, static_cast<const char*>(from) + r * row,
                static_cast<size_t>(row));
}

void download(const Queue& queue, void* to, const Tensor& from) {
  if (queue.meta() || from.numel() == 0) return;
  const int64_t row = from.cols() * size_bytes(from.dtype),
                stride = from.row_stride() * size_bytes(from.dtype);
  if (on_gpu(queue)) return cuda::download(queue, {to, row, from.data, stride, row, from.rows()});
  for (int64_t r = 0; r < from.rows(); ++r)
    std::memcpy(static_cast<char*>(to) + r * row, static_cast<const char*>(from.data) + r * stride,
                static_cast<size_t>(row));
}

void upload_async(const Queue& queue, const Tensor& to, const void* host) {
  require_dense("upload", to);
  if (on_gpu(queue)) return cuda::upload_async(queue, to.data, host, to.bytes());
  upload(queue, to, host);
}

void download_async(const Queue& queue, void* host, const Tensor& from) {
  require_dense("download", from);
  if (on_gpu(queue)) return cuda::download_async(queue, host, from.data, from.bytes());
  download(queue, host, from);
}

void fill_bytes(const Queue& queue, const Tensor& t, unsigned char value) {
  require_dense("fill", t);
  if (queue.meta() || t.numel() == 0) return;
  if (on_gpu(queue)) return cuda::fill_bytes(queue, t.data, value, t.bytes());
  std::memset(t.data, value, static_cast<size_t>(t.bytes()));
}

void synchronize(const Queue& queue) {
  if (on_gpu(queue)) cuda::synchronize(queue);
}

Event::Event(Device device) : device_(device) {
  if (device.kind == DeviceKind::cuda) handle_ = cuda::make_event(device.index);
}
Event::~Event() {
  if (handle_) cuda::destroy_event(handle_);
}
void Event::record(const Queue& queue) {
  if (handle_) cuda::record_event(handle_, queue);
}
void Event::hold(const Queue& queue) const {
  if (handle_) cuda::hold_for_event(handle_, queue);
}
void Event::wait() const {
  if (handle_) cuda::wait_for_event(handle_);
}
bool Event::passed() const { return !handle_ || cuda::passed_event(handle_); }

Timeline::~Timeline() {
  for (void* event : events_) cuda::destroy_event(event);
}

void Timeline::mark(const Queue& queue) {
  if (on_gpu(queue)) {
    if (marks_ == events_.size()) events_.push_back(cuda::make_timed_event(device_.index));
    cuda::record_event(events_[marks_], queue);
  } else {
    host_s_.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count());
  }
  ++marks_;
}

std::vector<double> Timeline::take_seconds() {
  std::vector<double> seconds(marks_);
  for (size_t i = 0; i < marks_; ++i)
    seconds[i] = host_s_.empty() ? cuda::seconds_between(events_[0], events_[i]) : host_s_[i] - host_s_[0];
  host_s_.clear();
  marks_ = 0;
  return seconds;
}

NamedRange::NamedRange(const char* name, int index) { cuda::begin_range(name, index); }
NamedRange::~NamedRange() { cuda::end_range(); }

Graph::~Graph() { clear(); }

void Graph::clear() {
  if (handle_) cuda::destroy_graph(handle_);
  handle_ = nullptr;
}

void Graph::record(const Queue& queue, const std::function<void()>& work) {
  require(device_.kind == DeviceKind::cuda && queue.device == device_, "graph", "{} records no graphs",
          name(device_.kind));
  clear();
  cuda::begin_recording(queue);
  try {
    work();
  } catch (...) {
    cuda::end_recording(queue, cuda::Recording::discard);
    throw;
  }
  handle_ = cuda::end_recording(queue, cuda::Recording::keep);
}

void Graph::launch(const Queue& queue) const {
  require(recorded(), "graph", "nothing is recorded");
  cuda::launch_graph(handle_, queue);
}

}  // namespace osprey::kernels
