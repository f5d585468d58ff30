#pragma once
// A stack to run a function on, and switching between such stacks. One host thread uses a fiber all its life.

#include <cstddef>

namespace osprey::executor {

class Fiber {
 public:
  /// The host thread that runs already.
  Fiber();
  /// `entry(argument)` runs on a stack of its own at the first switch; it never returns.
  Fiber(void (*entry)(void*), void* argument);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  /// Leaves this fiber, which runs, for `to`; returns when somebody switches back.
  void switch_to(Fiber& to);

  /// Is `address` in the page that no stack may grow into?
  bool overflowed_at(const void* address) const;

 private:
  static void start(Fiber* self);

  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
  char* stack_ = nullptr;         // guard page first
  void* context_ = nullptr;       // the saved stack pointer, or a ucontext_t
  const void* bottom_ = nullptr;  // as AddressSanitizer wants to know it
  size_t size_ = 0;
  void* fake_stack_ = nullptr;
  void* tsan_ = nullptr;
};

}  // namespace osprey::executor
