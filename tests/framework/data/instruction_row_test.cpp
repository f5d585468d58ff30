#include "framework/data/instruction_row.h"

#include <gtest/gtest.h>

#include "tests/support/fuzz.h"
#include "tests/support/refusal.h"

namespace osprey {
namespace {

using test::refusal;
using Role = Message::Role;

/// The row as one line of text, or why it was dropped.
std::string read(const std::string& text, InstructionFormat format = InstructionFormat::automatic) {
  if (format == InstructionFormat::automatic) format = sniff_format("f:1", text);
  const auto row = parse_row("f:1", text, format);
  if (const auto* dropped = std::get_if<DroppedRow>(&row))
    return "dropped: " + dropped->reason + (dropped->detail.empty() ? "" : " | " + dropped->detail);
  std::string line;
  if (const auto* turns = std::get_if<Conversation>(&std::get<InstructionRow>(row)))
    for (const Message& m : *turns)
      line += fmt::format("{}={}{}{} ", name(m.role), m.content, m.input.empty() ? "" : "+" + m.input,
                          m.train ? "" : "!");
  else if (const auto* passages = std::get_if<std::vector<Passage>>(&std::get<InstructionRow>(row)))
    for (const Passage& p : *passages) line += p.text + (p.train ? "" : "!") + " ";
  else
    for (size_t i = 0; i < std::get<TokenRow>(std::get<InstructionRow>(row)).tokens.size(); ++i) {
      const TokenRow& t = std::get<TokenRow>(std::get<InstructionRow>(row));
      line += fmt::format("{}{} ", t.tokens[i], t.trained[i] ? "" : "!");
    }
  return line;
}

TEST(InstructionRow, EveryFormatIsToldByItsKeys) {
  EXPECT_EQ(read(R"({"instruction":"I","input":"X","output":"O","text":"whole"})"), "user=I+X assistant=O ");
  EXPECT_EQ(read(R"({"instruction":"I","input":null,"output":"O","system":"S","history":[["a","b"]]})"),
            "system=S user=a assistant=b user=I assistant=O ");
  EXPECT_EQ(
      read(R"({"conversations":[{"from":"human","value":"Q"},{"from":"gpt","value":"A"}],"system":"S"})"),
      "system=S user=Q assistant=A ");
  EXPECT_EQ(
      read(R"({"messages":[{"role":"user","content":[{"type":"text","text":"Q"},{"type":"text","text":"2"}]},
                     {"role":"assistant","content":"A","weight":0},{"role":"user","content":"R"},
                     {"role":"assistant","content":"B","train":true}]})"),
      "user=Q2 assistant=A! user=R assistant=B ");
  EXPECT_EQ(read(R"({"prompt":"Q","completion":"A"})"), "user=Q assistant=A ");
  EXPECT_EQ(read(R"({"prompt":[{"role":"user","content":"Q"},{"role":"assistant","content":"A"},
                     {"role":"user","content":"R"}],"completion":[{"role":"assistant","content":"B"}]})"),
            "user=Q! assistant=A! user=R! assistant=B ");
  EXPECT_EQ(read(R"({"text":"T"})"), "T ");
  EXPECT_EQ(read(R"({"segments":[{"label":false,"text":"Q"},{"label":true,"text":"A"}]})"), "Q! A ");
  EXPECT_EQ(read(R"({"input_ids":[1,5,6],"labels":[-100,5,6]})"), "1! 5 6 ");
  EXPECT_EQ(read(R"({"input_ids":[1,5]})"), "1 5 ");
}

TEST(InstructionRow, WhatCannotBeUsedSaysWhy) {
  const auto dropped = [](const std::string& text, InstructionFormat format, const std::string& why) {
    EXPECT_EQ(read(text, format), "dropped: " + why) << text;
  };
  using enum InstructionFormat;
  dropped(R"({"instruction":"I"})", alpaca, "`output` is missing");
  dropped(R"({"instruction":"I","output":" \n"})", alpaca, "an answer is empty");
  dropped(R"({"instruction":7,"output":"O"})", alpaca, "`instruction` is not text");
  dropped(R"({"instruction":"I","output":"O","history":[["a"]]})", alpaca,
          "an entry of `history` is not a pair of texts");
  dropped(R"([1])", alpaca, "it is not a JSON object");
  dropped(R"({"inst":"I"})", alpaca, "`instruction` is missing");
  dropped(R"({"messages":[]})", messages, "it does not end with an answer");
  dropped(R"({"messages":[{"role":"user","content":"Q"}]})", messages, "it does not end with an answer");
  dropped(R"({"messages":[{"role":"assistant","content":"A"}]})", messages, "nobody asks anything");
  dropped(R"({"messages":[{"role":"robot","content":"A"}]})", messages, "a role is unknown | role 'robot'");
  dropped(R"({"messages":[{"role":"user","content":"Q"},{"role":"system","content":"S"},
              {"role":"assistant","content":"A"}]})",
          messages, "a system message is not the first");
  dropped(R"({"messages":[{"role":"user","content":[{"type":"image_url"}]}]})", messages,
          "a content part is not text | type 'image_url'");
  dropped(R"({"messages":[{"role":"assistant","content":"","tool_calls":[{"id":1}]}]})", messages,
          "tool calls are not supported");
  dropped(R"({"messages":[{"role":"user","content":"Q","weight":0.5}]})", messages,
          "`weight` of a message is neither 0 nor 1");
  dropped(R"({"segments":[{"label":1,"text":"Q"}]})", input_output,
          "`label` of a segment is not true or false");
  dropped(R"({"input_ids":[1,2],"labels":[1]})", tokenized,
          "`labels` and `input_ids` differ in length | 1 and 2");
  dropped(R"({"input_ids":[1,2],"labels":[1,3]})", tokenized,
          "a label is neither -100 nor its token | label 3 of token 2");
  dropped(R"({"input_ids":[-1]})", tokenized, "a token is outside the vocabulary | -1");
  EXPECT_NE(read(R"({"text":"a")", completion).find("not fit to be read | is not valid JSON"),
            std::string::npos);
  EXPECT_NE(read(R"({"text":"a","text":"b"})", completion).find("has the key 'text' twice"),
            std::string::npos);
  EXPECT_NE(read("{\"text\":\"\xff\"}", completion).find("is not valid JSON"), std::string::npos);
  EXPECT_NE(read("{\"text\":\"" + std::string(17 << 20, 'x') + "\"}", completion).find("longer than 16 MiB"),
            std::string::npos);
}

TEST(InstructionRow, HalfCharactersBecomeTheSignOfAMissingOne) {
  EXPECT_EQ(read(R"({"text":"a\ud83db"})"),
            "a\xef\xbf\xbd"
            "b ");
}

TEST(InstructionRow, FormatsDoNotMixAndUnknownKeysListTheKnown) {
  EXPECT_NE(refusal([] {
              read(R"({"text":"T"})", InstructionFormat::alpaca);
            }).find("[f:1] this row is of format completion, but the file began as alpaca"),
            std::string::npos);
  EXPECT_NE(refusal([] { read(R"({"chosen":"T"})"); }).find("messages (messages), sharegpt (conversations)"),
            std::string::npos);
}

TEST(InstructionRow, AnyTextIsARowOrRefused) {
  const std::vector<std::string> seeds = {
      R"({"instruction":"I","input":"X","output":"O","history":[["a","b"]]})",
      R"({"messages":[{"role":"user","content":[{"type":"text","text":"Q"}]},{"role":"assistant","content":"A","weight":0}]})",
      R"({"conversations":[{"from":"human","value":"Q"},{"from":"gpt","value":"A"}]})",
      R"({"segments":[{"label":false,"text":"Q"}]})", R"({"input_ids":[1,5,6],"labels":[-100,5,6]})"};
  const auto count = test::fuzz(seeds, {"null", "\"train\":", "[", "{", "-100", "\\ud83d"},
                                [](const std::string& input) { read(input); });
  EXPECT_GT(count.accepted, 0);
  EXPECT_GT(count.refused, 0);
}

}  // namespace
}  // namespace osprey
