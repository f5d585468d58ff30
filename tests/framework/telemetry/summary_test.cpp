#include "framework/telemetry/summary.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/core/check.h"

namespace osprey {
namespace {

namespace fs = std::filesystem;

TEST(Summary, HoldsWhatItWasGivenAsJson) {
  RunSummary s;
  s.name = "a \"run\"";
  s.status = "finished";
  s.step = 400;
  s.steps = 400;
  s.tokens = 1638400;
  s.validation_loss = 3.25;
  s.wall_s = 12.5;
  s.memory_peak_bytes = {{"activations", 1 << 20}, {"parameters", 1 << 10}};
  s.hosts = {{"one", "cpu", "avx512_bf16", 2, 8}, {"two", "cpu", "avx2", 4, 16, "a GPU"}};
  const fs::path file = fs::path(testing::TempDir()) / "osprey_summary.json";
  write_summary(file, s);
  const auto j = nlohmann::json::parse(std::ifstream(file));
  EXPECT_EQ(j["name"], "a \"run\"");
  EXPECT_EQ(j["tokens"], 1638400);
  EXPECT_EQ(j["validation_loss"], 3.25);
  EXPECT_FALSE(j.contains("train_loss"));
  EXPECT_EQ(j["memory_peak_bytes"]["activations"], 1 << 20);
  EXPECT_EQ(j["hosts"].size(), 2u);
  EXPECT_EQ(j["hosts"][1]["isa"], "avx2");
  EXPECT_EQ(j["hosts"][1]["gpu"], "a GPU");
  EXPECT_FALSE(j["hosts"][0].contains("gpu"));
  EXPECT_FALSE(fs::exists(file.string() + ".partial"));
}

TEST(Summary, NamesTheFileItCannotWrite) {
  try {
    write_summary("/nowhere/at/all/summary.json", {});
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("/nowhere/at/all"), std::string::npos);
  }
}

TEST(Summary, ThisHostHasAProcessorAndMemory) {
  const HostInfo host = this_host();
  EXPECT_FALSE(host.name.empty());
  EXPECT_GT(host.cores, 0);
  EXPECT_GT(host.memory_bytes, 1 << 20);
}

}  // namespace
}  // namespace osprey
