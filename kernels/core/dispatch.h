#pragma once
// From a checked front door to its twin.

#include "kernels/core/queue.h"

namespace osprey::kernels {

/// Calls the twin of the queue's device; on meta nothing runs.
template <class Args>
void dispatch(const Queue& queue, const Args& args, void (*cpu)(const Queue&, const Args&),
              void (*cuda)(const Queue&, const Args&)) {
  switch (queue.device.kind) {
    case DeviceKind::cpu:
      return cpu(queue, args);
    case DeviceKind::cuda:
      return cuda(queue, args);
    case DeviceKind::meta:
      return;
  }
}

}  // namespace osprey::kernels
