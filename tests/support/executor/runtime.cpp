// The parts of the CUDA runtime that are about devices, memory and errors.

#include <cuda_runtime.h>

#include <sys/mman.h>

#include <atomic>
#include <cstring>

#include "kernels/core/check.h"
#include "tests/support/executor/memory.h"
#include "tests/support/executor/sanitizers.h"
#include "tests/support/executor/shared.h"
#include "tests/support/executor/streams.h"

namespace osprey::executor {

namespace {

std::atomic<int> device_count = 1;
thread_local int chosen_device = 0;
thread_local cudaError_t last_error = cudaSuccess;

struct ErrorText {
  cudaError_t code;
  const char *name, *text;
};
constexpr ErrorText error_texts[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorInvalidDeviceFunction, "cudaErrorInvalidDeviceFunction", "invalid device function"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorNoKernelImageForDevice, "cudaErrorNoKernelImageForDevice",
     "no kernel image is available for execution on the device"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureUnmatched, "cudaErrorStreamCaptureUnmatched",
     "capture was not ended in the same stream as it began"},
    {cudaErrorStreamCaptureUnjoined, "cudaErrorStreamCaptureUnjoined", "capturing stream has unjoined work"},
    {cudaErrorStreamCaptureIsolation, "cudaErrorStreamCaptureIsolation",
     "dependency created on uncaptured work in another stream"},
    {cudaErrorCapturedEvent, "cudaErrorCapturedEvent",
     "operation not permitted on an event last recorded in a capturing stream"},
    {cudaErrorStreamCaptureWrongThread, "cudaErrorStreamCaptureWrongThread",
     "attempt to terminate a thread-local capture sequence from another thread"},
};

const ErrorText& text_of(cudaError_t code) {
  for (const ErrorText& e : error_texts)
    if (e.code == code) return e;
  static constexpr ErrorText unknown{cudaSuccess, "unknown", "unrecognized error code"};
  return unknown;
}

/// Accessible device memory where [p, p + bytes) may lie, or none for host memory.
struct Side {
  int device = -1;
  bool valid = true, page_locked = false;
  Side(const void* p, size_t bytes) {
    if (in_device_range(p)) {
      device = device_of(p, bytes);
      valid = device >= 0;
    } else {
      page_locked = pinned(p, bytes);
    }
  }
  bool on_device() const { return device >= 0; }
};

bool fits(cudaMemcpyKind kind, const Side& to, const Side& from) {
  if (kind == cudaMemcpyDefault) return true;
  return to.on_device() == (kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice) &&
         from.on_device() == (kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice);
}

/// Makes what copies and fills touch accessible.
class Opened {
 public:
  explicit Opened(std::initializer_list<int> devices) {
    for (const int d : devices)
      if (d >= 0) open_[count_++] = new DeviceAccess(d);
  }
  ~Opened() {
    while (count_ > 0) delete open_[--count_];
  }
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;

 private:
  DeviceAccess* open_[2] = {};
  int count_ = 0;
};

bool capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  cudaStreamIsCapturing(stream, &status);
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace

cudaError_t set_error(cudaError_t code) {
  if (code != cudaSuccess) last_error = code;
  return code;
}

int current_device() { return chosen_device; }

void set_device_count(int count) {
  require(0 <= count && count <= max_devices, "executor", "{} GPUs are asked for, it plays 0 to {}", count,
          max_devices);
  device_count = count;
}

void check_launch(const Launch& l) {
  const uint64_t threads = uint64_t{l.threads.x} * l.threads.y * l.threads.z;
  require(1 <= threads && threads <= 1024 && l.threads.z <= 64, l.op,
          "a block of ({}, {}, {}) threads; a GPU takes 1 to 1024, at most 64 in z", l.threads.x, l.threads.y,
          l.threads.z);
  require(l.blocks.x <= 0x7fffffffu && l.blocks.y <= 65535 && l.blocks.z <= 65535, l.op,
          "a grid of ({}, {}, {}) blocks; a GPU takes at most 65535 in y and z", l.blocks.x, l.blocks.y,
          l.blocks.z);
  require(l.shared_bytes <= SharedMemory::most, l.op, "{} bytes of shared memory; a block has at most {}",
          l.shared_bytes, SharedMemory::most);
}

void check_argument(const std::string& op, int index, const void* argument, size_t bytes) {
  for (size_t at = 0; at + sizeof(uintptr_t) <= bytes; at += sizeof(uintptr_t)) {
    uintptr_t word;
    memcpy(&word, static_cast<const char*>(argument) + at, sizeof word);
    // Counts, strides and two small integers side by side are no addresses that this process has mapped;
    // under AddressSanitizer they are some of its shadow, which ends below what the program itself can hold.
    if (word < (under_asan ? uintptr_t{0x1000'8000'0000} : uintptr_t{1} << 32) || word >= uintptr_t{1} << 47)
      continue;
    auto* p = reinterpret_cast<void*>(word);
    if (in_device_range(p) || pinned(p, 1)) continue;
    require(msync(reinterpret_cast<void*>(word / 4096 * 4096), 1, MS_ASYNC) != 0, op,
            "argument {} of the kernel holds a pointer to host memory at byte {}", index, at);
  }
}

}  // namespace osprey::executor

using namespace osprey::executor;

const char* cudaGetErrorName(cudaError_t code) { return text_of(code).name; }
const char* cudaGetErrorString(cudaError_t code) { return text_of(code).text; }
cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = device_count;
  return *count > 0 ? cudaSuccess : set_error(cudaErrorNoDevice);
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= device_count) return set_error(cudaErrorInvalidDevice);
  chosen_device = device;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = chosen_device;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  if (device < 0 || device >= device_count) return set_error(cudaErrorInvalidDevice);
  *p = {.name = "host executor",
        .major = 9,
        .minor = 0,
        .multiProcessorCount = 7,  // no power of two: nothing may depend on it
        .totalGlobalMem = device_bytes,
        .sharedMemPerBlockOptin = SharedMemory::most,
        .l2CacheSize = 50 << 20};
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = device_bytes;
  *free = device_bytes - used_bytes(chosen_device);
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {};
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int value) {
  return value <= static_cast<int>(SharedMemory::most) ? cudaSuccess : set_error(cudaErrorInvalidValue);
}

cudaError_t cudaMalloc(void** p, size_t bytes) {
  *p = nullptr;
  if (const cudaError_t code = allow_unsafe_call(); code != cudaSuccess) return code;
  if (bytes == 0) return cudaSuccess;
  *p = allocate(chosen_device, bytes);
  return *p ? cudaSuccess : set_error(cudaErrorMemoryAllocation);
}
cudaError_t cudaFree(void* p) {
  if (const cudaError_t code = allow_unsafe_call(); code != cudaSuccess) return code;
  return !p || release(p) ? cudaSuccess : set_error(cudaErrorInvalidValue);
}
cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned) {
  *p = nullptr;
  if (const cudaError_t code = allow_unsafe_call(); code != cudaSuccess) return code;
  if (bytes == 0) return cudaSuccess;
  *p = allocate_pinned(bytes);
  return *p ? cudaSuccess : set_error(cudaErrorMemoryAllocation);
}
cudaError_t cudaFreeHost(void* p) {
  if (const cudaError_t code = allow_unsafe_call(); code != cudaSuccess) return code;
  return !p || release_pinned(p) ? cudaSuccess : set_error(cudaErrorInvalidValue);
}

cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  const Side to(p, bytes);
  if (!to.valid || !(to.on_device() || to.page_locked)) return set_error(cudaErrorInvalidValue);
  return submit(stream, [p, value, bytes, device = to.device] {
    const Opened opened({device});
    fill(p, static_cast<unsigned char>(value), bytes);
  });
}
cudaError_t cudaMemset(void* p, int value, size_t bytes) {
  if (const cudaError_t code = allow_unsafe_call(); code != cudaSuccess) return code;
  return cudaMemsetAsync(p, value, bytes, nullptr);
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  if (width == 0 || height == 0) return cudaSuccess;
  if (height > 1 && (to_pitch < width || from_pitch < width)) return set_error(cudaErrorInvalidValue);
  const Side target(to, to_pitch * (height - 1) + width), source(from, from_pitch * (height - 1) + width);
  if (!target.valid || !source.valid || !fits(kind, target, source)) return set_error(cudaErrorInvalidValue);
  // A graph would copy from or to memory that is long gone.
  const bool pageable =
      !(target.on_device() || target.page_locked) || !(source.on_device() || source.page_locked);
  if (pageable && capturing(stream)) return set_error(cudaErrorStreamCaptureUnsupported);
  return submit(stream, [=, devices = std::pair(target.device, source.device)] {
    const Opened opened({devices.first, devices.second});
    for (size_t row = 0; row < height; ++row)
      memcpy(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch,
             width);
  });
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  if (const cudaError_t code = allow_unsafe_call(); code != cudaSuccess) return code;
  return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}
