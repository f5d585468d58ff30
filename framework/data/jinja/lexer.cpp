#include "framework/data/jinja/lexer.h"

#include <algorithm>
#include <array>

#include "framework/data/jinja/value.h"
#include "framework/files/file.h"
#include "kernels/core/check.h"

namespace osprey::jinja {
namespace {

using Kind = Token::Kind;

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

class Lexer {
 public:
  Lexer(std::string_view source, const std::string& name) : source_(source), name_(name) {
    if (source_.ends_with('\n')) source_.remove_suffix(1);  // as Jinja does
  }

  std::vector<Token> run() {
    while (at_ < source_.size()) {
      read_text();
      if (at_ < source_.size()) read_tag();
    }
    add(Kind::end, "");
    return std::move(tokens_);
  }

 private:
  std::string where() const { return fmt::format("{}:{}", name_, line_); }
  void add(Kind kind, std::string text) { tokens_.push_back({kind, line_, std::move(text)}); }
  void advance(size_t count) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<int64_t>(at_),
                                         source_.begin() + static_cast<int64_t>(at_ + count), '\n'));
    at_ += count;
  }
  bool starts(std::string_view text) const { return source_.substr(at_).starts_with(text); }

  /// Does only white space stand before `at` on its line?
  bool begins_line(size_t at) const {
    while (at > 0 && (source_[at - 1] == ' ' || source_[at - 1] == '\t')) --at;
    return at == 0 || source_[at - 1] == '\n';
  }

  /// Text up to the next tag, trimmed as the tags on both sides ask.
  void read_text() {
    size_t end = at_;
    while (end < source_.size() &&
           !(source_[end] == '{' && end + 1 < source_.size() &&
             (source_[end + 1] == '{' || source_[end + 1] == '%' || source_[end + 1] == '#')))
      ++end;
    std::string text(source_.substr(at_, end - at_));
    const bool tag = end < source_.size(), minus = tag && end + 2 < source_.size() && source_[end + 2] == '-';
    if (strip_next_)
      text.erase(
          0, std::min(text.size(), static_cast<size_t>(std::find_if_not(text.begin(), text.end(), is_space) -
                                                       text.begin())));
    else if (after_block_ && text.starts_with('\n'))
      text.erase(0, 1);  // trim_blocks
    if (minus) {
      while (!text.empty() && is_space(text.back())) text.pop_back();
    } else if (tag && source_[end + 1] != '{' && begins_line(end)) {  // lstrip_blocks
      while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.pop_back();
    }
    if (!text.empty()) add(Kind::text, text);
    advance(end - at_);
    strip_next_ = after_block_ = false;
  }

  void read_tag() {
    const char type = source_[at_ + 1];
    if (type == '#') return read_comment();
    advance(2);
    if (starts("-")) advance(1);
    require(!starts("+"), where(), "the sign + of a tag is not supported");
    add(type == '{' ? Kind::print_begin : Kind::block_begin, "");
    const std::string_view close = type == '{' ? "}}" : "%}";
    int depth = 0;  // of brackets: }} may close two mappings
    for (;;) {
      while (at_ < source_.size() && is_space(source_[at_])) advance(1);
      require(at_ < source_.size(), where(), "a tag is not closed by {}", close);
      const bool minus = starts("-") && source_.substr(at_ + 1).starts_with(close);
      if (depth == 0 && (minus || starts(close))) {
        add(type == '{' ? Kind::print_end : Kind::block_end, "");
        advance(minus ? 3 : 2);
        return after_tag(minus, type == '%');
      }
      read_word(depth);
    }
  }

  void after_tag(bool minus, bool block) {
    strip_next_ = minus;
    after_block_ = block;
  }

  void read_comment() {
    const size_t end = source_.find("#}", at_ + 2);
    require(end != std::string_view::npos, where(), "a comment is not closed by #}}");
    const bool minus = source_[end - 1] == '-';
    advance(end + 2 - at_);
    after_tag(minus, true);
  }

  void read_word(int& depth) {
    const char c = source_[at_];
    size_t length = 0;
    const auto run = [&](const auto& is) {
      while (at_ + length < source_.size() && is(source_[at_ + length])) ++length;
    };
    Kind kind = Kind::sign;
    if (c == '"' || c == '\'') return read_string(c);
    if (is_letter(c)) {
      kind = Kind::name;
      run([](char x) { return is_letter(x) || is_digit(x); });
    } else if (is_digit(c)) {
      kind = Kind::integer;
      run(is_digit);
      if (at_ + length + 1 < source_.size() && source_[at_ + length] == '.' &&
          is_digit(source_[at_ + length + 1])) {
        kind = Kind::real;
        ++length;
        run(is_digit);
      }
    } else {
      constexpr std::array signs = {"==", "!=", "<=", ">=", "//", "**", "+", "-", "*", "/", "%", "~", "|",
                                    ".",  ",",  ":",  "(",  ")",  "[",  "]", "{", "}", "<", ">", "="};
      const auto sign = std::find_if(signs.begin(), signs.end(), [&](const char* s) { return starts(s); });
      require(sign != signs.end(), where(), "'{}' begins no word of a template",
              shown(source_.substr(at_, 1)));
      length = std::string_view(*sign).size();
      if (c == '(' || c == '[' || c == '{') ++depth;
      if ((c == ')' || c == ']' || c == '}') && depth > 0) --depth;
    }
    add(kind, std::string(source_.substr(at_, length)));
    advance(length);
  }

  void read_string(char quote) {
    std::string text;
    size_t i = at_ + 1;
    for (; i < source_.size() && source_[i] != quote; ++i) {
      if (source_[i] != '\\' || i + 1 >= source_.size()) {
        text.push_back(source_[i]);
        continue;
      }
      const char e = source_[++i];
      constexpr std::string_view codes = "nrt\\'\"", meant = "\n\r\t\\'\"";
      const size_t known = codes.find(e);
      require(known != std::string_view::npos, where(), "the escape \\{} is not supported", shown({&e, 1}));
      text.push_back(meant[known]);
    }
    require(i < source_.size(), where(), "a text is not closed by {}", quote);
    add(Kind::string, text);
    advance(i + 1 - at_);
  }

  std::string_view source_;
  const std::string& name_;
  std::vector<Token> tokens_;
  size_t at_ = 0;
  int line_ = 1;
  bool strip_next_ = false, after_block_ = false;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source, const std::string& name) {
  return Lexer(source, name).run();
}

}  // namespace osprey::jinja
