#include "framework/data/line_sample.h"

#include "kernels/core/random.h"

namespace osprey {

LineSample::LineSample(int64_t lines, int64_t line_bytes, uint64_t seed)
    : limit_(static_cast<size_t>(lines)),
      line_bytes_(static_cast<size_t>(line_bytes)),
      seed_(seed),
      stream_(stream_of("lines for the tokenizer")) {}

void LineSample::add(std::string_view text) {
  while (!text.empty()) {
    const size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    while (line.size() > line_bytes_) {
      size_t cut = line.rfind(' ', line_bytes_);
      if (cut == std::string_view::npos || cut == 0) {
        cut = line_bytes_;
        while (cut > 1 && (static_cast<unsigned char>(line[cut]) & 0xc0) == 0x80) --cut;
      }
      add_line(line.substr(0, cut));
      line.remove_prefix(cut);
    }
    add_line(line);
  }
}

void LineSample::add_line(std::string_view line) {
  if (line.empty()) return;
  const uint64_t number = seen_++;
  if (lines_.size() < limit_) {
    lines_.emplace_back(line);
    return;
  }
  const uint64_t seat = random_u64(seed_, stream_, number) % (number + 1);
  if (seat < limit_) lines_[seat] = line;
}

}  // namespace osprey
