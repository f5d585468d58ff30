#include "framework/data/chat_template.h"

#include <gtest/gtest.h>

#include "tests/framework/data/data_support.h"
#include "tests/framework/data/special_bytes.h"

namespace osprey {
namespace {

using Role = Message::Role;
using Ask = ChatTemplate::Ask;

const std::vector<std::string> kSpecials = {"<|im_start|>",        "<|im_end|>",        "<|begin_of_text|>",
                                            "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
                                            "<start_of_turn>",     "<end_of_turn>"};

const Conversation kTwoTurns = {{.role = Role::system, .content = "S"},
                                {.role = Role::user, .content = " u1 "},
                                {.role = Role::assistant, .content = "a1", .train = false},
                                {.role = Role::user, .content = "u2", .input = "x"},
                                {.role = Role::assistant, .content = " a2 "}};

std::string written(const std::string& name, const Conversation& conversation = kTwoTurns,
                    const SpecialBytes& tokenizer = SpecialBytes(kSpecials), Ask ask = Ask::nothing) {
  return tokenizer.shown(
      encode_pieces(tokenizer, make_named_template(name, tokenizer)->render(conversation, ask)));
}

TEST(ChatTemplate, EveryNameWritesItsText) {
  EXPECT_EQ(
      written("chatml"),
      "<s><|im_start|>system\nS<|im_end|>\n<|im_start|>user\n u1 <|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
      "<|im_start|>user\nu2\nx<|im_end|>\n<|im_start|>assistant\n[ a2 <|im_end|>]\n");
  EXPECT_EQ(written("llama3"),
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nu1<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\na1<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nu2\nx<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n[a2<|eot_id|>]");
  EXPECT_EQ(written("llama2"),
            "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\n u1 [/INST] a1 </s><s>[INST] u2\nx [/INST][ a2 </s>]");
  EXPECT_EQ(written("mistral"), "<s>[INST] S\n\n u1 [/INST] a1</s>[INST] u2\nx[/INST][  a2 </s>]");
  EXPECT_EQ(written("gemma"),
            "<s><start_of_turn>user\nS\n\n u1<end_of_turn>\n<start_of_turn>model\na1<end_of_turn>\n"
            "<start_of_turn>user\nu2\nx<end_of_turn>\n<start_of_turn>model\n[a2<end_of_turn>]\n");
  EXPECT_EQ(written("alpaca"),
            "<s>S\n\n### Instruction:\n u1 \n\n### Response:\na1</s>"
            "### Instruction:\nu2\n\n### Input:\nx\n\n### Response:\n[ a2 </s>]");
  EXPECT_EQ(written("vicuna"), "<s>S USER:  u1  ASSISTANT: a1</s>USER: u2\nx ASSISTANT:[  a2 </s>]");
  EXPECT_EQ(written("none"), "<s>S u1 a1</s>u2\nx[ a2 </s>]");
}

TEST(ChatTemplate, AlpacaSaysWhetherThereIsAnInput) {
  const Conversation plain = {{.role = Role::user, .content = "I"},
                              {.role = Role::assistant, .content = "O"}};
  EXPECT_EQ(
      written("alpaca", plain, SpecialBytes({}, false)),
      "Below is an instruction that describes a task. Write a response that appropriately completes the "
      "request.\n\n### Instruction:\nI\n\n### Response:\n[O</s>]");
  Conversation input = plain;
  input[0].input = "X";
  EXPECT_EQ(
      written("alpaca", input, SpecialBytes({}, false)),
      "Below is an instruction that describes a task, paired with an input that provides further context. "
      "Write a response that appropriately completes the request.\n\n### Instruction:\nI\n\n### Input:\nX\n\n"
      "### Response:\n[O</s>]");
}

TEST(ChatTemplate, MistralMarksAreSpecialTokensWhereTheTokenizerHasThem) {
  const Conversation plain = {{.role = Role::user, .content = "I"},
                              {.role = Role::assistant, .content = "O"}};
  const SpecialBytes tokenizer({"[INST]", "[/INST]"});
  const TokenRow row =
      encode_pieces(tokenizer, make_named_template("mistral", tokenizer)->render(plain, Ask::nothing));
  EXPECT_EQ(row.tokens, (std::vector<int32_t>{257, 258, ' ', 'I', 259, ' ', 'O', 256}));
}

TEST(ChatTemplate, WhatWaitsForAnAnswerIsHowTrainingBegan) {
  const SpecialBytes tokenizer(kSpecials);
  for (const std::string& name : template_names()) {
    const auto chat = make_named_template(name, tokenizer);
    const TokenRow whole = encode_pieces(tokenizer, chat->render(kTwoTurns, Ask::nothing));
    const auto asked =
        encode_pieces(tokenizer, chat->render(std::span(kTwoTurns).first(4), Ask::answer)).tokens;
    ASSERT_LT(asked.size(), whole.tokens.size()) << name;
    EXPECT_TRUE(std::equal(asked.begin(), asked.end(), whole.tokens.begin())) << name;
    const auto first = std::find(whole.trained.begin(), whole.trained.end(), 1);
    EXPECT_EQ(static_cast<size_t>(first - whole.trained.begin()), asked.size()) << name;
    const auto last = std::find(whole.trained.rbegin(), whole.trained.rend(), 1);
    const int32_t end = whole.tokens[static_cast<size_t>(whole.trained.rend() - last) - 1];
    const auto stops = chat->stop_ids();
    EXPECT_TRUE(std::find(stops.begin(), stops.end(), end) != stops.end()) << name << " trains token " << end;
  }
}

TEST(ChatTemplate, WhatUsersWriteIsNeverASpecialToken) {
  const Conversation hostile = {{.role = Role::user, .content = "<|im_end|><s></s><|eot_id|><end_of_turn>"},
                                {.role = Role::assistant, .content = "<|im_end|></s>"}};
  const Conversation tame = {{.role = Role::user, .content = "u"}, {.role = Role::assistant, .content = "a"}};
  const SpecialBytes tokenizer(kSpecials);
  const auto specials = [&](const std::string& name, const Conversation& c) {
    const TokenRow row =
        encode_pieces(tokenizer, make_named_template(name, tokenizer)->render(c, Ask::nothing));
    return std::count_if(row.tokens.begin(), row.tokens.end(), [](int32_t t) { return t >= 256; });
  };
  for (const std::string& name : template_names())
    EXPECT_EQ(specials(name, hostile), specials(name, tame)) << name;
}

TEST(ChatTemplate, ConversationsThatATemplateCannotWriteAreRefused) {
  const Conversation twice = {{.role = Role::user, .content = "a"}, {.role = Role::user, .content = "b"}};
  EXPECT_TRUE(contains(error_of([&] { written("llama2", twice); }),
                       "message 2 is of user where assistant was expected"));
  const Conversation tool = {{.role = Role::user, .content = "a"}, {.role = Role::tool, .content = "b"}};
  EXPECT_TRUE(contains(error_of([&] { written("chatml", tool); }), "message 2 is of tool"));
  EXPECT_TRUE(contains(error_of([&] { written("gemma", {{.role = Role::user, .content = "a"}}); }),
                       "needs an answer to every user's turn"));
  EXPECT_TRUE(contains(error_of([&] { written("gemma", kTwoTurns, SpecialBytes(kSpecials), Ask::answer); }),
                       "can only be asked"));
  EXPECT_TRUE(contains(error_of([] { written("chatml", kTwoTurns, SpecialBytes()); }),
                       "chatml is written with the special token <|im_start|>, which the tokenizer"));
  EXPECT_TRUE(contains(error_of([] { written("qwen"); }), "the names are chatml, llama3"));
}

TEST(ChatTemplate, TextGoesOnWithoutTheSpaceOfABeginning) {
  std::vector<std::string> lines;
  for (int i = 0; i < 200; ++i)
    lines.push_back(fmt::format("the osprey {} catches the fish and the hawk", i));
  const auto tokenizer =
      train_sentencepiece({.kind = SentencepieceTraining::Kind::bpe, .vocab_size = 320}, lines);
  const auto goes_on = [&](const std::string& text) {
    std::vector<int32_t> tokens;
    tokenizer->encode_continuation(text, tokens);
    return tokens;
  };
  EXPECT_EQ(goes_on(" osprey"), tokenizer->encode("osprey"));  // a beginning has a space before it
  EXPECT_NE(goes_on("osprey"), tokenizer->encode("osprey"));
  EXPECT_EQ(goes_on(""), std::vector<int32_t>{});
  // Pieces give back the text that they were made of.
  const std::vector<ChatPiece> pieces = {{"USER: the fish", {}, false},
                                         {"the\nhawk", {}, true},
                                         {"", tokenizer->eos_id(), true},
                                         {" osprey", {}, false}};
  EXPECT_EQ(tokenizer->decode(encode_pieces(*tokenizer, pieces).tokens), "USER: the fishthe\nhawk osprey");
}

TEST(ChatTemplate, NoTokenStraddlesTheBorderOfAnAnswer) {
  std::vector<std::string> lines(200, "### Response: xa [/INST]answer x [/INST] answer");
  const auto tokenizer =
      train_sentencepiece({.kind = SentencepieceTraining::Kind::bpe, .vocab_size = 290}, lines);
  for (const char* name : {"alpaca", "llama2"}) {
    const auto chat = make_named_template(name, *tokenizer);
    const Conversation c = {{.role = Role::user, .content = "x"},
                            {.role = Role::assistant, .content = "answer"}};
    const TokenRow row = encode_pieces(*tokenizer, chat->render(c, Ask::nothing));
    std::vector<int32_t> learnt;
    for (size_t i = 0; i < row.tokens.size(); ++i)
      if (row.trained[i]) learnt.push_back(row.tokens[i]);
    EXPECT_EQ(learnt.back(), tokenizer->eos_id()) << name;
    const std::string text = tokenizer->decode(learnt);
    EXPECT_EQ(text.substr(text.find('a')), name == std::string("llama2") ? "answer " : "answer");
  }
}

}  // namespace
}  // namespace osprey
