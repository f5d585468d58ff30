#pragma once
// The one exception type, and the one way to raise it.

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <string_view>

namespace osprey {

/// Everything that can go wrong by what a user, a file or a peer did. The message reads
/// `[where] what was expected, what was found; the cure`.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Throws Error("[where] ...").
template <class... Args>
[[noreturn]] void fail(std::string_view where, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(fmt::format("[{}] {}", where, fmt::format(format, std::forward<Args>(args)...)));
}

/// Throws unless `ok`. Always on: checks stand at boundaries, not in inner loops.
template <class... Args>
void require(bool ok, std::string_view where, fmt::format_string<Args...> format, Args&&... args) {
  if (!ok) [[unlikely]]
    fail(where, format, std::forward<Args>(args)...);
}

}  // namespace osprey
