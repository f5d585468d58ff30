#include "tests/support/executor/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

#include "kernels/core/check.h"
#include "tests/support/executor/sanitizers.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace osprey::executor {

namespace {

constexpr size_t page = 4096;
/// Frames are larger under the sanitizers.
constexpr size_t stack_size = (under_asan || under_tsan ? 256 : 64) * 1024;

/// Whom the host thread ran before the latest switch.
thread_local Fiber* previous = nullptr;
/// Whom it runs since.
thread_local Fiber* present = nullptr;

}  // namespace

#if defined(__x86_64__)
// Saves the callee-saved registers and the stack pointer, takes those of another; glibc's swapcontext makes a
// system call each time.
extern "C" void osprey_executor_switch(void** save, void* load);
asm(R"(
.text
.globl osprey_executor_switch
.type osprey_executor_switch, @function
osprey_executor_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size osprey_executor_switch, .-osprey_executor_switch
)");

namespace {

void prepare(void** context, char* top, void (*first)()) {
  void** frame = reinterpret_cast<void**>(top) - 8;  // so that rsp + 8 is a multiple of 16 in `first`
  memset(frame, 0, 8 * sizeof(void*));
  frame[6] = reinterpret_cast<void*>(first);
  *context = frame;
}
void dispose(void*) {}
void change(void** from, void* to) { osprey_executor_switch(from, to); }

}  // namespace
#else
namespace {

void prepare(void** context, char* top, void (*first)()) {
  auto* c = new ucontext_t;
  getcontext(c);
  c->uc_stack.ss_sp = top - stack_size;
  c->uc_stack.ss_size = stack_size;
  makecontext(c, first, 0);
  *context = c;
}
void dispose(void* context) { delete static_cast<ucontext_t*>(context); }
void change(void** from, void* to) {
  if (!*from) *from = new ucontext_t;
  swapcontext(static_cast<ucontext_t*>(*from), static_cast<ucontext_t*>(to));
}

}  // namespace
#endif

Fiber::Fiber() : tsan_(tsan_current_fiber()) {}

Fiber::Fiber(void (*entry)(void*), void* argument) : entry_(entry), argument_(argument) {
  void* p = mmap(nullptr, page + stack_size, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  require(p != MAP_FAILED, "executor", "no memory for the stack of a thread");
  stack_ = static_cast<char*>(p);
  mprotect(stack_, page, PROT_NONE);
  bottom_ = stack_ + page;
  size_ = stack_size;
  tsan_ = tsan_create_fiber();
  prepare(&context_, stack_ + page + stack_size, [] { start(present); });
}

Fiber::~Fiber() {
  dispose(context_);
  if (!stack_) return;
  tsan_destroy_fiber(tsan_);
  unpoison(bottom_, size_);
  munmap(stack_, page + stack_size);
}

void Fiber::start(Fiber* self) {
  asan_finish_switch(nullptr, &previous->bottom_, &previous->size_);
  self->entry_(self->argument_);
}

void Fiber::switch_to(Fiber& to) {
  previous = this;
  present = &to;
  asan_start_switch(&fake_stack_, to.bottom_, to.size_);
  tsan_switch_to_fiber(to.tsan_);
  change(&context_, to.context_);
  asan_finish_switch(fake_stack_, &previous->bottom_, &previous->size_);
}

bool Fiber::overflowed_at(const void* address) const {
  return stack_ && address >= stack_ && address < stack_ + page;
}

}  // namespace osprey::executor
