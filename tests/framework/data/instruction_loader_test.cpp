#include "framework/data/instruction_loader.h"

#include <gtest/gtest.h>

#include <map>

#include "kernels/core/random.h"
#include "tests/framework/data/data_support.h"

namespace osprey {
namespace {

/// Documents whose tokens are their number; all but the first two tokens are learnt.
std::shared_ptr<const InstructionSet> numbered(int32_t documents, int64_t longest, int32_t first = 0) {
  const auto set = std::make_shared<InstructionSet>();
  for (int32_t d = 0; d < documents; ++d) {
    TokenRow row;
    row.tokens.assign(3 + random_u64(5, 1, static_cast<uint64_t>(d)) % static_cast<uint64_t>(longest - 2),
                      first + d);
    row.trained.assign(row.tokens.size(), 1);
    row.trained[0] = row.trained[1] = 0;
    set->add(row);
  }
  return set;
}

DataSpec spec(int64_t sequence_len = 32) {
  DataSpec spec;
  spec.train = {{.path = "x.jsonl"}};
  spec.sequence_len = sequence_len;
  return spec;
}

constexpr int32_t kFiller = 9999;

InstructionLoader loader(const DataSpec& spec, std::vector<InstructionPool> pools, int64_t global_rows = 4) {
  return InstructionLoader(spec, std::move(pools),
                           {.seed = 1, .global_rows = global_rows, .filler = kFiller});
}

TEST(InstructionLoader, DocumentsStandBlindToEachOther) {
  const auto set = std::make_shared<InstructionSet>();
  set->add({{1, 2, 3}, {0, 0, 1}});
  set->add({{4, 5}, {0, 1}});
  DataSpec s = spec(8);
  BatchBuffer buffer(s, 1);
  const auto rows = BatchRows::of(buffer.batch, 8, BatchRows::Documents::apart);
  EXPECT_EQ(fill_row(*set, std::vector<int32_t>{0, 1}, kFiller, rows), 2);
  const auto view = [](const int32_t* p) { return std::vector<int32_t>(p, p + 8); };
  EXPECT_EQ(view(rows.token), (std::vector<int32_t>{1, 2, 3, 4, 5, kFiller, kFiller, kFiller}));
  EXPECT_EQ(view(rows.target), (std::vector<int32_t>{-1, 3, -1, 5, -1, -1, -1, -1}));
  EXPECT_EQ(view(rows.position), (std::vector<int32_t>{0, 1, 2, 0, 1, 0, 1, 2}));
  EXPECT_EQ(view(rows.start), (std::vector<int32_t>{0, 0, 0, 3, 3, 5, 5, 5}));
}

TEST(InstructionLoader, AnEpochReadsEveryDocumentOnce) {
  for (const bool packing : {true, false}) {
    DataSpec s = spec();
    s.packing = packing;
    auto from = loader(s, {{numbered(100, 20), {}}});
    int64_t n = 0;
    std::vector<std::vector<int32_t>> epochs;
    for (double epoch = 1; epoch <= 3; ++epoch) {
      std::map<int32_t, int> seen;
      std::vector<int32_t> order;
      for (; n < from.rows(epoch); ++n)
        for (const int32_t d : from.row(n).documents) ++seen[d], order.push_back(d);
      EXPECT_EQ(seen.size(), 100u);
      EXPECT_EQ(order.size(), 100u);
      epochs.push_back(order);
    }
    EXPECT_NE(epochs[0], epochs[1]);
    EXPECT_EQ(from.rows(2.5), from.rows(2) + (from.rows(3) - from.rows(2) + 1) / 2);
    if (!packing)
      EXPECT_EQ(from.rows(3), 300);
    else
      EXPECT_LT(from.rows(1), 50);
  }
}

TEST(InstructionLoader, AStepIsTheSameOnAnyNumberOfRanksAndAfterAResume) {
  const DataSpec s = spec();
  const auto set = numbered(40, 30);
  const auto step_rows = [&](InstructionLoader& from, int64_t step, int64_t ranks, int64_t rows) {
    std::vector<std::vector<int32_t>> all;
    BatchBuffer buffer(s, rows);
    for (int64_t micro = 0; micro < 8 / ranks / rows; ++micro)
      for (int64_t rank = 0; rank < ranks; ++rank) {
        from.batch(step, micro, rank, ranks, buffer.batch);
        for (int64_t r = 0; r < rows; ++r)
          for (const Tensor& t : {buffer.batch.tokens, buffer.batch.targets, buffer.batch.document_start})
            all.emplace_back(t.as<int32_t>() + r * 32, t.as<int32_t>() + (r + 1) * 32);
      }
    return all;
  };
  auto one = loader(s, {{set, {}}}, 8), late = loader(s, {{set, {}}}, 8);
  const auto far = step_rows(late, 40, 1, 8);  // without the steps before
  for (int64_t step = 0; step <= 40; ++step) {
    const auto rows = step_rows(one, step, 1, 8);
    if (step % 10 == 0)
      for (const auto& [ranks, per_rank] : {std::pair{2, 2}, {4, 1}, {2, 4}, {1, 2}}) {
        auto other = loader(s, {{set, {}}}, 8);
        EXPECT_EQ(step_rows(other, step, ranks, per_rank), rows) << step << " " << ranks;
      }
    if (step == 40) EXPECT_EQ(rows, far);
  }
  EXPECT_TRUE(contains(error_of([&] {
                         BatchBuffer b(s, 3);
                         one.batch(0, 0, 0, 1, b.batch);
                       }),
                       "do not divide"));
}

TEST(InstructionLoader, WeightsMixPoolsRowByRow) {
  const auto small = numbered(5, 10), large = numbered(50, 10, 1000);
  auto from = loader(spec(), {{small, 3.0}, {large, 1.0}});
  int64_t of_small = 0;
  for (int64_t n = 0; n < 4096; ++n) of_small += from.row(n).set == small.get();
  EXPECT_EQ(of_small, 3072);
}

TEST(InstructionLoader, ValidationReadsAllInOrder) {
  const auto set = numbered(20, 20);
  DataSpec s = spec();
  InstructionValidation all(s, set, kFiller);
  BatchBuffer buffer(s, 4);
  std::map<int32_t, int64_t> tokens;
  int64_t targets = 0, learnt = 0;
  for (int64_t r = 0; r < all.rows() + 4; r += 4) {
    targets += all.batch(r, buffer.batch);
    for (int64_t i = 0; i < 4 * 32; ++i) ++tokens[buffer.batch.tokens.as<int32_t>()[i]];
  }
  tokens.erase(kFiller);
  EXPECT_EQ(tokens.size(), 20u);
  for (int64_t d = 0; d < 20; ++d) {
    EXPECT_EQ(tokens[static_cast<int32_t>(d)], set->lengths()[static_cast<size_t>(d)]);
    learnt += set->lengths()[static_cast<size_t>(d)] - 2;
  }
  EXPECT_EQ(targets, learnt);
  EXPECT_EQ(InstructionValidation(s, set, kFiller, 33).rows(), 2);
  DataSpec shards;  // a model trained on token shards, evaluated on instructions
  shards.train = {{.path = "shards-*"}};
  EXPECT_TRUE(InstructionValidation(shards, set, kFiller).spec().documents_apart());
  EXPECT_TRUE(
      contains(error_of([&] { InstructionValidation(s, std::make_shared<InstructionSet>(), 0); }), "0 rows"));
}

}  // namespace
}  // namespace osprey
