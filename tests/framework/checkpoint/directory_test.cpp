#include "framework/checkpoint/directory.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <functional>
#include <thread>

#include "kernels/core/check.h"
#include "tests/support/fuzz.h"
#include "tests/support/refusal.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

namespace fs = std::filesystem;
using test::refusal;
using test::TempDir;

void publish(const fs::path& where, const std::string& text = "hello") {
  PartialDirectory d(where);
  fs::create_directory(d.path() / "optimizer");
  d.add(write_file(d.path() / "a", text));
  FileRecord r = write_file(d.path() / "optimizer" / "rank-0", text + text);
  r.name = "optimizer/" + r.name;
  d.add(r);
  d.publish();
}

size_t entries(const fs::path& p) {
  return static_cast<size_t>(std::distance(fs::directory_iterator(p), fs::directory_iterator()));
}

/// Runs `child` in a process of its own; returns what waitpid says.
int in_child(const std::function<void()>& child) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    child();
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(pid, &status, 0);
  return status;
}

TEST(PartialDirectory, IsUnseenUntilPublishedAndThenVerifies) {
  TempDir dir;
  {
    PartialDirectory d(dir / checkpoint_name(5));
    write_file(d.path() / "a", "x");
    EXPECT_TRUE(list_checkpoints(dir.path()).empty());
    EXPECT_FALSE(fs::exists(dir / checkpoint_name(5)));
  }
  EXPECT_EQ(entries(dir.path()), 0u) << "an unpublished directory stays behind";
  publish(dir / checkpoint_name(5));
  const auto records = read_manifest(dir / checkpoint_name(5));
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(records[1].name, "optimizer/rank-0");
  verify_files(dir / checkpoint_name(5), records);
  EXPECT_EQ(list_checkpoints(dir.path()).size(), 1u);
}

TEST(PartialDirectory, PublishingTheSameStepAgainReplacesItAndLeavesNothingElse) {
  TempDir dir;
  publish(dir / "step-00000001", "old");
  publish(dir / "step-00000001", "new");
  EXPECT_EQ(read_file(dir / "step-00000001" / "a", 10), "new");
  EXPECT_EQ(entries(dir.path()), 1u);
}

TEST(Verify, NamesTheFileThatIsMissingCutOrFlipped) {
  TempDir dir;
  const fs::path d = dir / "c";
  const auto after = [&](const std::function<void()>& damage) {
    fs::remove_all(d);
    publish(d);
    damage();
    return refusal([&] { verify_files(d, read_manifest(d)); });
  };
  EXPECT_EQ(after([] {}), "accepted");
  const auto names = [](const std::string& message, const std::string& file, const std::string& part) {
    EXPECT_NE(message.find(file), std::string::npos) << message;
    EXPECT_NE(message.find(part), std::string::npos) << message;
  };
  names(after([&] { fs::remove(d / "a"); }), (d / "a").string(), "missing");
  names(after([&] { fs::resize_file(d / "optimizer/rank-0", 9); }), (d / "optimizer/rank-0").string(),
        "holds 9 bytes");
  names(after([&] { std::ofstream(d / "a") << "hellp"; }), (d / "a").string(), "damaged");
  names(after([&] { fs::remove(d / "manifest.json"); }), d.string(), "no complete checkpoint");
  names(after([&] { std::ofstream(d / "manifest.json") << "{}"; }), "manifest.json", "'format'");
  names(after([&] {
          std::ofstream(d / "manifest.json")
              << R"({"format":1,"files":[{"name":"../a","size_bytes":1,"crc32":"00000000"}]})";
        }),
        "manifest.json", "leaves the directory");
  names(after([&] {
          std::ofstream(d / "manifest.json")
              << R"({"format":1,"files":[{"name":"a","size_bytes":-1,"crc32":"00000000"}]})";
        }),
        "manifest.json", "damaged");
  names(after([&] { std::ofstream(d / "manifest.json") << R"({"format":2,"files":[]})"; }), "manifest.json",
        "format 2");
}

TEST(Verify, RanksThatShareTheReadingSeeEveryFlipBetweenThem) {
  TempDir dir;
  publish(dir / "c");
  std::ofstream(dir / "c" / "optimizer/rank-0") << "hellohellp";
  const auto records = read_manifest(dir / "c");
  EXPECT_NO_THROW(verify_files(dir / "c", records, 0, 2));
  EXPECT_THROW(verify_files(dir / "c", records, 1, 2), Error);
}

TEST(Manifest, MutationsAreReadOrRefusedButNeverCrash) {
  TempDir dir;
  publish(dir / "c");
  const std::string seed = read_file(dir / "c" / "manifest.json", 10000);
  const auto count =
      test::fuzz({seed}, {"\"", "{", "[", "-1", "1e9", "null", "/", "..", "\\u0000", "\"files\""},
                 [&](const std::string& input) {
                   std::ofstream(dir / "c" / "manifest.json", std::ios::binary) << input;
                   verify_files(dir / "c", read_manifest(dir / "c"));
                 });
  EXPECT_GT(count.refused, 100);
}

TEST(Retention, KeepsTheNewestAndIsRightWithFewerThanKeep) {
  TempDir dir;
  EXPECT_NO_THROW(keep_newest(dir / "nowhere", 3));
  for (int64_t step : {100, 20, 3}) publish(dir / checkpoint_name(step));
  fs::create_directory(dir / "step-00000999");  // no manifest: not complete
  fs::create_directory(dir / "step-abc");
  fs::create_directory(dir / "notes");
  publish(dir / "step-7");  // not a name of ours
  keep_newest(dir.path(), 5);
  EXPECT_EQ(list_checkpoints(dir.path()).size(), 3u);
  keep_newest(dir.path(), 2);
  auto left = list_checkpoints(dir.path());
  ASSERT_EQ(left.size(), 2u);
  EXPECT_EQ(left[0].step, 20);
  EXPECT_EQ(left[1].step, 100);
  keep_newest(dir.path(), 1);
  left = list_checkpoints(dir.path());
  ASSERT_EQ(left.size(), 1u);
  EXPECT_EQ(left[0].step, 100);
  EXPECT_THROW(keep_newest(dir.path(), 0), Error);
  EXPECT_TRUE(fs::exists(dir / "step-00000999"));
  EXPECT_TRUE(fs::exists(dir / "step-7"));
  EXPECT_TRUE(fs::exists(dir / "notes"));
}

TEST(Leftovers, OnlyThoseOfDeadProcessesOfThisHostAreDeleted) {
  TempDir dir;
  const int status = in_child([&] {
    PartialDirectory d(dir / "step-00000001");
    write_file(d.path() / "half", "x");
    ::_exit(7);  // no destructor runs
  });
  ASSERT_EQ(WEXITSTATUS(status), 7);
  ASSERT_EQ(entries(dir.path()), 1u);
  PartialDirectory mine(dir / "step-00000002");
  fs::create_directory(dir / "step-00000003.partial-1.some-other-host");
  fs::create_directory(dir / "user.partial-notes");
  const auto left = remove_leftovers(dir.path());
  EXPECT_EQ(left.size(), 2u);
  EXPECT_EQ(entries(dir.path()), 3u);
  EXPECT_TRUE(fs::exists(mine.path()));
}

TEST(Leftovers, OfAnEarlierProcessWithTheNumberOfThisOneAreDeletedAndInNobodysWay) {
  // In a container every run may be process 1 of the same host.
  TempDir dir;
  const fs::path one = dir / checkpoint_name(1), two = dir / checkpoint_name(2);
  std::string first;
  {
    PartialDirectory d(one);
    first = d.path().filename().string();
  }
  const std::string mark = first.substr(one.filename().string().size());
  const fs::path left = two.string() + mark, numbered = two.string() + mark + ".1";
  for (const fs::path& p : {left, numbered}) {
    fs::create_directory(p);
    std::ofstream(p / "half") << "x";
  }
  EXPECT_NO_THROW(publish(two)) << "what is left over stands in the way of the same step";
  EXPECT_TRUE(fs::exists(left)) << "nobody asked to delete it";
  PartialDirectory mine(two);
  EXPECT_EQ(remove_leftovers(dir.path()), std::vector<fs::path>{mine.path()});
  EXPECT_FALSE(fs::exists(left));
  EXPECT_FALSE(fs::exists(numbered));
  EXPECT_TRUE(fs::exists(two));
}

TEST(PartialDirectory, KilledAtAnyMomentTheNewestCheckpointIsAlwaysWhole) {
  TempDir dir;
  publish(dir / checkpoint_name(0), std::string(1000, 'a'));
  int64_t newest = 0;
  for (uint64_t round = 0; round < 40; ++round) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      for (int64_t step = newest + 1;; ++step) {
        publish(dir / checkpoint_name(step), std::string(200'000, static_cast<char>('a' + step % 26)));
        keep_newest(dir.path(), 2);
      }
    }
    std::this_thread::sleep_for(std::chrono::microseconds(test::FuzzDraws(round).below(20'000)));
    ::kill(pid, SIGKILL);
    int status = 0;
    ::waitpid(pid, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status));
    const auto all = list_checkpoints(dir.path());
    ASSERT_FALSE(all.empty());
    for (const auto& c : all) verify_files(c.path, read_manifest(c.path));
    ASSERT_GE(all.back().step, newest);
    newest = all.back().step;
    remove_leftovers(dir.path());
    ASSERT_EQ(entries(dir.path()), all.size());
  }
  EXPECT_GT(newest, 0) << "no save ever finished; the test tests nothing";
}

TEST(PartialDirectory, ADiskThatFillsUpLeavesTheOldCheckpointAndSaysSo) {
  TempDir dir;
  publish(dir / checkpoint_name(1));
  const int status = in_child([&] {
    // The limit stands for a disk with 100 kB left.
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{100'000, 100'000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const std::string message = refusal([&] { publish(dir / checkpoint_name(2), std::string(80'000, 'x')); });
    if (message.find("rank-0") == std::string::npos) ::_exit(1);
    if (message.find("untouched") == std::string::npos) ::_exit(2);
    if (entries(dir.path()) != 1) ::_exit(3);
    publish(dir / checkpoint_name(2), "small");
  });
  EXPECT_EQ(WEXITSTATUS(status), 0);
  const auto all = list_checkpoints(dir.path());
  ASSERT_EQ(all.size(), 2u);
  for (const auto& c : all) verify_files(c.path, read_manifest(c.path));
}

TEST(RunLock, ASecondRunIsRefusedNamingTheFirstAndAFreedOneIsGranted) {
  TempDir dir;
  {
    const RunLock lock(dir / "run");
    const std::string message = refusal([&] { RunLock second(dir / "run"); });
    EXPECT_NE(message.find("process " + std::to_string(::getpid()) + " on "), std::string::npos) << message;
    EXPECT_NE(message.find((dir / "run").string()), std::string::npos) << message;
  }
  EXPECT_NO_THROW(RunLock(dir / "run"));
}

TEST(RunLock, TakesBackAnEmptyDirectoryThatItMadeAndNoOther) {
  TempDir dir;
  { const RunLock lock(dir / "run"); }
  EXPECT_FALSE(std::filesystem::exists(dir / "run"));
  {
    const RunLock lock(dir / "run");
    std::ofstream(dir / "run" / "recipe.yaml") << "run: {}";
  }
  EXPECT_TRUE(std::filesystem::exists(dir / "run" / "recipe.yaml"));
  std::filesystem::remove(dir / "run" / "recipe.yaml");
  { const RunLock lock(dir / "run"); }
  EXPECT_TRUE(std::filesystem::exists(dir / "run")) << "it was there before";
}

TEST(RunLock, DiesWithItsProcess) {
  TempDir dir;
  in_child([&] {
    static RunLock* lock = new RunLock(dir / "run");
    (void)lock;
    ::kill(::getpid(), SIGKILL);
  });
  EXPECT_NO_THROW(RunLock(dir / "run"));
}

}  // namespace
}  // namespace osprey
