#include "kernels/cuda/stream.h"

#include "kernels/cuda/blas.h"
#include "kernels/cuda/cudnn.h"
#include "kernels/device.h"

namespace osprey::cuda {

void check(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // forget it: the next call should report its own
  fail("cuda", "{} failed: {} ({})", what, cudaGetErrorString(code), cudaGetErrorName(code));
}

Stream::Stream(int index, kernels::StreamUse use) : index_(index) {
  check(cudaSetDevice(index), "cudaSetDevice");
  check(cudaGetDeviceProperties(&properties_, index), "cudaGetDeviceProperties");
  if (use == kernels::StreamUse::transfer) {
    int least = 0, greatest = 0;
    check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
    check(cudaStreamCreateWithPriority(&handle_, cudaStreamNonBlocking, greatest), "cudaStreamCreate");
    return;
  }
  check(cudaStreamCreateWithFlags(&handle_, cudaStreamNonBlocking), "cudaStreamCreate");
  void* p = nullptr;
  check(cudaMalloc(&p, scratch_bytes + gemm_workspace_bytes), "allocating the workspace of a stream");
  workspace_ = static_cast<char*>(p);
  blas_ = std::make_unique<Blas>(*this);
  cudnn_ = std::make_unique<Cudnn>(*this);
}

Stream::~Stream() {
  cudaStreamSynchronize(handle_);
  cudnn_.reset();
  blas_.reset();
  cudaFree(workspace_);
  cudaStreamDestroy(handle_);
}

void* Stream::scratch(int64_t bytes) {
  require(workspace_ != nullptr, "cuda", "an op that needs scratch was put on a stream for transfers");
  require(bytes <= scratch_bytes, "cuda", "an op asks for {} bytes of scratch, a stream has {}", bytes,
          scratch_bytes);
  return workspace_;
}

std::string why_no_cudnn(const Queue& queue) { return stream_of(queue).cudnn().absent(); }

Stream& stream_of(const Queue& queue) {
  require(queue.stream != nullptr, "cuda",
          "a queue on a GPU needs a stream; see open_stream in kernels/device.h");
  return *queue.stream;
}

}  // namespace osprey::cuda
