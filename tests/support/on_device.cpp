#include "tests/support/on_device.h"

#include <algorithm>

#include "kernels/device.h"

namespace osprey::test {

OnDevice::~OnDevice() {
  if (!copies_.empty()) kernels::synchronize(queue);
  for (const Copy& c : copies_) kernels::release(queue.device, c.memory.data, c.memory.bytes());
}

Tensor OnDevice::operator()(Buffer& buffer) {
  Tensor view = buffer;
  if (queue.device.kind == DeviceKind::cpu) return view;
  auto found =
      std::find_if(copies_.begin(), copies_.end(), [&](const Copy& c) { return c.buffer == &buffer; });
  if (found == copies_.end()) {
    const auto bytes = static_cast<int64_t>(buffer.bytes().size());
    const Tensor memory =
        make_tensor(kernels::allocate(queue.device, bytes, "a test"), {bytes / 2}, DType::bf16, queue.device);
    copies_.push_back({&buffer, memory});
    found = copies_.end() - 1;
    kernels::upload(queue, memory, buffer.bytes().data());
  }
  view.data =
      static_cast<char*>(found->memory.data) + (static_cast<char*>(view.data) - buffer.bytes().data());
  view.device = queue.device;
  return view;
}

void OnDevice::fetch() {
  for (const Copy& c : copies_) kernels::download(queue, c.buffer->bytes().data(), c.memory);
}

}  // namespace osprey::test
