#include "models/layers/layer_list.h"

#include <gtest/gtest.h>

namespace osprey {
namespace {

using List = std::vector<std::string>;

TEST(LayerList, HoldsNumbersAndRanges) {
  const List list = {"0-2", "5"};
  EXPECT_EQ(layer_list_problem(list, 6), "");
  std::vector<bool> marked;
  for (int64_t l = 0; l < 8; ++l) marked.push_back(lists_layer(list, l));
  EXPECT_EQ(marked, (std::vector<bool>{true, true, true, false, false, true, false, false}));
  EXPECT_EQ(layer_list(marked), list);
  EXPECT_EQ(layer_list({false, false}), List{});
  EXPECT_EQ(layer_list({true, false, true}), (List{"0", "2"}));
}

TEST(LayerList, SaysWhatIsNoLayer) {
  for (const char* bad : {"", "-", "3-1", "-1", "a", "1-", "1 ", "99999999999999999999", "1-2-3"})
    EXPECT_NE(layer_list_problem({bad}, 6).find("neither"), std::string::npos) << bad;
  EXPECT_EQ(layer_list_problem({"0-6"}, 6), "names layer 6, the model has layers 0 to 5");
}

}  // namespace
}  // namespace osprey
