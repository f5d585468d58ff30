#include "framework/telemetry/metrics_log.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cmath>
#include <csignal>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <vector>

#include "kernels/core/check.h"

namespace osprey {
namespace {

namespace fs = std::filesystem;

class Metrics : public testing::Test {
 protected:
  void SetUp() override {
    dir = fs::path(testing::TempDir()) /
          (std::string("osprey_metrics_") + testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(dir);
    file = dir / "metrics.jsonl";
  }
  std::vector<nlohmann::json> entries(const fs::path& of) {
    std::ifstream in(of);
    std::vector<nlohmann::json> all;
    for (std::string line; std::getline(in, line);) all.push_back(nlohmann::json::parse(line));
    return all;
  }
  fs::path dir, file;
};

TEST_F(Metrics, AnEntryIsOneLineOfJsonWithItsKeysInOrder) {
  MetricsEntry e("train", 3, 4096);
  e.add("loss", 2.5).add("learning_rate", 1e-4).add("note", "a \"quoted\"\nline\t\\").add("count", 7);
  e.add("absent", std::optional<double>()).add("present", std::optional<double>(0.1));
  EXPECT_EQ(e.line(),
            "{\"event\":\"train\",\"step\":3,\"tokens\":4096,\"loss\":2.5,\"learning_rate\":0.0001,"
            "\"note\":\"a \\\"quoted\\\"\\nline\\t\\\\\",\"count\":7,\"present\":0.1}\n");
}

TEST_F(Metrics, NumbersReadBackToTheSameBitsAndNonFiniteOnesAreWords) {
  for (const double v : {1.0 / 3.0, 1e300, 5e-324, -0.0, 123456789012345680.0, 1e21}) {
    EXPECT_EQ(nlohmann::json::parse(json_number(v)).get<double>(), v);
  }
  EXPECT_EQ(json_number(std::nan("")), "\"NaN\"");
  EXPECT_EQ(json_number(-std::numeric_limits<double>::infinity()), "\"-Infinity\"");
  EXPECT_NO_THROW(nlohmann::json::parse(MetricsEntry("train", 1, 1).add("loss", std::nan("")).line()));
}

TEST_F(Metrics, AnyBytesBecomeValidJsonText) {
  std::string all;
  for (int c = 0; c < 256; ++c) all += static_cast<char>(c);
  for (const std::string& text :
       {all, std::string("\xED\xA0\x80"), std::string("\xF4\x90\x80\x80"), std::string("\xC0\xAF"),
        std::string("\xE2\x82"), std::string("\xC3\xA9\xE2\x82\xAC\xF0\x9F\xA6\x85")}) {
    EXPECT_NO_THROW(nlohmann::json::parse(json_string(text)));
  }
  EXPECT_EQ(nlohmann::json::parse(json_string("\xC3\xA9\xF0\x9F\xA6\x85")).get<std::string>(),
            "\xC3\xA9\xF0\x9F\xA6\x85");
}

TEST_F(Metrics, EveryLineIsInTheFileWhenWriteReturns) {
  MetricsLog log(file, {});
  for (int64_t step = 1; step <= 3; ++step) {
    log.write(MetricsEntry("train", step, step * 10));
    EXPECT_EQ(entries(file).size(), static_cast<size_t>(step));
  }
}

TEST_F(Metrics, ResumeRemovesLaterStepsAndATornLastLine) {
  {
    MetricsLog log(file, {});
    for (int64_t step = 1; step <= 5; ++step) {
      log.write(MetricsEntry("train", step, step));
      if (step % 2 == 0) log.write(MetricsEntry("eval", step, step));
    }
  }
  std::ofstream(file, std::ios::app) << "{\"event\":\"train\",\"step\":2,\"lo";
  {
    MetricsLog log(file, 3);
    log.write(MetricsEntry("train", 4, 4));
  }
  std::vector<int64_t> steps;
  for (const auto& e : entries(file)) steps.push_back(e["step"].get<int64_t>());
  EXPECT_EQ(steps, (std::vector<int64_t>{1, 2, 2, 3, 4}));
  EXPECT_FALSE(fs::exists(file.string() + ".partial"));
}

TEST_F(Metrics, WhatOthersAppendStandsBesideWhatTheRunWrites) {
  MetricsLog log(file, {});
  log.write(MetricsEntry("train", 1, 1));
  append_entry(file, MetricsEntry("eval", 1, 1));
  log.write(MetricsEntry("train", 2, 2));
  std::ofstream(file, std::ios::app) << "{\"event\":\"train\",\"st";
  append_entry(file, MetricsEntry("eval", 3, 3));
  log.write(MetricsEntry("train", 4, 4));
  std::ifstream in(file);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  ASSERT_EQ(lines.size(), 6u);
  EXPECT_EQ(lines[3], "{\"event\":\"train\",\"st") << "a torn line stays, for the run to remove";
  lines.erase(lines.begin() + 3);
  std::vector<int64_t> steps;
  for (const std::string& line : lines) steps.push_back(nlohmann::json::parse(line)["step"].get<int64_t>());
  EXPECT_EQ(steps, (std::vector<int64_t>{1, 1, 2, 3, 4}));
  append_entry(dir / "new.jsonl", MetricsEntry("eval", 7, 7));
  EXPECT_EQ(entries(dir / "new.jsonl").at(0)["step"], 7);
}

TEST_F(Metrics, AFreshRunSetsAnOldFileAside) {
  { MetricsLog(file, {}).write(MetricsEntry("train", 1, 1)); }
  { MetricsLog(file, {}).write(MetricsEntry("train", 2, 2)); }
  EXPECT_EQ(entries(file).at(0)["step"], 2);
  EXPECT_EQ(entries(file).size(), 1u);
  EXPECT_EQ(entries(file.string() + ".old").at(0)["step"], 1);
}

TEST_F(Metrics, AFileThatCannotGrowIsAnError) {
  MetricsLog log(file, {});
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit tiny{16, before.rlim_max};
  setrlimit(RLIMIT_FSIZE, &tiny);
  EXPECT_THROW(log.write(MetricsEntry("train", 1, 1)), Error);
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
}

}  // namespace
}  // namespace osprey
