#include "tests/support/executor/streams.h"

#include <algorithm>
#include <mutex>

#include "kernels/core/check.h"
#include "tests/support/executor/executor.h"
#include "tests/support/executor/memory.h"

namespace osprey::executor {

namespace {

std::mutex capture_mutex;  // of everything about captures
std::vector<std::shared_ptr<Capture>>& captures() {
  static auto* list = new std::vector<std::shared_ptr<Capture>>;
  return *list;
}

void refuse(cudaError_t code, const std::string& op) {
  if (code != cudaSuccess) fail(op, "{} ({})", cudaGetErrorString(code), cudaGetErrorName(code));
}

void merge(Clock& into, const Clock& from) {
  for (const auto& [stream, count] : from) {
    int64_t& mine = into[stream];
    mine = std::max(mine, count);
  }
}

cudaError_t invalidate(Capture& capture, cudaError_t code) {
  capture.invalid = true;
  return set_error(code);
}

}  // namespace

cudaError_t allow_unsafe_call() {
  const std::lock_guard lock(capture_mutex);
  cudaError_t code = cudaSuccess;
  for (const auto& capture : captures()) {
    const bool mine = capture->thread == std::this_thread::get_id();
    if (capture->mode == cudaStreamCaptureModeGlobal ||
        (capture->mode == cudaStreamCaptureModeThreadLocal && mine))
      code = invalidate(*capture, cudaErrorStreamCaptureUnsupported);
  }
  return code;
}

cudaError_t submit(cudaStream_t stream, Work work) {
  if (stream) {
    const std::lock_guard lock(capture_mutex);
    if (stream->capture) {
      if (stream->capture->invalid) return set_error(cudaErrorStreamCaptureInvalidated);
      stream->capture->nodes.push_back(std::move(work));
      ++stream->clock[stream];
      return cudaSuccess;
    }
  }
  work();
  return cudaSuccess;
}

void run_on_device(cudaStream_t stream, Work work) {
  const int device = stream ? stream->device : current_device();
  refuse(submit(stream,
                [device, work = std::move(work)] {
                  const DeviceAccess access(device);
                  work();
                }),
         "executor");
}

void launch(cudaStream_t stream, Launch launch) {
  check_launch(launch);
  const int device = stream ? stream->device : current_device();
  require(device == current_device(), launch.op,
          "the stream is of GPU {}, and this host thread has chosen GPU {} (cudaErrorInvalidResourceHandle)",
          device, current_device());
  const std::string op = launch.op;
  refuse(submit(stream,
                [device, launch = std::move(launch)] {
                  const DeviceAccess access(device);
                  run_blocks(launch);
                  check_guards(device, launch.op.c_str());
                }),
         op);
}

}  // namespace osprey::executor

using namespace osprey::executor;

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new CUstream_st{current_device(), nullptr, {}};
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
  return cudaStreamCreateWithFlags(stream, flags);
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  if (!stream) return set_error(cudaErrorInvalidResourceHandle);
  {
    const std::lock_guard lock(capture_mutex);
    if (stream->capture) {
      stream->capture->invalid = true;
      std::erase(stream->capture->streams, stream);
      if (stream->capture->origin == stream) std::erase(captures(), stream->capture);
    }
  }
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (stream) {
    const std::lock_guard lock(capture_mutex);
    if (stream->capture) return invalidate(*stream->capture, cudaErrorStreamCaptureUnsupported);
  }
  return allow_unsafe_call();
}
cudaError_t cudaStreamQuery(cudaStream_t stream) { return cudaStreamSynchronize(stream); }
cudaError_t cudaDeviceSynchronize() { return allow_unsafe_call(); }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  *event = new CUevent_st{.device = current_device(), .timed = (flags & cudaEventDisableTiming) == 0};
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  if (!event) return set_error(cudaErrorInvalidResourceHandle);
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (event->device != (stream ? stream->device : current_device()))
    return set_error(cudaErrorInvalidResourceHandle);
  const std::lock_guard lock(capture_mutex);
  event->captured = stream && stream->capture;
  event->capture.reset();
  if (event->captured) {
    if (stream->capture->invalid) return set_error(cudaErrorStreamCaptureInvalidated);
    event->capture = stream->capture;
    event->clock = stream->clock;
    return cudaSuccess;
  }
  event->recorded = true;
  event->at = std::chrono::steady_clock::now();
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const std::lock_guard lock(capture_mutex);
  if (!event->captured) {
    if (stream && stream->capture && event->recorded)
      return invalidate(*stream->capture, cudaErrorStreamCaptureIsolation);
    return cudaSuccess;
  }
  const auto capture = event->capture.lock();
  if (!capture || !stream) return set_error(cudaErrorCapturedEvent);
  if (capture->invalid) return set_error(cudaErrorStreamCaptureInvalidated);
  if (stream->capture && stream->capture != capture)
    return invalidate(*stream->capture, cudaErrorStreamCaptureIsolation);
  if (!stream->capture) {
    stream->capture = capture;
    stream->clock.clear();
    capture->streams.push_back(stream);
  }
  merge(stream->clock, event->clock);
  return cudaSuccess;
}

static cudaError_t allow_question(cudaEvent_t event) {
  {
    const std::lock_guard lock(capture_mutex);
    if (event->captured) {
      if (const auto capture = event->capture.lock()) capture->invalid = true;
      return set_error(cudaErrorCapturedEvent);
    }
  }
  return allow_unsafe_call();
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return allow_question(event); }
cudaError_t cudaEventQuery(cudaEvent_t event) { return allow_question(event); }

cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t start, cudaEvent_t end) {
  if (!start->timed || !end->timed || !start->recorded || !end->recorded)
    return set_error(cudaErrorInvalidResourceHandle);
  if (start->captured || end->captured) return set_error(cudaErrorCapturedEvent);
  *ms = std::chrono::duration<float, std::milli>(end->at - start->at).count();
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  const std::lock_guard lock(capture_mutex);
  if (!stream) return set_error(cudaErrorStreamCaptureUnsupported);
  if (stream->capture) return set_error(cudaErrorInvalidValue);
  stream->capture =
      std::make_shared<Capture>(Capture{stream, mode, std::this_thread::get_id(), {stream}, {}});
  stream->clock.clear();
  captures().push_back(stream->capture);
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  const std::lock_guard lock(capture_mutex);
  if (!stream || !stream->capture) return set_error(cudaErrorInvalidValue);
  const auto capture = stream->capture;
  if (capture->origin != stream) return invalidate(*capture, cudaErrorStreamCaptureUnmatched);
  if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != std::this_thread::get_id())
    return set_error(cudaErrorStreamCaptureWrongThread);
  cudaError_t code = capture->invalid ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
  for (CUstream_st* s : capture->streams) {
    if (code == cudaSuccess && stream->clock[s] != s->clock[s]) code = cudaErrorStreamCaptureUnjoined;
    s->capture = nullptr;
  }
  std::erase(captures(), capture);
  if (code != cudaSuccess) return set_error(code);
  *graph = new CUgraph_st{std::move(capture->nodes)};
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const std::lock_guard lock(capture_mutex);
  const bool captures_now = stream && stream->capture;
  *status = !captures_now              ? cudaStreamCaptureStatusNone
            : stream->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                       : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  if (!graph) return set_error(cudaErrorInvalidValue);
  *exec = new CUgraphExec_st{graph->nodes};
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  if (!exec) return set_error(cudaErrorInvalidValue);
  return submit(stream, [nodes = exec->nodes] {
    for (const Work& node : nodes) node();
  });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  if (!graph) return set_error(cudaErrorInvalidValue);
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  if (!exec) return set_error(cudaErrorInvalidValue);
  delete exec;
  return cudaSuccess;
}
