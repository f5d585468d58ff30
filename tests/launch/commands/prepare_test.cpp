#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "kernels/core/check.h"
#include "launch/commands/command.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

/// What `osprey ARGUMENTS` prints on stdout; Error passes through.
std::string run(const std::string& arguments) {
  CLI::App app;
  app.require_subcommand(1);
  add_prepare(app);
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  std::string out;
  try {
    app.parse(arguments, false);
    out = testing::internal::GetCapturedStdout();
  } catch (...) {
    testing::internal::GetCapturedStdout();
    testing::internal::GetCapturedStderr();
    throw;
  }
  testing::internal::GetCapturedStderr();
  return out;
}

std::string error_of(const std::string& arguments) {
  try {
    run(arguments);
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

class PrepareCommandTest : public testing::Test {
 protected:
  PrepareCommandTest() {
    std::ofstream out(text_);
    const char* words[] = {"river", "osprey", "fishes", "nesting", "feather", "hunting", "winter", "estuary"};
    for (int i = 0; i < 200; ++i)
      out << "The " << words[i % 8] << " near the " << words[i / 8 % 8] << " " << i << "|";
  }
  test::TempDir dir_;
  std::string text_ = (dir_ / "notes.txt").string(), output_ = (dir_ / "out").string();
};

TEST_F(PrepareCommandTest, WritesShardsAndPrintsWhatItWrote) {
  const std::string out = run("prepare " + text_ + " --document-separator | --tokenizer bytes -o " + output_ +
                              " --validation-fraction 0.2");
  for (const char* file : {"train-00000.bin", "train-00000.idx", "train-00000.json", "validation-00000.bin",
                           "tokenizer/osprey_tokenizer.json", "prepare.json"})
    EXPECT_TRUE(std::filesystem::exists(output_ + "/" + file)) << file;
  EXPECT_TRUE(contains(out, "validation") && contains(out, "written to") && contains(out, output_)) << out;
  EXPECT_TRUE(
      contains(error_of("prepare " + text_ + " --document-separator | --tokenizer bytes -o " + output_),
               "--if-missing"));
  EXPECT_TRUE(contains(run("prepare " + text_ + " --document-separator | --tokenizer bytes -o " + output_ +
                           " --validation-fraction 0.2 --if-missing"),
                       "kept"));
}

TEST_F(PrepareCommandTest, TrainsATokenizerOfTheKindAsked) {
  for (const char* kind : {"bpe", "unigram"}) {
    const std::string out = (dir_ / kind).string();
    EXPECT_TRUE(
        contains(run("prepare " + text_ + " --document-separator | --vocab-size 295 --train-tokenizer " +
                     kind + " --validation-fraction 0 -o " + out),
                 "sentencepiece-295-"));
    EXPECT_TRUE(std::filesystem::exists(out + "/tokenizer/tokenizer.model"));
  }
}

TEST_F(PrepareCommandTest, WrongOptionsAreNamedAndNothingIsWritten) {
  EXPECT_TRUE(contains(error_of("prepare " + text_ + " --tokenizer bytes --format xml -o " + output_),
                       "--format must be one of auto, text, jsonl; got xml"));
  EXPECT_TRUE(
      contains(error_of("prepare " + text_ + " --train-tokenizer words -o " + output_), "bpe, unigram"));
  EXPECT_TRUE(
      contains(error_of("prepare " + text_ + " --tokenizer bytes --document-separator \\q -o " + output_),
               "--document-separator"));
  EXPECT_TRUE(
      contains(error_of("prepare " + text_ + " -o " + output_), "one of --tokenizer and --train-tokenizer"));
  EXPECT_TRUE(contains(error_of("prepare " + text_ + " --tokenizer bytes"), "--output"));
  EXPECT_TRUE(
      contains(error_of("prepare " + text_ + " --adopt x --tokenizer bytes"), "--adopt takes shards"));
  EXPECT_THROW(run("prepare " + text_ + " --vocab-size 300 -o " + output_), CLI::ParseError);
  EXPECT_FALSE(std::filesystem::exists(output_));
}

}  // namespace
}  // namespace osprey
