#include "framework/telemetry/progress.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>

namespace osprey {
namespace {

ProgressSample sample(int64_t step) {
  ProgressSample s;
  s.step = step, s.steps = 4000, s.loss = 3.14159, s.grad_norm = 0.98, s.tokens_per_second = 3512.4;
  return s;
}

/// What was written to a pipe so far.
struct Pipe {
  int ends[2];
  Pipe() { EXPECT_EQ(pipe(ends), 0); }
  ~Pipe() { close(ends[0]), close(ends[1]); }
  std::string read() {
    char buffer[8192];
    const ssize_t n = ::write(ends[1], "$", 1) == 1 ? ::read(ends[0], buffer, sizeof buffer) : 0;
    return std::string(buffer, static_cast<size_t>(n) - 1);
  }
};

TEST(Progress, TheLineSaysWhatIsAskedOfIt) {
  ProgressSample s = sample(1200);
  EXPECT_EQ(progress_text(s, 0), "step 1,200/4,000 | loss 3.1416 | grad norm 0.98 | 3,512 tokens/s");
  s.gemm_percent = 70.4;
  s.seconds_left = 754;
  s.skipped_updates = 2;
  EXPECT_EQ(progress_text(s, 0),
            "step 1,200/4,000 | loss 3.1416 | grad norm 0.98 | 3,512 tokens/s | 70% of GEMM | 12 min 34 s "
            "left | 2 skipped");
  EXPECT_EQ(progress_text(s, 20), "step 1,200/4,000 | l");
}

TEST(Progress, ABrokenLossIsShownAsItIs) {
  ProgressSample s = sample(1);
  s.loss = std::nan("");
  s.tokens_per_second = std::nan("");
  EXPECT_NE(progress_text(s, 0).find("loss nan"), std::string::npos);
}

TEST(Progress, DurationsAreReadable) {
  EXPECT_EQ(duration_text(45.4), "45 s");
  EXPECT_EQ(duration_text(200), "3 min 20 s");
  EXPECT_EQ(duration_text(7500), "2 h 05 min");
  EXPECT_EQ(duration_text(86400 * 3 + 3600 * 4), "3 d 04 h");
  EXPECT_EQ(duration_text(std::nan("")), "?");
}

TEST(Progress, TimeLeftLeavesOutTheFirstStepAndForgetsOldOnes) {
  TimeLeft left;
  EXPECT_FALSE(left.update(100.0, 1, 1000));  // however long the first step took
  EXPECT_NEAR(*left.update(102.0, 2, 1000), 998 * 2.0, 1e-9);
  double now = 102.0, last = 0;
  for (int64_t step = 3; step <= 40; ++step) last = *left.update(now += 2.0, step, 1000);
  EXPECT_NEAR(last, 960 * 2.0, 1e-9);
  for (int64_t step = 41; step <= 80; ++step) last = *left.update(now += 0.5, step, 1000);
  EXPECT_NEAR(last, 920 * 0.5, 1e-9) << "the window moved past the slow steps";
}

TEST(Progress, PlainOutputIsALineEveryFewSecondsAndTheFirstAndTheLast) {
  Pipe pipe;
  Progress progress(pipe.ends[1], Progress::Style::plain, 10);
  for (int64_t step = 1; step <= 25; ++step) progress.update(sample(step), static_cast<double>(step));
  progress.update(sample(4000), 25.5);
  progress.finish();
  std::string text = pipe.read(), steps;
  EXPECT_EQ(text.find('\r'), std::string::npos);
  for (size_t at = 0; at < text.size(); at = text.find('\n', at) + 1)
    steps += text.substr(at + 5, text.find('/', at) - at - 5) + " ";
  EXPECT_EQ(steps, "1 11 21 4,000 ");
}

TEST(Progress, ATerminalLineIsRewrittenErasedAndEnded) {
  Pipe pipe;
  Progress progress(pipe.ends[1], Progress::Style::terminal, 10);
  progress.update(sample(1000), 1.0);
  progress.update(sample(1001), 1.05);  // too soon to be worth a write
  ProgressSample shorter = sample(999);
  progress.update(shorter, 2.0);
  progress.note("evaluated");
  progress.finish();
  const std::string first = progress_text(sample(1000), 0), second = progress_text(shorter, 0);
  ASSERT_EQ(first.size(), second.size() + 2);
  EXPECT_EQ(pipe.read(), "\r" + first + "\r" + second + "  " + "\r" + std::string(second.size(), ' ') + "\r" +
                             "evaluated\n" + second + "\n");
}

}  // namespace
}  // namespace osprey
