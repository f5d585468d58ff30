#pragma once
// Streams, events and captures behind CUDA's handles.

#include <cuda_runtime.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <thread>
#include <vector>

namespace osprey::executor {

using Work = std::function<void()>;

/// What is ordered before a point of a capture: how many nodes of each stream.
using Clock = std::map<const CUstream_st*, int64_t>;

/// A capture in progress.
struct Capture {
  CUstream_st* origin;
  cudaStreamCaptureMode mode;
  std::thread::id thread;
  std::vector<CUstream_st*> streams;  // those that take part
  std::vector<Work> nodes;
  bool invalid = false;
};

}  // namespace osprey::executor

struct CUstream_st {
  int device;
  std::shared_ptr<osprey::executor::Capture> capture;  // null while it does not capture
  osprey::executor::Clock clock;                       // of the capture
};

struct CUevent_st {
  int device;
  bool timed;
  bool recorded = false;
  std::chrono::steady_clock::time_point at;
  std::weak_ptr<osprey::executor::Capture> capture;  // in which it was recorded last
  bool captured = false;
  osprey::executor::Clock clock;
};

struct CUgraph_st {
  std::vector<osprey::executor::Work> nodes;
};
struct CUgraphExec_st {
  std::vector<osprey::executor::Work> nodes;
};

namespace osprey::executor {

/// Notes an error for cudaGetLastError() and returns it.
cudaError_t set_error(cudaError_t code);
/// The device that this host thread has chosen.
int current_device();
/// Success unless a capture forbids calls that wait, allocate or free; then all such captures are lost, as on
/// CUDA.
cudaError_t allow_unsafe_call();
/// Does `work` now, or notes it where the stream captures; a null stream never captures.
cudaError_t submit(cudaStream_t stream, Work work);

}  // namespace osprey::executor
