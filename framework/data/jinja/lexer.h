#pragma once
// A template cut into text and words.

#include <string>
#include <string_view>
#include <vector>

namespace osprey::jinja {

struct Token {
  enum class Kind {
    text,         // between tags
    print_begin,  // {{
    print_end,
    block_begin,  // {%
    block_end,
    name,
    string,  // unescaped
    integer,
    real,
    sign,  // operators and brackets
    end,
  };
  Kind kind;
  int line;
  std::string text;
};

/// Errors: throws "[name:line] ..." for tags that are not closed and characters that begin nothing.
std::vector<Token> tokenize(std::string_view source, const std::string& name);

}  // namespace osprey::jinja
