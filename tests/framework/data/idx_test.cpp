#include "framework/data/idx.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <chrono>
#include <cstring>

#include "kernels/core/check.h"
#include "kernels/core/random.h"
#include "tests/framework/data/data_support.h"
#include "tests/support/fuzz.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

void write_two(const std::string& prefix, int64_t vocab_size = 100) {
  IdxWriter writer(prefix, vocab_size);
  writer.add(std::vector<int32_t>{1, 2, 3});
  writer.add(std::vector<int32_t>{4, 5});
  writer.finish();
}

std::string hex(const std::string& bytes) {
  std::string out;
  for (const unsigned char c : bytes) out += fmt::format("{:02x}", c);
  return out;
}

TEST(Idx, BytesAreThoseOfMegatron) {
  test::TempDir dir;
  write_two((dir / "two").string());
  EXPECT_EQ(hex(slurp((dir / "two.idx").string())),
            "4d4d49444944580000"
            "0100000000000000"
            "08"
            "0200000000000000"
            "0300000000000000"
            "03000000"
            "02000000"
            "0000000000000000"
            "0600000000000000"
            "0000000000000000"
            "0100000000000000"
            "0200000000000000");
  EXPECT_EQ(hex(slurp((dir / "two.bin").string())), "01000200030004000500");
}

TEST(Idx, WidthFollowsTheVocabulary) {
  test::TempDir dir;
  write_two((dir / "narrow").string(), 65499);
  write_two((dir / "wide").string(), 65500);
  EXPECT_EQ(IdxReader((dir / "narrow").string()).token_bytes(), 2);
  const IdxReader wide((dir / "wide").string());
  EXPECT_EQ(wide.token_bytes(), 4);
  std::vector<int32_t> tokens(5);
  EXPECT_EQ(wide.read(0, tokens), 5u);
  EXPECT_EQ(tokens, (std::vector<int32_t>{1, 2, 3, 4, 5}));
}

TEST(Idx, WhatWasWrittenIsRead) {
  test::TempDir dir;
  std::vector<std::vector<int32_t>> documents;
  for (uint64_t d = 0; d < 200; ++d) {
    std::vector<int32_t> document(random_u64(1, 2, d) % 50);  // some are empty
    for (size_t i = 0; i < document.size(); ++i)
      document[i] = static_cast<int32_t>(random_u64(1, 3, d * 64 + i) % 30000);
    documents.push_back(document);
  }
  IdxWriter writer((dir / "many").string(), 30000);
  for (const auto& document : documents) writer.add(document);
  writer.finish();
  const IdxReader reader((dir / "many").string());
  ASSERT_EQ(reader.documents(), 200);
  EXPECT_EQ(reader.tokens(), writer.tokens());
  for (int64_t d = 0; d < 200; ++d) {
    std::vector<int32_t> tokens(static_cast<size_t>(reader.length(d)));
    reader.read(reader.begin(d), tokens);
    EXPECT_EQ(tokens, documents[static_cast<size_t>(d)]) << d;
  }
}

TEST(Idx, DocumentsOfSeveralSequencesAreOne) {
  test::TempDir dir;
  write_two((dir / "two").string());
  std::string bytes = slurp((dir / "two.idx").string());
  const int64_t boundaries[] = {0, 2};  // one document of both sequences, as Megatron writes sentences
  const int64_t count = 2;
  std::memcpy(bytes.data() + 26, &count, 8);
  bytes.resize(bytes.size() - 24);
  bytes.append(reinterpret_cast<const char*>(boundaries), sizeof boundaries);
  spill((dir / "two.idx").string(), bytes);
  const IdxReader reader((dir / "two").string());
  EXPECT_EQ(reader.documents(), 1);
  EXPECT_EQ(reader.length(0), 5);
}

TEST(Idx, ShardsMayBeEmpty) {
  test::TempDir dir;
  IdxWriter((dir / "none").string(), 10).finish();
  const IdxReader reader((dir / "none").string());
  EXPECT_EQ(reader.documents(), 0);
  EXPECT_EQ(reader.tokens(), 0);
  EXPECT_EQ(reader.begin(0), 0);
}

TEST(Idx, MissingFilesAreNamedWithTheCure) {
  test::TempDir dir;
  write_two((dir / "two").string());
  std::filesystem::remove((dir / "two.bin").string());
  const std::string what = error_of([&] { IdxReader((dir / "two").string()); });
  EXPECT_TRUE(contains(what, "two.bin") && contains(what, "No such file") && contains(what, "osprey prepare"))
      << what;
  EXPECT_TRUE(contains(error_of([&] { IdxReader((dir / "gone").string()); }), "gone.idx"));
}

TEST(Idx, TruncatedFilesNameTheFileAndTheSize) {
  test::TempDir dir;
  write_two((dir / "two").string());
  const std::string idx = slurp((dir / "two.idx").string()), bin = slurp((dir / "two.bin").string());
  for (size_t size = 0; size < idx.size(); ++size) {
    spill((dir / "two.idx").string(), idx.substr(0, size));
    const std::string what = error_of([&] { IdxReader((dir / "two").string()); });
    EXPECT_TRUE(contains(what, "two.idx has " + std::to_string(size) + " bytes")) << what;
  }
  spill((dir / "two.idx").string(), idx);
  spill((dir / "two.bin").string(), bin.substr(0, 8));
  const std::string what = error_of([&] { IdxReader((dir / "two").string()); });
  EXPECT_TRUE(contains(what, "two.bin has 8 bytes")) << what;
  spill((dir / "two.bin").string(), bin + "xx");
  EXPECT_TRUE(contains(error_of([&] { IdxReader((dir / "two").string()); }), "two.bin has 12 bytes"));
}

TEST(Idx, ForeignFilesAreRefusedByName) {
  test::TempDir dir;
  write_two((dir / "two").string());
  std::string idx = slurp((dir / "two.idx").string());
  const auto damaged = [&](size_t at, char value) {
    std::string bytes = idx;
    bytes[at] = value;
    spill((dir / "two.idx").string(), bytes);
    return error_of([&] { IdxReader((dir / "two").string()); });
  };
  EXPECT_TRUE(contains(damaged(0, 'X'), "two.idx is not a token index"));
  EXPECT_TRUE(contains(damaged(9, 2), "version 2, expected 1"));
  EXPECT_TRUE(contains(damaged(17, 7), "type code 7"));
  EXPECT_TRUE(contains(damaged(25, 0x7f), "does not fit its counts"));
  EXPECT_TRUE(contains(damaged(37, static_cast<char>(0xff)), "length of -"));
  EXPECT_TRUE(contains(damaged(50, 1), "expected 6"));
  EXPECT_TRUE(contains(damaged(58, 1), "first document at sequence 1"));
  EXPECT_TRUE(contains(damaged(66, 9), "expected 0 to 2"));
  EXPECT_TRUE(contains(damaged(74, 1), "ends its last document"));
}

TEST(Idx, WriterRefusesTokensOutsideTheVocabulary) {
  test::TempDir dir;
  IdxWriter writer((dir / "x").string(), 10);
  EXPECT_TRUE(contains(error_of([&] { writer.add(std::vector<int32_t>{10}); }), "token 10"));
  EXPECT_TRUE(contains(error_of([&] { writer.add(std::vector<int32_t>{-1}); }), "token -1"));
}

TEST(Idx, UnfinishedWritersLeaveNothing) {
  test::TempDir dir;
  { IdxWriter((dir / "x").string(), 10).add(std::vector<int32_t>{1}); }
  EXPECT_TRUE(std::filesystem::is_empty(dir.path().string()));
}

// A file-size limit fails a write as a full disk does; it is set in a child, for it cannot be
// lifted.
TEST(Idx, FullDiskNamesTheFileAndLeavesNothing) {
  test::TempDir dir;
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{4096, 4096};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const std::string what = error_of([&] {
      IdxWriter writer((dir / "x").string(), 10);
      const std::vector<int32_t> document(1000, 3);
      for (int i = 0; i < 100; ++i) writer.add(document);
      writer.finish();
    });
    ::_exit(contains(what, "x.bin") && contains(what, "free some space") ? 0 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  EXPECT_TRUE(std::filesystem::is_empty(dir.path().string()));
}

// Any bytes must give either a reader whose every document can be read, or an osprey::Error.
TEST(Idx, FuzzedFilesNeverCrash) {
  const auto until = test::fuzz_end();
  test::TempDir dir;
  write_two((dir / "two").string());
  const std::string idx = slurp((dir / "two.idx").string()), bin = slurp((dir / "two.bin").string());
  uint64_t rounds = 0, accepted = 0;
  for (; std::chrono::steady_clock::now() < until; ++rounds) {
    uint64_t draws = 0;
    const auto draw = [&](uint64_t below) { return random_u64(7, rounds, draws++) % below; };
    std::string bytes = idx, tokens = bin;
    for (uint64_t edits = draw(4); edits > 0; --edits) {
      switch (draw(5)) {
        case 0:
          bytes[draw(bytes.size())] ^= static_cast<char>(1u << draw(8));
          break;
        case 1:
          bytes.resize(1 + draw(bytes.size()));
          break;
        case 2:
          bytes.append(draw(40), static_cast<char>(draw(256)));
          break;
        case 3: {  // whole fields at once, towards the ends of their range
          const uint64_t extremes[] = {0, 1, 2, 3, ~0ull, 1ull << 63, (1ull << 61) + 1, 0x7fffffffull};
          const size_t at = 18 + draw(bytes.size() > 26 ? bytes.size() - 26 : 1);
          if (at + 8 <= bytes.size()) std::memcpy(bytes.data() + at, &extremes[draw(8)], 8);
          break;
        }
        default:
          tokens.resize(draw(tokens.size() + 8));
          break;
      }
    }
    spill((dir / "two.idx").string(), bytes);
    spill((dir / "two.bin").string(), tokens);
    try {
      const IdxReader reader((dir / "two").string());
      ++accepted;
      int64_t total = 0;
      for (int64_t d = 0; d < reader.documents(); ++d) {
        ASSERT_GE(reader.length(d), 0);
        std::vector<int32_t> out(static_cast<size_t>(reader.length(d)));
        reader.read(reader.begin(d), out);
        total += reader.length(d);
      }
      ASSERT_EQ(total, reader.documents() > 0 ? reader.tokens() : 0);
    } catch (const Error&) {
    }
  }
  EXPECT_GT(rounds, 100u);
  EXPECT_GT(accepted, 0u);  // else nothing was tested past the header
}

}  // namespace
}  // namespace osprey
