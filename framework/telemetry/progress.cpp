#include "framework/telemetry/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>

namespace osprey {

std::string grouped(int64_t n) {
  std::string digits = std::to_string(n);
  for (int64_t at = static_cast<int64_t>(digits.size()) - 3; at > (n < 0 ? 1 : 0); at -= 3)
    digits.insert(static_cast<size_t>(at), ",");
  return digits;
}

std::string duration_text(double seconds) {
  if (!std::isfinite(seconds)) return "?";
  const auto s = static_cast<int64_t>(std::llround(std::clamp(seconds, 0.0, 1e12)));
  if (s < 60) return fmt::format("{} s", s);
  if (s < 3600) return fmt::format("{} min {:02} s", s / 60, s % 60);
  if (s < 48 * 3600) return fmt::format("{} h {:02} min", s / 3600, s % 3600 / 60);
  return fmt::format("{} d {:02} h", s / 86400, s % 86400 / 3600);
}

std::string progress_text(const ProgressSample& p, int columns) {
  std::string text = fmt::format(
      "step {}/{} | loss {:.4f} | grad norm {:.3g} | {} tokens/s", grouped(p.step), grouped(p.steps), p.loss,
      p.grad_norm, grouped(static_cast<int64_t>(std::llround(std::clamp(p.tokens_per_second, 0.0, 1e15)))));
  if (p.gemm_percent) text += fmt::format(" | {:.0f}% of GEMM", *p.gemm_percent);
  if (p.seconds_left) text += fmt::format(" | {} left", duration_text(*p.seconds_left));
  if (p.skipped_updates > 0) text += fmt::format(" | {} skipped", p.skipped_updates);
  if (columns > 0 && text.size() > static_cast<size_t>(columns)) text.resize(static_cast<size_t>(columns));
  return text;
}

std::optional<double> TimeLeft::update(double now_s, int64_t step, int64_t steps) {
  const int64_t at = seen_ % window;
  const int64_t oldest = seen_ < window ? 0 : at;
  const double old_s = times_[oldest];
  const int64_t old_step = steps_[oldest];
  times_[at] = now_s;
  steps_[at] = step;
  // The window begins at the end of the first step seen, so that step's own time never counts.
  if (seen_++ == 0 || step <= old_step || now_s <= old_s) return {};
  return (now_s - old_s) / static_cast<double>(step - old_step) *
         static_cast<double>(std::max<int64_t>(0, steps - step));
}

Progress::Style Progress::style_of(int descriptor) {
  const char* term = std::getenv("TERM");
  return isatty(descriptor) && !(term && std::strcmp(term, "dumb") == 0) ? Style::terminal : Style::plain;
}

Progress::Progress(int descriptor, Style style, double every_s)
    : descriptor_(descriptor), style_(style), every_s_(every_s) {}

Progress::~Progress() { finish(); }

void Progress::update(const ProgressSample& sample, double now_s) {
  const double wait = style_ == Style::terminal ? 0.1 : every_s_;
  if (shown_s_ && sample.step < sample.steps && now_s - *shown_s_ < wait) return;
  shown_s_ = now_s;
  if (style_ == Style::plain) {
    write(progress_text(sample, 0) + "\n");
    return;
  }
  // The last column stays empty: some terminals wrap on it.
  std::string line = progress_text(sample, columns() - 1);
  const std::string erase(line_.size() > line.size() ? line_.size() - line.size() : 0, ' ');
  write(fmt::format("\r{}{}", line, erase));
  line_ = std::move(line);
}

void Progress::note(const std::string& text) {
  std::string erase;
  if (!line_.empty()) erase = fmt::format("\r{:{}}\r", "", line_.size());
  write(erase + text + "\n" + line_);
}

void Progress::finish() {
  if (!line_.empty()) write("\n");
  line_.clear();
}

int Progress::columns() const {
  winsize size{};
  return ioctl(descriptor_, TIOCGWINSZ, &size) == 0 && size.ws_col > 20 ? size.ws_col : 100;
}

void Progress::write(const std::string& text) {
  // A console that went away is no reason to end a training run.
  for (size_t done = 0; done < text.size();) {
    const ssize_t n = ::write(descriptor_, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return;
    done += static_cast<size_t>(n);
  }
}

}  // namespace osprey
