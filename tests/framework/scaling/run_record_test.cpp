#include "framework/scaling/run_record.h"

#include <gtest/gtest.h>

#include <fstream>
#include <thread>

#include "framework/files/file.h"
#include "tests/framework/scaling/example_record.h"
#include "tests/support/fuzz.h"
#include "tests/support/refusal.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

using namespace test;

std::string without_newline(std::string line) {
  line.pop_back();
  return line;
}

/// What is said about a line in which `from` is replaced by `to`.
std::string refused(const std::string& from, const std::string& to) {
  std::string line = without_newline(line_of(quantized(example_record(), "q", 0.1)));
  const size_t at = line.find(from);
  if (at == std::string::npos) return "the line has no " + from;
  line.replace(at, from.size(), to);
  return refusal([&] { parse_record("f.jsonl:3", line); });
}

TEST(RunRecord, ALineReadsBackToTheSameRecord) {
  RunRecord bare = example_record();
  bare.validation_loss = bare.validation_standard_error = bare.train_loss = {};
  bare.train_loss_steps = bare.validation_tokens = 0;
  for (const RunRecord& r :
       {example_record(), quantized(example_record(), "q \"\\ \xC3\xA9", 0.1 / 3), bare}) {
    const std::string line = line_of(r);
    EXPECT_EQ(line.find('\n'), line.size() - 1);
    EXPECT_EQ(parse_record("x", without_newline(line)), r);
  }
}

TEST(RunRecord, KnowsItsSchemeAndOptimizer) {
  EXPECT_EQ(example_record().optimizer(), "muon+adamw");
  EXPECT_EQ(example_record().formats.scheme(), "bf16/bf16/bf16");
  EXPECT_TRUE(example_record().formats.full_precision());
  RunRecord q = quantized(example_record(), "q", 0.1);
  EXPECT_FALSE(q.formats.full_precision());
  q.formats.how = "rotation 32";
  EXPECT_EQ(q.formats.scheme(), "mxfp4/mxfp4/bf16 (rotation 32)");
  EXPECT_EQ(parse_record("x", without_newline(line_of(q))), q);
}

TEST(RunRecord, KeysThatAreNotKnownAreIgnored) {
  EXPECT_EQ(refused("{\"run\"", "{\"later\":[1,{\"a\":2}],\"run\""), "accepted");
}

TEST(RunRecord, WrongLinesAreRefusedWithFileLineAndKey) {
  EXPECT_EQ(
      refused("\"tokens\":20000000", "\"tokens\":\"many\""),
      "[f.jsonl:3] tokens must be a whole number of at least 1, got \"many\"; correct the line or remove it; "
      "docs/scaling.md lists the keys");
  EXPECT_NE(refused("\"tokens\":20000000,", "").find("[f.jsonl:3] has no tokens"), std::string::npos);
  const std::pair<const char*, const char*> wrong[] = {
      {"20000000", "0"},
      {"20000000", "-5"},
      {"20000000", "2.5"},
      {"20000000", "1e300"},
      {"20000000", "18446744073709551615"},
      {"20000000", "null"},
      {"\"parameters_without_embedding\":1000000", "\"parameters_without_embedding\":9000000"},
      {"\"flops\":125000000000000", "\"flops\":-1"},
      {"\"flops\":125000000000000", "\"flops\":1e999"},
      {"\"validation_standard_error\":0.004", "\"validation_standard_error\":-1"},
      {"\"optimizers\":[\"muon\",\"adamw\"]", "\"optimizers\":[]"},
      {"\"optimizers\":[\"muon\",\"adamw\"]", "\"optimizers\":[3]"},
      {"\"optimizers\":[\"muon\",\"adamw\"]", "\"optimizers\":\"muon\""},
      {"\"run\":\"q\"", "\"run\":\"\""},
      {"\"run\":\"q\"", "\"run\":\"a\\nb\""},
      {"\"run\":\"q\"", "\"run\":\"q\",\"run\":\"r\""},
      {"\"run\":\"q\"", "\"run\":[[[[[[1]]]]]]"},
      {"\"block\":32", "\"block\":0"},
      {"\"block\":32", "\"quantization\":\"\""},
      {"\"mxfp4\",\"activations\":\"mxfp4\",\"gradients\":\"bf16\",\"block\":32",
       "\"bf16\",\"activations\":\"bf16\",\"gradients\":\"bf16\",\"quantization\":\"rotation 32\""},
      {"\"weights\":\"mxfp4\",\"activations\":\"mxfp4\"", "\"weights\":\"bf16\",\"activations\":\"f32\""},
      {"\"seed\":42", "\"seed\":-1"},
      {"}", ""},
      {"{", "[{"},
  };
  for (const auto& [from, to] : wrong) {
    const std::string said = refused(from, to);
    EXPECT_EQ(said.rfind("[f.jsonl:3] ", 0), 0u) << from << " as " << to << ": " << said;
  }
}

TEST(RunRecord, AFileIsReadInItsOrderAndTheLaterOfTwoStands) {
  const TempDir dir;
  RunRecord a = example_record("a"), b = example_record("b"), again = a, other = a;
  again.train_loss = 2.5;
  other.recipe_hash = "other";
  for (const RunRecord& r : {a, b, again, other}) append_record(dir / "s.jsonl", r);
  EXPECT_EQ(read_records(dir / "s.jsonl"), (std::vector<RunRecord>{again, b, other}));
}

TEST(RunRecord, ErrorsOfAFileNameTheLine) {
  const TempDir dir;
  append_record(dir / "s.jsonl", example_record());
  std::ofstream(dir / "s.jsonl", std::ios::app) << "\n{\"run\": \n";
  const std::string said = refusal([&] { read_records(dir / "s.jsonl"); });
  EXPECT_NE(said.find("s.jsonl:3] is not valid JSON"), std::string::npos) << said;
  EXPECT_NE(refusal([&] { read_records(dir / "none.jsonl"); }).find("none.jsonl"), std::string::npos);
  EXPECT_NE(refusal([&] { read_records(dir.path()); }).find("is not a regular file"), std::string::npos);
}

TEST(RunRecord, ALineThatWasLeftUnfinishedIsEndedFirst) {
  const TempDir dir;
  append_record(dir / "s.jsonl", example_record("a"));
  std::filesystem::resize_file(dir / "s.jsonl", std::filesystem::file_size(dir / "s.jsonl") - 1);
  append_record(dir / "s.jsonl", example_record("b"));
  EXPECT_EQ(read_records(dir / "s.jsonl").size(), 2u);
}

TEST(RunRecord, RunsThatEndAtTheSameTimeDoNotMixTheirLines) {
  const TempDir dir;
  append_record(dir / "s.jsonl", example_record("first"));
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) append_record(dir / "s.jsonl", example_record(fmt::format("{}-{}", t, i)));
    });
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(read_records(dir / "s.jsonl").size(), 201u);
}

TEST(RunRecord, AnUnwritableFileIsNamed) {
  EXPECT_NE(
      refusal([] { append_record("/proc/nowhere/s.jsonl", example_record()); }).find("/proc/nowhere/s.jsonl"),
      std::string::npos);
}

TEST(RunRecordFuzz, HostileFilesAreReadOrRefused) {
  const TempDir dir;
  const std::string two = line_of(example_record("a")) + line_of(quantized(example_record(), "q", 0.1));
  const FuzzCount count = fuzz({two, line_of(example_record())},
                               {"{", "}", "[", "null", "1e999", "-1", "\"run\":", "\n", ",", "\\u0000", "0"},
                               [&](const std::string& text) {
                                 std::ofstream(dir / "s.jsonl", std::ios::binary) << text;
                                 for (const RunRecord& r : read_records(dir / "s.jsonl")) {
                                   // Whatever is accepted can be written and read again.
                                   EXPECT_EQ(parse_record("x", without_newline(line_of(r))), r);
                                 }
                               });
  EXPECT_GT(count.accepted, 0);
  EXPECT_GT(count.refused, 0);
}

}  // namespace
}  // namespace osprey
