#include "framework/data/jinja/render.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "framework/files/file.h"
#include "tests/framework/data/data_support.h"
#include "tests/support/fuzz.h"
#include "tests/support/paths.h"

namespace osprey::jinja {
namespace {

Dict variables(const nlohmann::json& messages, bool ask) {
  List list;
  char16_t number = 0;
  for (const auto& m : messages)
    list.push_back(make_dict({{"role", Text(m["role"].get<std::string>())},
                              {"content", Text(m["content"].get<std::string>(), ++number)}}));
  return {{"messages", make_list(std::move(list))},
          {"add_generation_prompt", ask},
          {"tools", None{}},
          {"bos_token", Text("<s>")},
          {"eos_token", Text("</s>")}};
}

std::string rendered(const std::string& source, const Dict& with = {}) {
  return render(parse(source, "t"), with, "t").bytes;
}

TEST(Jinja, WritesWhatTransformersWrites) {
  const std::string folder = test::source_dir() + "/tests/golden/jinja/";
  const auto golden = nlohmann::json::parse(read_file(folder + "golden.json", 1 << 20));
  int compared = 0;
  for (const auto& [file, cases] : golden["rendered"].items()) {
    const Block block = parse(read_file(folder + file, 1 << 20), file);
    for (const auto& [name, expected] : cases.items()) {
      const auto& conversation = golden["cases"][name];
      const Dict with = variables(conversation["messages"], conversation["ask"]);
      if (expected.is_object()) {
        const std::string said = error_of([&] { render(block, with, file); });
        EXPECT_TRUE(contains(said, "the template says: " + expected["error"].get<std::string>()))
            << file << said;
      } else {
        EXPECT_EQ(render(block, with, file).bytes, expected.get<std::string>()) << file << " " << name;
      }
      ++compared;
    }
  }
  EXPECT_EQ(compared, 7 * 5);
}

TEST(Jinja, EveryByteKnowsWhoWroteIt) {
  const Dict with = variables(nlohmann::json::parse(R"([{"role": "user", "content": " a,b "}])"), false);
  const Text text =
      render(parse("<{{ messages[0].content | trim }}>{{ messages[0].content.split(',')[1] ~ '!' }}"
                   "{{ messages[0].content | replace(',', ';') }}{{ messages | tojson }}",
                   "t"),
             with, "t");
  ASSERT_TRUE(text.bytes.starts_with("<a,b>b ! a;b [{"));
  const auto who = [&](size_t i) { return static_cast<int>(text.origin[i]); };
  const std::vector<int> expected = {0, 1, 1, 1, 0, 1, 1, 0, 1, 1, 0, 1, 1};
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(who(i), expected[i]) << i;
  for (size_t i = expected.size(); i < text.size(); ++i) EXPECT_EQ(who(i), Text::of_data) << i;
}

TEST(Jinja, WhatIsNotSupportedIsNamedWithItsLine) {
  const auto error = [](const std::string& source) { return error_of([&] { rendered(source); }); };
  const std::pair<const char*, const char*> cases[] = {
      {"a\n{% macro f() %}{% endmacro %}", "[t:2] the tag macro is not supported"},
      {"{% set x %}a{% endset %}", "[t:1] set needs one name"},
      {"{{ 1 | tojosn }}", "the filter tojosn is not supported"},
      {"{{ 1 is divisibleby(2) }}", "the test divisibleby is not supported"},
      {"{{ 'a'.zfill(3) }}", "text has no method zfill"},
      {"{{ f(1) }}", "the function f is not supported"},
      {"{{ strftime_now('%d') }}", "must not change from day to day"},
      {"{{ a.b }}", "a is undefined, so it has no b"},
      {"{{ [1] }}", "a list would be written as Python writes it"},
      {"{{ 1 + 'a' }}", "the operator + stands between a number and text"},
      {"{{ 9223372036854775807 + 1 }}", "a number is too large"},
      {"{{ 1 // 0 }}", "// by 0"},
      {"{{ 2 ** 3 }}", "the operator ** is not supported"},
      {"{{ 1 < 2 < 3 }}", "a chain of comparisons is not supported"},
      {"{{ (1, 2) }}", "tuples are not supported"},
      {"{{ 'é' | upper }}", "for ASCII text only"},
      {"{% if 1 %}a", "endif is missing before the end of the template"},
      {"{% endif %}", "nothing is open that '' could close"},
      {"{{ 1", "a tag is not closed by }}"},
      {"{{ 'a }}", "a text is not closed by '"},
      {"{{ $ }}", "'$' begins no word"},
      {"{%+ if 1 %}{% endif %}", "the sign + of a tag is not supported"},
      {"{# a", "a comment is not closed"},
      {"{% set x.y = 1 %}", "x is no namespace"},
      {"{% set n = namespace() %}{% set n.x = [n] %}", "a namespace inside another value is not supported"},
      {"{% for a, b in [1] %}{% endfor %}", "2 names are given for a number"},
  };
  for (const auto& [source, expected] : cases)
    EXPECT_TRUE(contains(error(source), expected)) << source << "\n" << error(source);
}

TEST(Jinja, WorkIsBounded) {
  const auto error = [](const std::string& source) { return error_of([&] { rendered(source); }); };
  EXPECT_TRUE(contains(error("{% for i in range(2000) %}{% for j in range(2000) %}{% endfor %}{% endfor %}"),
                       "takes more than"));
  EXPECT_TRUE(contains(
      error("{% set n = namespace(x='0123456789abcdef') %}{% for i in range(40) %}{% set n.x = n.x + n.x %}"
            "{% endfor %}"),
      "MiB of text"));
  EXPECT_TRUE(contains(
      error("{% set n = namespace(x=[]) %}{% for i in range(100) %}{% set n.x = [n.x] %}{% endfor %}"),
      "nested deeper than 64"));
  EXPECT_TRUE(contains(error("{{ " + std::string(5000, '(') + "1" + std::string(5000, ')') + " }}"),
                       "nested deeper than"));
  std::string chain = "{{ 1";
  for (int i = 0; i < 5000; ++i) chain += " + 1";
  EXPECT_TRUE(contains(error(chain + " }}"), "holds more than 500 operators"));
  EXPECT_TRUE(contains(error(std::string(2 << 20, 'a')), "longer than a template can be"));
}

TEST(Jinja, AnyTextIsRenderedOrRefused) {
  std::vector<std::string> seeds;
  for (const char* name : {"chatml", "header", "select", "think", "words"})
    seeds.push_back(read_file(test::source_dir() + "/tests/golden/jinja/" + name + ".jinja", 1 << 20));
  const Dict with = variables(
      nlohmann::json::parse(R"([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])"),
      false);
  const auto count = test::fuzz(
      seeds, {"{{", "}}", "{%", "%}", "-", "[::-1]", " | list", "loop.", "namespace(", "'", "not "},
      [&](const std::string& input) { render(parse(input, "t"), with, "t"); });
  EXPECT_GT(count.accepted, 0);
  EXPECT_GT(count.refused, 0);
}

}  // namespace
}  // namespace osprey::jinja
