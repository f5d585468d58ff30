#include "framework/checkpoint/shards.h"

#include <gtest/gtest.h>

#include <functional>
#include <numeric>

#include "tests/support/fuzz.h"
#include "tests/support/refusal.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

namespace fs = std::filesystem;
using test::refusal;
using test::TempDir;

/// A tensor with its memory.
struct Held {
  std::vector<float> values;
  Tensor tensor() { return make_tensor(values.data(), {static_cast<int64_t>(values.size())}, DType::f32); }
};

Held ramp(int64_t n, float first = 0) {
  Held h;
  h.values.resize(static_cast<size_t>(n));
  std::iota(h.values.begin(), h.values.end(), first);
  return h;
}

NamedPiece piece(const std::string& name, const std::string& slot, const Shape& full, int64_t begin,
                 int64_t end, Tensor whole) {
  Tensor data = whole.view({whole.numel()});
  data = make_tensor(data.as<float>() + begin, {end - begin}, DType::f32);
  return {name, slot, full, begin, end, data};
}

/// Writes tensor "w" (6, 10) cut at `cuts` over ranks, and "m" whole on the last rank.
void write(const fs::path& dir, std::vector<int64_t> cuts, Held& w, Held& m) {
  fs::create_directories(dir / "optimizer");
  cuts.insert(cuts.begin(), 0);
  cuts.push_back(60);
  for (size_t r = 0; r + 1 < cuts.size(); ++r) {
    std::vector<NamedPiece> pieces = {piece("w", "adam_m", {6, 10}, cuts[r], cuts[r + 1], w.tensor())};
    if (r + 2 == cuts.size()) pieces.push_back(piece("m", "momentum", {2, 3}, 0, 6, m.tensor()));
    write_shard(dir / shard_name(static_cast<int>(r)), pieces);
  }
}

TEST(Shards, AnyCutReadsWhatAnyOtherCutWrote) {
  Held w = ramp(60), m = ramp(6, 100);
  for (const std::vector<int64_t>& cuts :
       std::vector<std::vector<int64_t>>{{}, {31}, {7, 7, 50}, {1, 2, 3}}) {
    TempDir dir;
    write(dir.path(), cuts, w, m);
    const ShardIndex index(dir.path());
    EXPECT_EQ(index.tensors().size(), 2u);
    EXPECT_EQ(index.tensors().at("w:adam_m").shape, (Shape{6, 10}));
    EXPECT_NO_THROW(index.require_same({{"w:adam_m", {6, 10}}, {"m:momentum", {2, 3}}}));
    for (auto [begin, end] : {std::pair{0, 60}, {0, 1}, {6, 8}, {30, 32}, {59, 60}, {5, 5}}) {
      Held out = ramp(60, -1000);
      index.read(piece("w", "adam_m", {6, 10}, begin, end, out.tensor()));
      for (int i = 0; i < 60; ++i)
        ASSERT_EQ(out.values[static_cast<size_t>(i)],
                  static_cast<float>(i >= begin && i < end ? i : i - 1000));
    }
    std::vector<bf16> narrow(6);
    index.read({"m", "momentum", {2, 3}, 0, 6, make_tensor(narrow.data(), {2, 3}, DType::bf16)});
    EXPECT_EQ(to_float(narrow[5]), 105.0f);
  }
}

TEST(Shards, WhatDiffersIsListedInOneError) {
  TempDir dir;
  Held w = ramp(60), m = ramp(6);
  write(dir.path(), {}, w, m);
  const ShardIndex index(dir.path());
  const std::string message = refusal([&] {
    index.require_same({{"w:adam_m", {10, 6}}, {"x:master", {1}}});
  });
  for (const char* part :
       {"w:adam_m is (6, 10) in the checkpoint and (10, 6) here", "x:master is not in the checkpoint",
        "m:momentum is in the checkpoint and not here", "recipe.yaml"})
    EXPECT_NE(message.find(part), std::string::npos) << message;
  std::map<std::string, Shape> many;
  for (int i = 0; i < 100; ++i) many["p" + std::to_string(i) + ":master"] = {1};
  EXPECT_NE(refusal([&] { index.require_same(many); }).find("and 94 more"), std::string::npos);
  Held out = ramp(60);
  EXPECT_THROW(index.read(piece("w", "adam_m", {10, 6}, 0, 60, out.tensor())), Error);
  EXPECT_THROW(index.read(piece("w", "adam_v", {6, 10}, 0, 60, out.tensor())), Error);
}

TEST(Shards, GapsOverlapsAndForeignFilesAreRefused) {
  Held w = ramp(60), m = ramp(6);
  {
    TempDir dir;
    EXPECT_NE(refusal([&] { ShardIndex index(dir.path()); }).find("no optimizer state"), std::string::npos);
  }
  {
    TempDir dir;
    write(dir.path(), {20, 40}, w, m);
    fs::remove(dir.path() / shard_name(2));
    EXPECT_NE(refusal([&] { ShardIndex index(dir.path()); }).find("[40, 60) of w:adam_m are in no shard"),
              std::string::npos);
  }
  {
    TempDir dir;
    fs::create_directories(dir / "optimizer");
    write_shard(dir.path() / shard_name(0), std::vector{piece("w", "s", {60}, 0, 40, w.tensor())});
    write_shard(dir.path() / shard_name(1), std::vector{piece("w", "s", {60}, 30, 60, w.tensor())});
    EXPECT_NE(refusal([&] { ShardIndex index(dir.path()); }).find("in two shards"), std::string::npos);
  }
  const auto with = [](const std::string& name, const std::vector<int64_t>& shape, const std::string& range) {
    TempDir dir;
    fs::create_directories(dir / "optimizer");
    SafetensorsWriter writer(dir.path() / shard_name(0), {{name, StoredType::u8, shape, 0}}, {{name, range}});
    const std::vector<std::byte> zeros(static_cast<size_t>(writer.order()[0].bytes()));
    writer.write(name, zeros);
    writer.finish();
    return refusal([&] { ShardIndex index(dir.path()); });
  };
  EXPECT_EQ(with("w:s@0", {4}, "0 4 2 2"), "accepted");
  EXPECT_NE(with("w", {4}, "").find("names no slot"), std::string::npos);
  EXPECT_NE(with("w:s", {1, 1, 1, 1, 1}, "").find("dimensions"), std::string::npos);
  for (const char* bad : {"", "0 4", "0 4 x", "0 4  4", "-1 3 4", "0 4 4 ", "0 4 1 1 1 1 4", "0 5 5", "2 4 4",
                          "1 5 4", "0 4 9223372036854775807 4", "0 4 99999999999999999999"})
    EXPECT_NE(with("w:s@0", {4}, bad), "accepted") << bad;
}

TEST(Shards, AMasterAndItsStatesAreNamedBySlot) {
  Held value = ramp(4), m = ramp(4);
  ParamPiece p;
  p.name = "layers.0.attn.q.weight";
  p.full_shape = {2, 8};
  p.begin = 4;
  p.end = 8;
  p.master = value.tensor();
  p.state[0] = m.tensor();
  const StateSpec states[] = {{"adam_m", DType::f32}};
  const auto named = named_pieces({&p, 1}, states);
  ASSERT_EQ(named.size(), 2u);
  EXPECT_EQ(named[0].key(), "layers.0.attn.q.weight:master");
  EXPECT_EQ(named[1].key(), "layers.0.attn.q.weight:adam_m");
  EXPECT_FALSE(named[1].whole());
}

}  // namespace
}  // namespace osprey
