#include "tests/support/executor/crash.h"

#include <unistd.h>
#include <csignal>
#include <cstdlib>

#include <fmt/format.h>

#include "tests/support/executor/memory.h"
#include "tests/support/executor/sanitizers.h"

namespace osprey::executor {

namespace {

struct sigaction before[2];  // of SIGSEGV and SIGBUS

std::string explain(const void* address) {
  const std::string who = running_thread();
  if (!who.empty() && stack_overflowed_at(address))
    return who + " needs more stack than the executor gives a thread";
  if (!in_device_range(address) && who.empty()) return "";
  if (!address) return who + " touched address 0, or one that is not aligned as it must be";
  if (!in_device_range(address)) return fmt::format("{} touched address {}", who, address);
  if (who.empty())
    return fmt::format("host code touched device memory: address {}, {}", address,
                       about_device_address(address));
  return fmt::format("{} touched device memory that is not allocated, or not on its GPU: address {}, {}", who,
                     address, about_device_address(address));
}

/// Not written for survival: the process dies after it, so it may allocate.
void on_fault(int signal, siginfo_t* info, void*) {
  sigaction(signal, &before[signal == SIGBUS], nullptr);  // the access happens again, and is fatal
  const std::string text = explain(info->si_addr);
  if (text.empty()) return;
  const std::string line = "[executor] " + text + "\n";
  [[maybe_unused]] const auto written = write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace

void explain_crashes() {
  struct sigaction action {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  sigaction(SIGSEGV, &action, &before[0]);
  sigaction(SIGBUS, &action, &before[1]);
}

void prepare_thread_for_crashes() {
  if (under_asan || under_tsan) return;  // the sanitizer has done it
  constexpr size_t bytes = 64 * 1024;
  struct Stack {
    stack_t stack{};
    Stack() {
      stack.ss_sp = malloc(bytes);
      stack.ss_size = bytes;
      sigaltstack(&stack, nullptr);
    }
    ~Stack() {
      stack_t none{};
      none.ss_flags = SS_DISABLE;
      sigaltstack(&none, nullptr);
      free(stack.ss_sp);
    }
  };
  thread_local Stack mine;
}

}  // namespace osprey::executor
