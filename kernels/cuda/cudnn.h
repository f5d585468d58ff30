#pragma once
// Attention by cuDNN. The implementation is cudnn.cpp where cudnn-frontend's headers were found, and
// no_cudnn.cpp (it takes nothing) where they were not and in tests that run kernels on the CPU; attention.cu
// computes what is not taken here.

#include <memory>
#include <string>

#include "kernels/attention.h"
#include "kernels/cuda/stream.h"

namespace osprey::cuda {

class Cudnn {
 public:
  explicit Cudnn(Stream& stream);
  ~Cudnn();
  /// Why cuDNN serves no attention at all here (headers or library missing), or empty.
  std::string absent() const;
  /// Queue the op if cuDNN can express it; false, and nothing queued, when it cannot. The answer depends on
  /// shapes, options and 16-byte alignment only. forward() takes no shape whose backward cuDNN cannot do (its
  /// deterministic backward wants much working memory), so one implementation computes both. Where backward()
  /// refuses all the same, because gradients are added or some are not wanted, another may go on from the o
  /// and lse of forward(): they mean the same everywhere. Numerics: as the contract; two runs give equal
  /// bits. A shape that is refused for what cuDNN or this GPU cannot do is named once on stderr. Errors:
  /// throws what cuDNN reports, naming the shape.
  bool forward(const kernels::AttentionForward& args);
  bool backward(const kernels::AttentionBackward& args);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace osprey::cuda
