#include "framework/config/manual.h"

#include <gtest/gtest.h>

#include "kernels/core/check.h"
#include "tests/framework/config/toy_spec.h"

namespace osprey {
namespace {

const ManualEntry& entry(const std::vector<ManualEntry>& entries, const std::string& path) {
  for (const ManualEntry& e : entries)
    if (e.path == path) return e;
  fail("test", "no entry {}", path);
}

TEST(Manual, ListsEveryKeyWithTypeDefaultLimitsAndCondition) {
  const auto entries = manual_of<toy::Toy>();
  EXPECT_EQ(entry(entries, "name").fallback, "run");
  EXPECT_EQ(entry(entries, "model.hidden_size").fallback, "required");
  EXPECT_EQ(entry(entries, "model.heads").limits, "at least 1");
  EXPECT_EQ(entry(entries, "model.norm.kind").type, "one of rmsnorm, ssnorm");
  EXPECT_EQ(entry(entries, "model.norm.scale").condition, "kind is ssnorm");
  EXPECT_EQ(entry(entries, "model.norm.scale").fallback, "off");
  EXPECT_EQ(entry(entries, "optim.N.match").fallback, "required");
  EXPECT_EQ(entry(entries, "optim.N.betas").fallback, "[0.9, 0.95]");
  EXPECT_EQ(entry(entries, "keep").fallback, "3");
  EXPECT_EQ(entry(entries, "tokens").fallback, "off");
  EXPECT_EQ(entry(entries, "watch").type, "section, or null");
  EXPECT_EQ(entry(entries, "watch.steps").fallback, "10");
}

TEST(Manual, AKeyIsFoundByPathWithOrWithoutIndexOrByItsLastWord) {
  const auto entries = manual_of<toy::Toy>();
  for (const char* key :
       {"optim.N.learning_rate", "optim.3.learning_rate", "optim.learning_rate", "learning_rate"})
    EXPECT_EQ(select(entries, key).at(0).path, "optim.N.learning_rate") << key;
  EXPECT_EQ(select(entries, "model.norm").size(), 3u);
  try {
    select(entries, "model.hiden_size");
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(),
                 "[fields] no recipe key is called model.hiden_size; did you mean model.hidden_size?");
  }
}

TEST(Manual, TextAndMarkdownSayTheSame) {
  const auto entries = select(manual_of<toy::Toy>(), "model.norm.scale");
  EXPECT_EQ(manual_text(entries),
            "model.norm.scale\n    number, or null, more than 0; default off; only when kind is ssnorm\n    "
            "first value\n");
  EXPECT_EQ(manual_markdown(entries),
            "## model\n\n| key | type | default | meaning |\n|---|---|---|---|\n"
            "| `model.norm.scale` | number, or null, more than 0 | off | first value (only when kind is "
            "ssnorm) |\n");
}

}  // namespace
}  // namespace osprey
