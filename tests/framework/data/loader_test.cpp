#include "framework/data/loader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <set>

#include "framework/data/idx.h"
#include "framework/data/shards.h"
#include "kernels/core/random.h"
#include "tests/framework/data/data_support.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

constexpr int32_t kEos = 256;

/// Shards whose documents say where they come from: the tokens of a document count up from a drawn
/// start and end with the end of text. Vocabulary of the bytes tokenizer.
class LoaderTest : public testing::Test {
 protected:
  void write(const std::string& name, int64_t documents, int64_t longest, uint64_t seed,
             const Tokenizer& tokenizer) {
    const std::string prefix = (dir_ / name).string();
    IdxWriter writer(prefix, tokenizer.vocab_size());
    for (int64_t d = 0; d < documents; ++d) {
      const uint64_t draw = random_u64(seed, 1, static_cast<uint64_t>(d));
      std::vector<int32_t> document(1 + draw % static_cast<uint64_t>(longest));
      for (size_t i = 0; i < document.size(); ++i)
        document[i] = static_cast<int32_t>(((draw >> 32) + i) % 256);
      document.push_back(kEos);
      writer.add(document);
    }
    writer.finish();
    ShardLabel label = make_label(tokenizer);
    label.tokens = writer.tokens();
    label.documents = writer.documents();
    label.max_token = writer.max_token();
    write_label(prefix, label);
  }
  void write(const std::string& name, int64_t documents, int64_t longest, uint64_t seed) {
    write(name, documents, longest, seed, *bytes_);
  }
  DataSpec spec(const std::string& pattern, int64_t sequence_len = 32) {
    DataSpec data;
    data.tokenizer = "bytes";
    data.train = data.validation = {{.path = (dir_ / pattern).string(), .weight = {}}};
    data.sequence_len = sequence_len;
    return data;
  }
  Loader loader(const DataSpec& data, int64_t global_rows, uint64_t seed = 42) {
    return Loader(data, *bytes_, {.seed = seed, .global_rows = global_rows, .vocab_size = 257});
  }
  /// All rows of a step's global batch, row by row, read by `ranks` ranks of `rows` rows.
  std::vector<std::vector<int32_t>> step_rows(Loader& from, const DataSpec& data, int64_t step, int64_t ranks,
                                              int64_t rows, int64_t global_rows) {
    std::vector<std::vector<int32_t>> all;
    BatchBuffer buffer(data, rows);
    for (int64_t micro = 0; micro < global_rows / (ranks * rows); ++micro)
      for (int64_t rank = 0; rank < ranks; ++rank) {
        from.batch(step, micro, rank, ranks, buffer.batch);
        for (int64_t r = 0; r < rows; ++r) {
          const auto* token = buffer.batch.tokens.as<int32_t>() + r * data.sequence_len;
          const auto* target = buffer.batch.targets.as<int32_t>() + r * data.sequence_len;
          std::vector<int32_t> row(token, token + data.sequence_len);
          row.insert(row.end(), target, target + data.sequence_len);
          all.push_back(row);
        }
      }
    return all;
  }

  test::TempDir dir_;
  std::unique_ptr<Tokenizer> bytes_ = make_bytes_tokenizer();
};

TEST_F(LoaderTest, GlobalBatchDoesNotDependOnRanks) {
  write("train-00000", 300, 60, 1);
  write("train-00001", 100, 60, 2);
  const DataSpec data = spec("train-*");
  Loader from = loader(data, 8);
  for (int64_t step = 0; step < 20; ++step) {
    const auto one = step_rows(from, data, step, 1, 8, 8);
    EXPECT_EQ(step_rows(from, data, step, 2, 4, 8), one);
    EXPECT_EQ(step_rows(from, data, step, 4, 2, 8), one);
    EXPECT_EQ(step_rows(from, data, step, 1, 2, 8), one);
    EXPECT_EQ(step_rows(from, data, step, 2, 1, 8), one);
  }
}

TEST_F(LoaderTest, ResumedEqualsContinuousPastTheFirstEpoch) {
  write("a-00000", 120, 40, 1);
  write("b-00000", 30, 90, 2);
  DataSpec data = spec("a-*");
  data.train = {{.path = (dir_ / "a-*").string(), .weight = 0.5},
                {.path = (dir_ / "b-*").string(), .weight = 0.5}};
  Loader continuous = loader(data, 4);
  std::vector<std::vector<std::vector<int32_t>>> rows;
  std::vector<std::vector<DocumentUse>> documents;
  for (int64_t step = 0; step < 120; ++step) {  // about five epochs
    rows.push_back(step_rows(continuous, data, step, 1, 4, 4));
    documents.push_back(continuous.documents(step));
  }
  for (const int64_t step : {119, 3, 77, 40, 0}) {
    Loader resumed = loader(data, 4);
    EXPECT_EQ(step_rows(resumed, data, step, 2, 2, 4), rows[static_cast<size_t>(step)]);
    EXPECT_EQ(resumed.documents(step), documents[static_cast<size_t>(step)]);
  }
}

TEST_F(LoaderTest, AnEpochReadsEveryTokenOnceAndTheNextInAnotherOrder) {
  write("train", 500, 30, 3);
  const DataSpec data = spec("train", 16);
  Loader from = loader(data, 1);
  const IdxReader shard((dir_ / "train").string());
  const int64_t windows = (shard.tokens() - 1) / 16;
  std::vector<std::vector<DocumentUse>> first, second;
  for (int64_t epoch = 0; epoch < 2; ++epoch) {
    std::vector<int> seen(static_cast<size_t>(shard.tokens()));
    for (int64_t step = 0; step < windows; ++step) {
      const auto uses = from.documents(epoch * windows + step);
      (epoch ? second : first).push_back(uses);
      int64_t left = 16;  // the last token of a window is the first of another
      for (const DocumentUse& use : uses)
        for (int64_t i = 0; i < std::min(use.tokens, left); ++i)
          ++seen[static_cast<size_t>(shard.begin(use.document) + use.offset + i)];
      int64_t total = 0;
      for (const DocumentUse& use : uses) total += use.tokens;
      ASSERT_EQ(total, 17);
    }
    // Seventeenth tokens and what does not fill a window blur the count at its edges, not its core.
    EXPECT_LE(std::count(seen.begin(), seen.end(), 0), 17);
    EXPECT_LE(*std::max_element(seen.begin(), seen.end()), 2);
  }
  EXPECT_NE(first, second);
}

TEST_F(LoaderTest, RowsHoldTheDocumentsThatAreNamed) {
  write("train-00000", 50, 40, 4);
  write("train-00001", 50, 200, 5);
  const DataSpec data = spec("train-*", 64);
  Loader from = loader(data, 4);
  std::map<std::string, std::unique_ptr<IdxReader>> shards;
  std::set<std::string> files;
  for (int64_t step = 0; step < 30; ++step) {
    const auto rows = step_rows(from, data, step, 1, 4, 4);
    std::vector<std::vector<int32_t>> expected(4);
    for (const DocumentUse& use : from.documents(step)) {
      auto& shard = shards[use.file];
      if (!shard) shard = std::make_unique<IdxReader>(use.file);
      files.insert(use.file);
      std::vector<int32_t> tokens(static_cast<size_t>(use.tokens));
      shard->read(shard->begin(use.document) + use.offset, tokens);
      auto& row = expected[static_cast<size_t>(use.row)];
      row.insert(row.end(), tokens.begin(), tokens.end());
    }
    for (size_t r = 0; r < 4; ++r) {
      ASSERT_EQ(expected[r].size(), 65u);
      EXPECT_TRUE(std::equal(rows[r].begin(), rows[r].begin() + 64, expected[r].begin()));
      EXPECT_TRUE(std::equal(rows[r].begin() + 64, rows[r].end(), expected[r].begin() + 1));
    }
  }
  EXPECT_EQ(files.size(), 2u);
}

TEST_F(LoaderTest, PackedDocumentsDoNotSeeEachOtherWhenAttentionStaysInside) {
  write("train", 400, 20, 6);
  DataSpec data = spec("train", 48);
  data.attention_across_documents = false;
  Loader from = loader(data, 6);
  BatchBuffer buffer(data, 6);
  int64_t boundaries = 0, ends_at_the_edge = 0;
  for (int64_t step = 0; step < 20; ++step) {
    const int64_t counted = from.batch(step, 0, 0, 1, buffer.batch);
    int64_t targets = 0;
    for (int64_t r = 0; r < 6; ++r) {
      const auto at = [&](const Tensor& t, int64_t i) { return t.as<int32_t>()[r * 48 + i]; };
      for (int64_t i = 0; i < 48; ++i) {
        const int32_t token = at(buffer.batch.tokens, i), start = at(buffer.batch.document_start, i);
        EXPECT_EQ(at(buffer.batch.positions, i), i - start);
        // A document starts where the one before ended, and only there.
        const bool begins = i > 0 && at(buffer.batch.tokens, i - 1) == kEos;
        EXPECT_EQ(start, begins ? i : i > 0 ? at(buffer.batch.document_start, i - 1) : 0);
        boundaries += begins;
        // The end of text is a target (the model must learn to stop), and predicts nothing itself.
        const int32_t target = at(buffer.batch.targets, i);
        EXPECT_EQ(target == -1, token == kEos);
        ends_at_the_edge += i == 47 && token == kEos;
        if (target != -1 && i + 1 < 48) {
          EXPECT_EQ(target, at(buffer.batch.tokens, i + 1));
        }
        targets += target != -1;
      }
    }
    EXPECT_EQ(counted, targets);
  }
  EXPECT_GT(boundaries, 100);
  EXPECT_GT(ends_at_the_edge, 0);
}

TEST_F(LoaderTest, AttentionAcrossDocumentsCountsPositionsInTheRow) {
  write("train", 100, 20, 6);
  const DataSpec data = spec("train", 48);
  Loader from = loader(data, 2);
  BatchBuffer buffer(data, 2);
  EXPECT_FALSE(buffer.batch.document_start.defined());
  EXPECT_EQ(from.batch(3, 0, 0, 1, buffer.batch), 96);
  for (int64_t i = 0; i < 96; ++i) EXPECT_EQ(buffer.batch.positions.as<int32_t>()[i], i % 48);
}

TEST_F(LoaderTest, SeedsChooseTheOrder) {
  write("train", 300, 30, 7);
  const DataSpec data = spec("train");
  Loader a = loader(data, 4, 1), b = loader(data, 4, 2), c = loader(data, 4, 1);
  EXPECT_EQ(a.documents(0), c.documents(0));
  EXPECT_NE(a.documents(0), b.documents(0));
}

TEST_F(LoaderTest, WeightsAreRespected) {
  write("a", 300, 30, 1);
  write("b", 300, 30, 2);
  DataSpec data = spec("a");
  data.train = {{.path = (dir_ / "a").string(), .weight = 3}, {.path = (dir_ / "b").string(), .weight = 1}};
  Loader from = loader(data, 64);
  int64_t from_a = 0, total = 0;
  for (int64_t step = 0; step < 64; ++step) {
    int64_t row = -1;
    for (const DocumentUse& use : from.documents(step)) {
      if (use.row == row) continue;
      row = use.row;
      from_a += use.file.ends_with("/a");
      ++total;
    }
  }
  EXPECT_EQ(total, 4096);
  EXPECT_NEAR(static_cast<double>(from_a) / static_cast<double>(total), 0.75, 0.0075);
}

TEST_F(LoaderTest, ValidationReadsEveryTokenOnceInOrder) {
  write("validation-00000", 20, 30, 8);
  write("validation-00001", 20, 30, 9);
  const DataSpec data = spec("validation-*", 32);
  ValidationLoader from(data, *bytes_, 257);
  std::vector<int32_t> expected;
  for (const char* name : {"validation-00000", "validation-00001"}) {
    const IdxReader shard((dir_ / name).string());
    std::vector<int32_t> tokens(static_cast<size_t>(shard.tokens()));
    shard.read(0, tokens);
    expected.insert(expected.end(), tokens.begin(), tokens.end());
  }
  std::vector<int32_t> targets;
  BatchBuffer buffer(data, 3);
  int64_t counted = 0;
  for (int64_t first = 0; first < from.rows() + 6; first += 3) {  // past the end too
    counted += from.batch(first, buffer.batch);
    for (int64_t i = 0; i < 96; ++i)
      if (const int32_t t = buffer.batch.targets.as<int32_t>()[i]; t != -1) targets.push_back(t);
  }
  EXPECT_EQ(counted, static_cast<int64_t>(expected.size()) - 1);
  EXPECT_TRUE(std::equal(targets.begin(), targets.end(), expected.begin() + 1, expected.end()));

  ValidationLoader some(data, *bytes_, 257, 33);
  EXPECT_EQ(some.rows(), 2);
  EXPECT_EQ(some.batch(0, buffer.batch), 64) << "two rows of 32, and a third without targets";
}

TEST_F(LoaderTest, OtherTokenizersAreFound) {
  test::TempDir tok;
  const auto other = train_sentencepiece(
      {.vocab_size = 300},
      {"the osprey catches fish in the river", "some other words for training", "a b c d e f"});
  write("train", 30, 30, 1, *other);
  const std::string what = error_of([&] { loader(spec("train"), 2); });
  EXPECT_TRUE(contains(what, "train.bin") && contains(what, other->fingerprint()) &&
              contains(what, "is bytes"))
      << what;
}

TEST_F(LoaderTest, VocabulariesSmallerThanTheDataAreFound) {
  write("train", 30, 30, 1);
  const auto with = [&](int64_t vocab) {
    return error_of(
        [&] { Loader(spec("train"), *bytes_, {.seed = 1, .global_rows = 2, .vocab_size = vocab}); });
  };
  EXPECT_EQ(with(257), "no error");
  const std::string what = with(256);
  EXPECT_TRUE(contains(what, "vocab_size is 256") && contains(what, "token 256") &&
              contains(what, "train.bin"))
      << what;

  // A side-car that promises less than the shard holds is found when the token is read.
  std::string label = slurp((dir_ / "train.json").string());
  label.replace(label.find("\"max_token\": 256"), 16, "\"max_token\": 100");
  spill((dir_ / "train.json").string(), label);
  const DataSpec data = spec("train");
  Loader from(data, *bytes_, {.seed = 1, .global_rows = 2, .vocab_size = 256});
  BatchBuffer buffer(data, 2);
  EXPECT_TRUE(contains(error_of([&] {
                         for (int64_t step = 0; step < 20; ++step) from.batch(step, 0, 0, 1, buffer.batch);
                       }),
                       "train.bin holds token 256"));
}

TEST_F(LoaderTest, MissingAndMismatchedFilesAreNamed) {
  const auto what = [&](const std::string& pattern) { return error_of([&] { loader(spec(pattern), 2); }); };
  EXPECT_TRUE(contains(what("none-*"), "no token shard matches"));
  EXPECT_TRUE(contains(what("."), "is a directory"));
  write("train", 30, 30, 1);
  EXPECT_EQ(what("train.idx"), "no error");
  EXPECT_EQ(what("tra*"), "no error");
  std::filesystem::rename(dir_ / "train.bin", dir_ / "kept");
  EXPECT_TRUE(contains(what("train"), "train.bin"));
  std::filesystem::rename(dir_ / "train.idx", dir_ / "train.bin");
  EXPECT_TRUE(contains(what("train"), "train.idx"));
  std::filesystem::rename(dir_ / "train.bin", dir_ / "train.idx");
  std::filesystem::rename(dir_ / "kept", dir_ / "train.bin");
  write("other", 31, 30, 1);
  std::filesystem::copy_file(dir_ / "other.json", dir_ / "train.json",
                             std::filesystem::copy_options::overwrite_existing);
  EXPECT_TRUE(contains(what("train"), "train.json speaks of"));
  spill((dir_ / "train.json").string(), "{\"tokens\": \"many\"}");
  EXPECT_TRUE(contains(what("train"), "train.json is not a shard description"));
  std::filesystem::remove(dir_ / "train.json");
  EXPECT_TRUE(contains(what("train"), "train.json is missing"));
  write("tiny", 1, 5, 1);
  EXPECT_TRUE(contains(what("tiny"), "smaller data.sequence_len"));
}

TEST_F(LoaderTest, StepsMustDivideIntoBatches) {
  write("train", 100, 30, 1);
  const DataSpec data = spec("train");
  Loader from = loader(data, 8);
  BatchBuffer buffer(data, 3);
  EXPECT_TRUE(contains(error_of([&] { from.batch(0, 0, 0, 1, buffer.batch); }), "8 rows a step"));
  BatchBuffer four(data, 4);
  EXPECT_TRUE(contains(error_of([&] { from.batch(0, 2, 0, 1, four.batch); }), "past the last"));
  EXPECT_TRUE(contains(error_of([&] { from.batch(0, 0, 2, 2, four.batch); }), "no such batch"));
}

// Not a timed test of the machine: a bound two orders above what was measured, so that an
// accidental linear search or allocation shows.
TEST_F(LoaderTest, BatchesAreCheap) {
  write("train", 20000, 200, 1);
  const DataSpec data = spec("train", 512);
  Loader from = loader(data, 8);
  BatchBuffer buffer(data, 8);
  from.batch(0, 0, 0, 1, buffer.batch);
  const auto start = std::chrono::steady_clock::now();
  for (int64_t step = 1; step <= 200; ++step) from.batch(step, 0, 0, 1, buffer.batch);
  const std::chrono::duration<double, std::micro> spent = std::chrono::steady_clock::now() - start;
  RecordProperty("microseconds_a_batch", std::to_string(spent.count() / 200));
  EXPECT_LT(spent.count() / 200, 10000);
}

}  // namespace
}  // namespace osprey
