#pragma once
// What a bad access is, in words, before the process dies of it.

#include <string>

namespace osprey::executor {

/// From now on a segmentation fault says which kernel, block and thread made it, or that host code followed
/// a device pointer.
void explain_crashes();
/// Gives this host thread a stack for that, so that even an overflowed stack is reported.
void prepare_thread_for_crashes();

/// Where a device address lies (memory.cpp). Takes no lock: it is for a process that is about to die.
std::string about_device_address(const void* address);
/// The kernel, block and thread that this host thread runs (executor.cpp); empty when it runs none.
std::string running_thread();
/// Has the running thread's stack grown to `address` (executor.cpp)?
bool stack_overflowed_at(const void* address);

}  // namespace osprey::executor
