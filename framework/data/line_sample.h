#pragma once
// A fixed number of lines drawn evenly from a text of unknown length.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace osprey {

/// Reservoir sampling (Vitter's algorithm R) by counter-based draws: a function of (seed, lines).
class LineSample {
 public:
  /// Lines longer than `line_bytes` are cut at spaces where there are any, else between characters.
  LineSample(int64_t lines, int64_t line_bytes, uint64_t seed);

  /// `text` must be valid UTF-8.
  void add(std::string_view text);
  std::vector<std::string> take() { return std::move(lines_); }

 private:
  void add_line(std::string_view line);

  size_t limit_;
  size_t line_bytes_;
  uint64_t seed_, stream_, seen_ = 0;
  std::vector<std::string> lines_;
};

}  // namespace osprey
