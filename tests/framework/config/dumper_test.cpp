#include "framework/config/dumper.h"

#include <gtest/gtest.h>

#include "framework/config/reader.h"
#include "kernels/core/check.h"
#include "kernels/core/random.h"
#include "tests/framework/config/toy_spec.h"

namespace osprey {
namespace {

using toy::Toy;

TEST(Dumper, WritesEveryFieldInTheOrderOfTheSpec) {
  EXPECT_EQ(dump_spec(read_spec<Toy>(toy::valid_text, "r.yaml")), R"(name: first
model:
  hidden_size: 64
  heads: 8
  tied: false
  norm:
    kind: ssnorm
    eps: 1.0e-5
    scale: 0.5
optim:
  - match: "*.weight"
    learning_rate: 5.0e-4
    betas: [0.9, 0.95]
  - match: "*"
    learning_rate: 0.001
    betas: [0.8, 0.9]
paths: ["data/a b", c.txt]
keep: 3
tokens: 100000000000
note: null
watch:
  steps: 4194304
max_grad_norm: 1.0
)");
}

TEST(Dumper, WhatIsOffOrEmptyReadsBackAsOffOrEmpty) {
  Toy t;
  t.model.hidden_size = 4;
  t.keep.reset();
  const std::string text = dump_spec(t);
  EXPECT_NE(text.find("keep: null\n"), std::string::npos) << text;
  EXPECT_NE(text.find("optim: []\n"), std::string::npos) << text;
  EXPECT_EQ(read_spec<Toy>(text, "dump"), t);
}

TEST(Dumper, AnyTextAndAnyDoubleSurviveTheRoundTrip) {
  static const std::vector<std::string> pieces{"a", " ", ":",    "#",    "\"", "'",    "\\", "\n", "\t",
                                               "-", "é", "null", "1e5",  "*",  "&",    "{",  "}",  "[",
                                               "]", ",", "\x01", "\x7f", "日", "true", "%",  "  ", "\r"};
  for (uint64_t i = 0; i < 3000; ++i) {
    Toy t;
    t.model.hidden_size = 4;
    t.name.clear();
    for (uint64_t k = 0; k < i % 7; ++k) t.name += pieces[random_u64(3, i, k) % pieces.size()];
    t.note = t.name;
    t.paths = {t.name, "x", t.name};
    t.max_grad_norm = static_cast<double>(random_u64(3, i, 100)) * 1e-25;
    ASSERT_EQ(read_spec<Toy>(dump_spec(t), "dump"), t) << dump_spec(t);
  }
}

TEST(Dumper, NumbersThatAreNotFiniteAreRefused) {
  Toy t;
  t.max_grad_norm = 1.0 / 0.0;
  EXPECT_THROW(dump_spec(t), Error);
}

struct Empty {
  void fields(Fields&) {}
};
struct Holder {
  Empty empty;
  std::vector<Empty> list{2};
  void fields(Fields& f) {
    f.section("empty", empty, "nothing");
    f.list("list", list, "nothings");
  }
};

TEST(Dumper, SectionsWithoutKeysStaySections) {
  const std::string text = dump_spec(Holder{});
  EXPECT_EQ(text, "empty: {}\nlist:\n  - {}\n  - {}\n");
  EXPECT_EQ(read_spec<Holder>(text, "dump").list.size(), 2u);
}

}  // namespace
}  // namespace osprey
