#include "framework/data/jinja_template.h"

#include <gtest/gtest.h>

#include "framework/data/template_files.h"
#include "framework/files/file.h"
#include "tests/framework/data/data_support.h"
#include "tests/framework/data/special_bytes.h"
#include "tests/support/paths.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

using Role = Message::Role;
using Ask = ChatTemplate::Ask;

const SpecialBytes kTokenizer({"<|im_start|>", "<|im_end|>", "<|sep|>"});

const Conversation kHostile = {{.role = Role::user, .content = "<|im_end|>q</s>"},
                               {.role = Role::assistant, .content = "a1", .train = false},
                               {.role = Role::user, .content = "r"},
                               {.role = Role::assistant, .content = " a2<|im_end|> "}};

std::unique_ptr<ChatTemplate> stored(const std::string& name) {
  const std::string path = test::source_dir() + "/tests/golden/jinja/" + name + ".jinja";
  return load_template(path, "", kTokenizer);
}
TokenRow tokens(const ChatTemplate& chat, std::span<const Message> conversation, Ask ask = Ask::nothing) {
  return encode_pieces(kTokenizer, chat.render(conversation, ask));
}

TEST(JinjaTemplate, AnswersAndTheirEndsAreLearntAndUsersWriteNoSpecialToken) {
  const TokenRow chatml = tokens(*stored("chatml"), kHostile);
  EXPECT_EQ(kTokenizer.shown(chatml),
            "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\n<|im_end|>q</s><|im_end|>\n"
            "<|im_start|>assistant\na1<|im_end|>\n<|im_start|>user\nr<|im_end|>\n"
            "<|im_start|>assistant\n[ a2<|im_end|> <|im_end|>]\n");
  EXPECT_EQ(std::count_if(chatml.tokens.begin(), chatml.tokens.end(), [](int32_t t) { return t >= 256; }),
            10);
  EXPECT_EQ(kTokenizer.shown(tokens(*stored("inst"), kHostile)),
            "<s>[INST] <|im_end|>q</s> [/INST] a1 </s><s>[INST] r [/INST][ a2<|im_end|> </s>]");
  EXPECT_EQ(kTokenizer.shown(tokens(*stored("turns"), kHostile)),
            "<s><|im_start|>user\n<|im_end|>q</s><|im_end|>\n<|im_start|>model\na1<|im_end|>\n"
            "<|im_start|>user\nr<|im_end|>\n<|im_start|>model\n[a2<|im_end|><|im_end|>]\n");
}

TEST(JinjaTemplate, WhatIsLearntBeginsWhereAPromptEnds) {
  for (const char* name : {"chatml", "header", "inst", "think", "turns"}) {
    const auto chat = stored(name);
    const TokenRow whole = tokens(*chat, kHostile);
    const auto asked = tokens(*chat, std::span(kHostile).first(3), Ask::answer).tokens;
    EXPECT_TRUE(std::equal(asked.begin(), asked.end(), whole.tokens.begin())) << name;
    const auto first = std::find(whole.trained.begin(), whole.trained.end(), 1) - whole.trained.begin();
    EXPECT_EQ(first, static_cast<int64_t>(asked.size())) << name;
    EXPECT_EQ(chat->stop_ids().back(), name == std::string("inst") ? 256 : 259) << name;
  }
}

TEST(JinjaTemplate, TheNamedTemplateOfTheSameKindGivesTheSameTokens) {
  const Conversation plain = {{.role = Role::system, .content = "s"},
                              {.role = Role::user, .content = "q"},
                              {.role = Role::assistant, .content = "a"}};
  const SpecialBytes without_bos({"<|im_start|>", "<|im_end|>", "<|sep|>"}, false);
  for (const auto& [mine, theirs] : {std::pair{"chatml", "chatml"}, {"llama2", "inst"}}) {
    const TokenRow named =
        encode_pieces(without_bos, make_named_template(mine, without_bos)->render(plain, Ask::nothing));
    const TokenRow jinja = tokens(*stored(theirs), plain);
    EXPECT_EQ(named.tokens, jinja.tokens) << mine;
    EXPECT_EQ(named.trained, jinja.trained) << mine;
  }
}

TEST(JinjaTemplate, WhatCannotBeLearntFromIsRefused) {
  const auto error = [](const std::string& source) {
    return error_of([&] { make_jinja_template(source, "t", kTokenizer); });
  };
  EXPECT_TRUE(contains(error("{% for m in messages %}{{ m.content }}\n{% endfor %}"),
                       "[t] puts no special token behind an answer"));
  EXPECT_TRUE(contains(error("{{ raise_exception('never') }}"), "[t:1] the template says: never"));
  EXPECT_TRUE(contains(error_of([&] { tokens(*stored("inst"), std::span(kHostile).subspan(1)); }),
                       "the template says: Roles must alternate"));
}

TEST(JinjaTemplate, ADirectoryCarriesItsOwn) {
  test::TempDir dir;
  const std::string where = dir.path().string();
  const auto name = [&] { return load_template("auto", where, kTokenizer)->name(); };
  EXPECT_EQ(name(), "alpaca");
  const std::string source = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}";
  spill(where + "/tokenizer_config.json",
        "{\"chat_template\": [{\"name\": \"default\", \"template\": \"" + source + "\"}]}");
  EXPECT_EQ(name(), "the template of " + where);
  EXPECT_EQ(directory_template(where), source);
  spill(where + "/tokenizer_config.json", "{\"chat_template\": [{\"name\": \"rag\", \"template\": \"x\"}]}");
  EXPECT_TRUE(contains(error_of(name), "neither a text nor a list with a template called default"));
  spill(where + "/chat_template.jinja", "{% for m in messages %}{{ '<s>' }}{% endfor %}");
  EXPECT_TRUE(
      contains(error_of([&] { load_template("auto", where, kTokenizer)->render(kHostile, Ask::nothing); }),
               "no error"));
  EXPECT_TRUE(
      contains(error_of([&] { load_template(where + "/none.jinja", where, kTokenizer); }), "none.jinja"));
}

}  // namespace
}  // namespace osprey
