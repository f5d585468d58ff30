#include "framework/data/jinja/parser.h"

#include <algorithm>
#include <charconv>

#include "framework/data/jinja/lexer.h"
#include "framework/files/file.h"
#include "kernels/core/check.h"

namespace osprey::jinja {
namespace {

using T = Token::Kind;

constexpr int kMostDepth = 100;
constexpr size_t kMaxSourceBytes = size_t{1} << 20;

class Parser {
 public:
  Parser(std::string_view source, const std::string& name) : name_(name), tokens_(tokenize(source, name)) {}

  Block run() {
    Block all = block();
    require(at().kind == T::end, where(), "nothing is open that {} could close", word());
    return all;
  }

 private:
  const Token& at(size_t ahead = 0) const { return tokens_[std::min(next_ + ahead, tokens_.size() - 1)]; }
  std::string where() const { return fmt::format("{}:{}", name_, at().line); }
  std::string word() const {
    return at().kind == T::end ? "the end of the template" : "'" + shown(at().text) + "'";
  }
  bool is(const char* text) const {
    return (at().kind == T::sign || at().kind == T::name) && at().text == text;
  }
  bool take(const char* text) {
    if (!is(text)) return false;
    ++next_;
    return true;
  }
  void expect(const char* text) { require(take(text), where(), "expected '{}', found {}", text, word()); }
  std::string name() {
    require(at().kind == T::name, where(), "expected a name, found {}", word());
    return tokens_[next_++].text;
  }
  ExprPtr make(Expr::Kind kind, std::string word = {}) const {
    return std::make_unique<Expr>(Expr{.kind = kind, .line = at().line, .word = std::move(word)});
  }

  /// Bounds recursion, of expressions and of blocks.
  struct Deeper {
    explicit Deeper(Parser& p) : parser(p) {
      require(++parser.depth_ <= kMostDepth, parser.where(), "is nested deeper than {} levels", kMostDepth);
    }
    ~Deeper() { --parser.depth_; }
    Parser& parser;
  };

  // Statements.
  bool closes_block(std::initializer_list<const char*> words) const {
    return at().kind == T::block_begin &&
           std::any_of(words.begin(), words.end(), [&](const char* w) { return at(1).text == w; });
  }
  void end_of_tag() {
    require(at().kind == T::block_end, where(), "the tag goes on with {}", word());
    ++next_;
  }
  /// Up to a tag that closes or continues something, which is left.
  Block block() {
    const Deeper deeper(*this);
    Block all;
    while (at().kind != T::end && !closes_block({"elif", "else", "endif", "endfor"}))
      all.push_back(statement());
    return all;
  }

  Stmt statement() {
    const int line = at().line;
    links_ = 0;
    if (at().kind == T::text) return {.kind = Stmt::Kind::text, .line = line, .text = tokens_[next_++].text};
    if (at().kind == T::print_begin) {
      ++next_;
      Stmt print{.kind = Stmt::Kind::print, .line = line};
      print.exprs.push_back(expression());
      require(at().kind == T::print_end, where(), "expected }}}}, found {}", word());
      ++next_;
      return print;
    }
    ++next_;  // block_begin
    const std::string tag = name();
    if (tag == "if") return branch(line);
    if (tag == "for") return loop(line);
    if (tag == "set") return set(line);
    fail(fmt::format("{}:{}", name_, line), "the tag {} is not supported; there are if, for and set",
         shown(tag));
  }

  Stmt branch(int line) {
    Stmt s{.kind = Stmt::Kind::branch, .line = line};
    for (bool more = true; more;) {
      s.exprs.push_back(expression());
      end_of_tag();
      s.blocks.push_back(block());
      open_tag("endif");
      more = take("elif");
    }
    if (take("else")) {
      end_of_tag();
      s.blocks.push_back(block());
      open_tag("endif");
    }
    expect("endif");
    end_of_tag();
    return s;
  }

  void open_tag(const char* closing) {
    require(at().kind == T::block_begin, where(), "{} is missing before {}", closing, word());
    ++next_;
  }

  Stmt loop(int line) {
    Stmt s{.kind = Stmt::Kind::loop, .line = line};
    do s.names.push_back(name());
    while (take(","));
    expect("in");
    s.exprs.push_back(disjunction());  // a choice would swallow the `if`
    s.exprs.push_back(take("if") ? expression() : nullptr);
    require(!is("recursive"), where(), "recursive loops are not supported");
    end_of_tag();
    s.blocks.push_back(block());
    open_tag("endfor");
    if (take("else")) {
      end_of_tag();
      s.blocks.push_back(block());
      open_tag("endfor");
    }
    expect("endfor");
    end_of_tag();
    return s;
  }

  Stmt set(int line) {
    Stmt s{.kind = Stmt::Kind::set, .line = line};
    s.names.push_back(name());
    if (take(".")) s.names.push_back(name());
    require(is("="), where(), "set needs one name, '=' and a value; blocks of set are not supported");
    ++next_;
    s.exprs.push_back(expression());
    end_of_tag();
    return s;
  }

  // Expressions, loosest first.
  ExprPtr expression() {
    const Deeper deeper(*this);
    ExprPtr value = disjunction();
    while (is("if")) {
      ExprPtr choice = make(Expr::Kind::choice);
      ++next_;
      choice->args.push_back(std::move(value));
      choice->args.push_back(disjunction());
      choice->args.push_back(take("else") ? expression() : nullptr);
      value = std::move(choice);
    }
    return value;
  }

  ExprPtr binary(ExprPtr left, const std::string& word, ExprPtr right) const {
    ExprPtr e = make(Expr::Kind::binary, word);
    e->args.push_back(std::move(left));
    e->args.push_back(std::move(right));
    return e;
  }
  template <class Next>
  ExprPtr chain(std::initializer_list<const char*> words, const Next& next) {
    ExprPtr left = next();
    for (;;) {
      const auto found = std::find_if(words.begin(), words.end(), [&](const char* w) { return is(w); });
      if (found == words.end()) return left;
      ++next_;
      count();
      left = binary(std::move(left), *found, next());
    }
  }
  /// Long chains make deep trees as well.
  void count() {
    require(++links_ <= kMostLinks, where(), "this tag holds more than {} operators", kMostLinks);
  }

  ExprPtr disjunction() {
    return chain({"or"}, [&] { return chain({"and"}, [&] { return negation(); }); });
  }
  ExprPtr negation() {
    const Deeper deeper(*this);
    if (!is("not")) return comparison();
    ExprPtr e = make(Expr::Kind::unary, "not");
    ++next_;
    e->args.push_back(negation());
    return e;
  }
  ExprPtr comparison() {
    ExprPtr left = sum();
    if (is("not") && at(1).text == "in") {
      next_ += 2;
      left = binary(std::move(left), "not in", sum());
    } else {
      for (const char* sign : {"==", "!=", "<=", ">=", "<", ">", "in"})
        if (take(sign)) {
          left = binary(std::move(left), sign, sum());
          break;
        }
    }
    for (const char* sign : {"==", "!=", "<=", ">=", "<", ">", "in"})
      require(!is(sign), where(), "a chain of comparisons is not supported");
    return left;
  }
  ExprPtr sum() {
    return chain({"+", "-"}, [&] {
      return chain({"~"}, [&] { return chain({"*", "//", "/", "%"}, [&] { return unary(); }); });
    });
  }
  ExprPtr unary() {
    const Deeper deeper(*this);
    if (is("-") || is("+")) {
      ExprPtr e = make(Expr::Kind::unary, at().text);
      ++next_;
      e->args.push_back(unary());
      return e;
    }
    ExprPtr value = filtered(postfix(primary()));
    require(!is("**"), where(), "the operator ** is not supported");
    return value;
  }

  ExprPtr filtered(ExprPtr value) {
    for (;;) {
      if (take("|")) {
        count();
        ExprPtr e = make(Expr::Kind::filter, name());
        e->args.push_back(std::move(value));
        if (take("(")) arguments(*e);
        value = postfix(std::move(e));
      } else if (is("is")) {
        ++next_;
        count();
        const bool negated = take("not");
        ExprPtr e = make(Expr::Kind::test, at().text);
        require(at().kind == T::name || is("=="), where(), "expected a test, found {}", word());
        ++next_;
        e->args.push_back(std::move(value));
        if (take("("))
          arguments(*e);
        else if (at().kind == T::string || at().kind == T::integer)
          e->args.push_back(primary());
        value = std::move(e);
        if (negated) {
          ExprPtr inverse = make(Expr::Kind::unary, "not");
          inverse->args.push_back(std::move(value));
          value = std::move(inverse);
        }
      } else {
        return value;
      }
    }
  }

  void arguments(Expr& into) {
    while (!take(")")) {
      if (at().kind == T::name && at(1).kind == T::sign && at(1).text == "=") {
        const std::string key = name();
        ++next_;
        into.named.emplace_back(key, expression());
      } else {
        require(into.named.empty(), where(), "a plain argument after a named one");
        into.args.push_back(expression());
      }
      if (!is(")")) expect(",");
    }
  }

  ExprPtr postfix(ExprPtr value) {
    for (;;) {
      ExprPtr e;
      if (take(".")) {
        e = make(Expr::Kind::attribute, name());
        e->args.push_back(std::move(value));
      } else if (take("(")) {
        e = make(Expr::Kind::call);
        e->args.push_back(std::move(value));
        arguments(*e);
      } else if (take("[")) {
        e = subscript(std::move(value));
      } else {
        return value;
      }
      count();
      value = std::move(e);
    }
  }

  ExprPtr subscript(ExprPtr value) {
    ExprPtr e = make(Expr::Kind::item);
    e->args.push_back(std::move(value));
    e->args.push_back(is(":") ? nullptr : expression());
    if (is(":")) {
      e->kind = Expr::Kind::slice;
      while (take(":")) {
        require(e->args.size() < 4, where(), "a slice has at most three parts");
        e->args.push_back(is(":") || is("]") ? nullptr : expression());
      }
      e->args.resize(4);
    }
    expect("]");
    return e;
  }

  ExprPtr literal(Value value) {
    ExprPtr e = make(Expr::Kind::literal);
    e->value = std::move(value);
    ++next_;
    return e;
  }
  template <class N>
  ExprPtr number() {
    N n{};
    const std::string& text = at().text;
    const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), n);
    require(problem == std::errc() && end == text.data() + text.size(), where(), "{} is no number",
            shown(text));
    return literal(n);
  }

  ExprPtr primary() {
    const Deeper deeper(*this);
    if (at().kind == T::string) {
      std::string text;
      for (; at().kind == T::string && at(1).kind == T::string; ++next_)
        text += at().text;  // neighbours join
      return literal(Text(text + at().text));
    }
    if (at().kind == T::integer) return number<int64_t>();
    if (at().kind == T::real) return number<double>();
    for (const auto& [text, value] : {std::pair{"true", Value(true)},
                                      {"True", Value(true)},
                                      {"false", Value(false)},
                                      {"False", Value(false)},
                                      {"none", Value(None{})},
                                      {"None", Value(None{})}})
      if (at().kind == T::name && is(text)) return literal(value);
    if (at().kind == T::name) {
      ExprPtr e = make(Expr::Kind::name, at().text);
      ++next_;
      return e;
    }
    if (take("(")) {
      ExprPtr inside = expression();
      require(!is(","), where(), "tuples are not supported; write a list");
      expect(")");
      return inside;
    }
    if (is("[") || is("{")) return collection();
    fail(where(), "expected a value, found {}", word());
  }

  ExprPtr collection() {
    const bool list = is("[");
    ExprPtr e = make(list ? Expr::Kind::list : Expr::Kind::dict);
    ++next_;
    const char* close = list ? "]" : "}";
    while (!take(close)) {
      e->args.push_back(expression());
      if (!list) {
        expect(":");
        e->args.push_back(expression());
      }
      if (!is(close)) expect(",");
    }
    return e;
  }

  static constexpr int kMostLinks = 500;  // of one tag
  const std::string& name_;
  std::vector<Token> tokens_;
  size_t next_ = 0;
  int depth_ = 0, links_ = 0;
};

}  // namespace

Block parse(std::string_view source, const std::string& name) {
  require(source.size() <= kMaxSourceBytes, name, "is longer than a template can be, {} MiB",
          kMaxSourceBytes >> 20);
  return Parser(source, name).run();
}

}  // namespace osprey::jinja
