#include "kernels/cuda/cudnn.h"

namespace osprey::cuda {

struct Cudnn::State {};
Cudnn::Cudnn(Stream&) {}
Cudnn::~Cudnn() = default;
std::string Cudnn::absent() const {
  return "built without the headers of cudnn-frontend; Osprey's own kernel computes all attention";
}
bool Cudnn::forward(const kernels::AttentionForward&) { return false; }
bool Cudnn::backward(const kernels::AttentionBackward&) { return false; }

}  // namespace osprey::cuda
