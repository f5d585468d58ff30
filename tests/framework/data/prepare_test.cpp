#include "framework/data/prepare.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <set>

#include "framework/data/idx.h"
#include "framework/data/loader.h"
#include "framework/data/shards.h"
#include "kernels/core/random.h"
#include "tests/framework/data/data_support.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

namespace fs = std::filesystem;

class PrepareTest : public testing::Test {
 protected:
  PrepareTest() {
    std::string text;
    for (uint64_t d = 0; d < 600; ++d) {
      text += fmt::format("Word{} is document {}", d % 37, d);
      for (uint64_t i = 0; i < random_u64(1, 1, d) % 40; ++i)
        text += fmt::format("{}term{}", i % 7 == 6 ? "\n   " : " ", random_u64(1, 2, d * 64 + i) % 50);
      text += "\n\n";
    }
    spill((dir_ / "text.txt").string(), text);
  }
  PrepareOptions options(const std::string& output = "out") {
    PrepareOptions o;
    o.inputs = {(dir_ / "text.txt").string()};
    o.output = (dir_ / output).string();
    o.text.documents = TextOptions::Documents::entry;
    o.tokenizer = "bytes";
    o.validation_fraction = 0.1;
    return o;
  }
  static PrepareSummary run(const PrepareOptions& o) {
    return prepare(o, [](const PrepareProgress&) {});
  }
  std::vector<std::string> texts(const std::string& output, const std::string& split) {
    const auto tokenizer = load_tokenizer((dir_ / output / "tokenizer").string());
    std::vector<std::string> all;
    for (const std::string& prefix : find_shards((dir_ / output / (split + "-*")).string())) {
      const IdxReader shard(prefix);
      for (int64_t d = 0; d < shard.documents(); ++d) {
        std::vector<int32_t> tokens(static_cast<size_t>(shard.length(d)));
        shard.read(shard.begin(d), tokens);
        EXPECT_EQ(tokens.back(), tokenizer->eos_id());
        all.push_back(tokenizer->decode(tokens));
      }
    }
    return all;
  }
  bool nothing_left(const std::string& output = "out") {
    return !fs::exists(dir_ / output) && !fs::exists(dir_ / (output + ".partial"));
  }
  test::TempDir dir_;
};

TEST_F(PrepareTest, TextComesBackFromTheShardsOnceAndInOrder) {
  const PrepareSummary summary = run(options());
  auto train = texts("out", "train");
  const auto validation = texts("out", "validation");
  ASSERT_EQ(summary.splits.size(), 2u);
  EXPECT_EQ(train.size() + validation.size(), 600u);
  EXPECT_EQ(summary.splits[0].documents, static_cast<int64_t>(train.size()));
  EXPECT_NEAR(static_cast<double>(validation.size()), 60, 30);  // four standard deviations
  TextReader reader(options().inputs[0], options().text);
  std::vector<std::string> expected_train, expected_validation;
  const std::set<std::string> held(validation.begin(), validation.end());
  for (std::string text; reader.next(text);)
    (held.contains(text) ? expected_validation : expected_train).push_back(text);
  EXPECT_EQ(train, expected_train);
  EXPECT_EQ(validation, expected_validation);
}

TEST_F(PrepareTest, OutputTrainsALoader) {
  PrepareOptions o = options();
  o.tokenizer.clear();
  o.training = SentencepieceTraining{.vocab_size = 315};
  run(o);
  DataSpec data;
  data.tokenizer = o.output + "/tokenizer";
  data.train = {{.path = o.output + "/train-*", .weight = {}}};
  data.validation = {{.path = o.output + "/validation-*", .weight = {}}};
  data.sequence_len = 16;
  const auto tokenizer = load_tokenizer(data.tokenizer);
  EXPECT_EQ(tokenizer->vocab_size(), 315);
  Loader loader(data, *tokenizer, {.seed = 1, .global_rows = 2, .vocab_size = 315});
  BatchBuffer buffer(data, 2);
  EXPECT_EQ(loader.batch(0, 0, 0, 1, buffer.batch), 32);
  EXPECT_GT(ValidationLoader(data, *tokenizer, 315).rows(), 0);
}

TEST_F(PrepareTest, BytesDoNotDependOnThreadsAndShardsSplitWhereAsked) {
  PrepareOptions one = options("one"), three = options("three");
  one.tokenizer = three.tokenizer = "";
  one.training = three.training = SentencepieceTraining{.vocab_size = 315};
  one.shard_tokens = three.shard_tokens = 3000;
  three.threads = 3;
  EXPECT_GT(run(one).splits[0].shards, 2);
  run(three);
  size_t files = 0;
  for (const auto& entry : fs::recursive_directory_iterator(dir_ / "one")) {
    if (!entry.is_regular_file()) continue;
    const auto name = fs::relative(entry.path(), dir_ / "one").string();
    EXPECT_EQ(slurp(entry.path().string()), slurp((dir_ / "three" / name).string())) << name;
    ++files;
  }
  EXPECT_GT(files, 12u);
}

TEST_F(PrepareTest, ExistingOutputIsRefusedOrKeptIfItIsTheSame) {
  const PrepareSummary first = run(options());
  EXPECT_TRUE(contains(error_of([&] { run(options()); }), "exists; remove it"));
  PrepareOptions keep = options();
  keep.existing = PrepareOptions::Existing::keep;
  keep.threads = 2;  // not a setting of the output
  const auto written = fs::last_write_time(dir_ / "out" / "train-00000.bin");
  const PrepareSummary second = run(keep);
  EXPECT_TRUE(second.already_there);
  EXPECT_EQ(second.splits[0].tokens, first.splits[0].tokens);
  EXPECT_EQ(fs::last_write_time(dir_ / "out" / "train-00000.bin"), written);
  keep.seed = 43;
  EXPECT_TRUE(contains(error_of([&] { run(keep); }), "another `seed`"));
  keep.seed = 42;
  spill((dir_ / "text.txt").string(), "changed\n");
  EXPECT_TRUE(contains(error_of([&] { run(keep); }), "another `inputs`"));
}

TEST_F(PrepareTest, IncompleteOutputIsNotKept) {
  run(options());
  PrepareOptions keep = options();
  keep.existing = PrepareOptions::Existing::keep;
  fs::resize_file(dir_ / "out" / "train-00000.bin", 100);
  EXPECT_TRUE(contains(error_of([&] { run(keep); }), "train-00000.bin is missing or of another size"));
  spill((dir_ / "out" / "prepare.json").string(), "{\"settings\": {}}");
  EXPECT_TRUE(contains(error_of([&] { run(keep); }), "prepare"));
  fs::remove(dir_ / "out" / "prepare.json");
  EXPECT_TRUE(contains(error_of([&] { run(keep); }), "no prepare.json"));
}

TEST_F(PrepareTest, WhatARunThatWasKilledLeftIsClearedAway) {
  fs::create_directories(dir_ / "out.partial" / "tokenizer");
  spill((dir_ / "out.partial" / "train-00000.bin.partial").string(), "half");
  run(options());
  EXPECT_FALSE(fs::exists(dir_ / "out.partial"));
  EXPECT_FALSE(fs::exists(dir_ / "out" / "lock"));
  EXPECT_FALSE(fs::exists(dir_ / "out" / "train-00000.bin.partial"));
}

TEST_F(PrepareTest, TwoRunsIntoOneDirectoryAreTold) {
  fs::create_directories(dir_ / "out.partial");
  const int other = ::open((dir_ / "out.partial" / "lock").c_str(), O_RDWR | O_CREAT, 0644);
  ASSERT_EQ(::flock(other, LOCK_EX | LOCK_NB), 0);
  EXPECT_TRUE(contains(error_of([&] { run(options()); }), "another osprey prepare"));
  ::close(other);
  EXPECT_TRUE(fs::exists(dir_ / "out.partial"));  // it is not ours to remove
}

TEST_F(PrepareTest, BadInputLeavesNothing) {
  const auto what = [&](auto change) {
    PrepareOptions o = options();
    change(o);
    return error_of([&] { run(o); });
  };
  EXPECT_TRUE(contains(what([&](auto& o) { o.inputs = {(dir_ / "no-*").string()}; }), "no file matches"));
  EXPECT_TRUE(contains(what([](auto& o) { o.inputs = {}; }), "no input"));
  EXPECT_TRUE(contains(what([](auto& o) { o.output = ""; }), "--output"));
  EXPECT_TRUE(contains(what([](auto& o) { o.tokenizer = ""; }), "one of --tokenizer and --train-tokenizer"));
  EXPECT_TRUE(contains(what([](auto& o) { o.tokenizer = "/nowhere"; }), "/nowhere does not exist"));
  EXPECT_TRUE(contains(what([](auto& o) { o.validation_fraction = 1; }), "--validation-fraction"));
  EXPECT_TRUE(contains(what([](auto& o) { o.text.documents = TextOptions::Documents::file; }), "validation"));
  EXPECT_TRUE(contains(what([](auto& o) {
                         o.tokenizer = "";
                         o.training = SentencepieceTraining{.vocab_size = 100000};
                       }),
                       "too large for this text"));
  spill((dir_ / "text.txt").string(), "\n \n");
  EXPECT_TRUE(contains(what([](auto&) {}), "holds no text"));
  EXPECT_TRUE(contains(what([](auto& o) {
                         o.tokenizer = "";
                         o.training = SentencepieceTraining{};
                       }),
                       "holds no text"));
  spill((dir_ / "text.txt").string(), "bad \xff byte");
  EXPECT_TRUE(contains(what([](auto&) {}), "text.txt:1 is not UTF-8"));
  EXPECT_TRUE(nothing_left());
}

TEST_F(PrepareTest, FullDiskLeavesNothing) {
  const PrepareOptions o = options();
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{8192, 8192};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const std::string what = error_of([&] { run(o); });
    ::_exit(contains(what, "train-00000.bin") && contains(what, "free some space") ? 0 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  EXPECT_TRUE(nothing_left());
}

TEST_F(PrepareTest, ShardsFromElsewhereAreAdoptedWhenTheyFit) {
  run(options());
  const auto bytes = make_bytes_tokenizer();
  const std::string prefix = (dir_ / "out" / "train-00000").string();
  EXPECT_TRUE(contains(error_of([&] { adopt_shards({prefix}, *bytes); }), "train-00000.json exists"));
  const std::string label = slurp(prefix + ".json");
  fs::remove(prefix + ".json");
  EXPECT_EQ(adopt_shards({prefix}, *bytes), (std::vector<std::string>{prefix}));
  EXPECT_EQ(slurp(prefix + ".json"), label);

  IdxWriter open_ended((dir_ / "open").string(), 257);
  open_ended.add(std::vector<int32_t>{1, 2});
  open_ended.finish();
  EXPECT_TRUE(contains(error_of([&] { adopt_shards({(dir_ / "open").string()}, *bytes); }),
                       "expected the end of text"));
  IdxWriter larger((dir_ / "large").string(), 1000);
  larger.add(std::vector<int32_t>{999, 256});
  larger.finish();
  EXPECT_TRUE(contains(error_of([&] { adopt_shards({(dir_ / "large").string()}, *bytes); }), "token 999"));
}

}  // namespace
}  // namespace osprey
