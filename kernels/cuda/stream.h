#pragma once
// What a queue is on a GPU: a stream, the handles of its libraries, and working memory for the op that runs.

#include <cuda_runtime.h>

#include <memory>

#include "kernels/cuda/workspace.h"
#include "kernels/device.h"

namespace osprey::cuda {

class Blas;   // kernels/cuda/blas.h
class Cudnn;  // kernels/cuda/cudnn.h

/// Throws unless `code` is success; the message names what was tried and what CUDA says.
void check(cudaError_t code, const char* what);

class Stream {
 public:
  /// Errors: throws when GPU `index` cannot be used by this build; says what would help.
  explicit Stream(int index, kernels::StreamUse use = kernels::StreamUse::compute);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  int index() const { return index_; }
  cudaStream_t handle() const { return handle_; }
  const cudaDeviceProp& properties() const { return properties_; }
  Blas& blas() { return *blas_; }
  Cudnn& cudnn() { return *cudnn_; }

  /// Working memory of the op that runs, 256-byte aligned, valid until the next op on this stream; what an op
  /// finds in it is undefined. Errors: throws when an op asks for more than scratch_bytes,
  /// or for any on a transfer stream.
  void* scratch(int64_t bytes);
  static constexpr int64_t scratch_bytes = stream_scratch_bytes;
  /// For GEMM libraries.
  void* gemm_workspace() const { return workspace_ + scratch_bytes; }
  static constexpr int64_t gemm_workspace_bytes = stream_gemm_bytes;

 private:
  int index_;
  cudaDeviceProp properties_{};
  cudaStream_t handle_ = nullptr;
  char* workspace_ = nullptr;
  std::unique_ptr<Blas> blas_;
  std::unique_ptr<Cudnn> cudnn_;
};

/// The stream of a queue. Errors: throws when the queue has none.
Stream& stream_of(const Queue& queue);

}  // namespace osprey::cuda
