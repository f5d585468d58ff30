#include "framework/data/jinja/render.h"

#include <algorithm>
#include <optional>

#include "framework/data/jinja/builtins.h"
#include "framework/files/file.h"
#include "kernels/core/check.h"

namespace osprey::jinja {
namespace {

constexpr int64_t kMostSteps = 1'000'000;
constexpr size_t kMostBytes = size_t{256} << 20;
constexpr int kMostDepth = 64;

class Renderer {
 public:
  Renderer(const Dict& variables, const std::string& name) : name_(name) { scopes_.push_back(variables); }

  void run(const Block& block) {
    for (const Stmt& s : block) run(s);
  }
  Text take() { return std::move(out_); }

 private:
  std::string where(int line) const { return fmt::format("{}:{}", name_, line); }
  void step(int line, size_t count = 1) {
    steps_ += static_cast<int64_t>(count);
    require(steps_ <= kMostSteps, where(line), "the template takes more than {} steps", kMostSteps);
  }

  // Statements.
  void run(const Stmt& s) {
    step(s.line);
    switch (s.kind) {
      case Stmt::Kind::text:
        return write(Text(s.text), s.line);
      case Stmt::Kind::print:
        return write(written(value(*s.exprs[0]), where(s.line)), s.line);
      case Stmt::Kind::set:
        return set(s);
      case Stmt::Kind::branch:
        for (size_t i = 0; i < s.blocks.size(); ++i)
          if (i == s.exprs.size() || truthy(value(*s.exprs[i]))) return run(s.blocks[i]);
        return;
      case Stmt::Kind::loop:
        return loop(s);
    }
  }

  void write(const Text& text, int line) {
    spend(text.size(), line);
    out_ += text;
  }
  void spend(size_t bytes, int line) {
    bytes_ += bytes;
    require(bytes_ <= kMostBytes, where(line), "the template makes more than {} MiB of text",
            kMostBytes >> 20);
  }

  void assign(const std::string& name, Value v) {
    for (auto& [known, old] : scopes_.back())
      if (known == name) {
        old = std::move(v);
        return;
      }
    scopes_.back().emplace_back(name, std::move(v));
  }

  void set(const Stmt& s) {
    Value v = value(*s.exprs[0]);
    const bool named = s.names.size() == 1 && is_namespace(v);  // set ns = namespace(...)
    if (!named) check(v, kMostDepth, s.line);
    if (s.names.size() == 1) return assign(s.names[0], std::move(v));
    const Value object = variable(s.names[0]);
    const auto* space = object.get<std::shared_ptr<Dict>>();
    require(
        space != nullptr && std::find(namespaces_.begin(), namespaces_.end(), *space) != namespaces_.end(),
        where(s.line), "{} is no namespace, so {} cannot be set in it", s.names[0], s.names[1]);
    for (auto& [known, old] : **space)
      if (known == s.names[1]) {
        old = std::move(v);
        return;
      }
    (*space)->emplace_back(s.names[1], std::move(v));
  }

  /// What is kept holds no namespace, which could come to hold itself, and is not nested without end.
  void check(const Value& v, int depth, int line) {
    if (const List* list = v.list()) {
      step(line, list->size());
      require(depth > 0, where(line), "lists are nested deeper than {} levels", kMostDepth);
      for (const Value& item : *list) check(item, depth - 1, line);
    } else if (const Dict* dict = v.dict(); dict && !is_namespace(v)) {
      step(line, dict->size());
      require(depth > 0, where(line), "mappings are nested deeper than {} levels", kMostDepth);
      for (const auto& [key, item] : *dict) check(item, depth - 1, line);
    }
    require(!is_namespace(v), where(line), "a namespace inside another value is not supported");
  }
  bool is_namespace(const Value& v) const {
    const auto* dict = v.get<std::shared_ptr<Dict>>();
    return dict && std::find(namespaces_.begin(), namespaces_.end(), *dict) != namespaces_.end();
  }

  void loop(const Stmt& s) {
    List items = iterable(value(*s.exprs[0]), s.line);
    scopes_.emplace_back();
    if (s.exprs[1]) {
      List chosen;
      for (const Value& item : items) {
        step(s.line);
        bind(s, item);
        if (truthy(value(*s.exprs[1]))) chosen.push_back(item);
      }
      items = std::move(chosen);
    }
    const auto count = static_cast<int64_t>(items.size());
    for (int64_t i = 0; i < count; ++i) {
      step(s.line);
      scopes_.back().clear();
      bind(s, items[static_cast<size_t>(i)]);
      Dict about = {{"index", i + 1},        {"index0", i},
                    {"revindex", count - i}, {"revindex0", count - i - 1},
                    {"first", i == 0},       {"last", i + 1 == count},
                    {"length", count}};
      if (i > 0) about.emplace_back("previtem", items[static_cast<size_t>(i - 1)]);
      if (i + 1 < count) about.emplace_back("nextitem", items[static_cast<size_t>(i + 1)]);
      assign("loop", make_dict(std::move(about)));
      run(s.blocks[0]);
    }
    scopes_.pop_back();
    if (count == 0 && s.blocks.size() > 1) run(s.blocks[1]);
  }

  void bind(const Stmt& s, const Value& item) {
    if (s.names.size() == 1) return assign(s.names[0], item);
    require(item.list() != nullptr && item.list()->size() == s.names.size(), where(s.line),
            "{} names are given for {}", s.names.size(), kind(item));
    for (size_t i = 0; i < s.names.size(); ++i) assign(s.names[i], (*item.list())[i]);
  }

  List iterable(const Value& v, int line) {
    if (const List* list = v.list()) {
      step(line, list->size());
      return *list;
    }
    return *apply_filter("list", v, {}, where(line)).list();
  }

  // Expressions.
  Value variable(const std::string& name) const {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope)
      if (const Value* found = find(*scope, name)) return *found;
    return Undefined{name};
  }

  /// Every text that is touched counts, so work is bounded whatever the template does.
  Value value(const Expr& e) {
    Value made = evaluate(e);
    if (const Text* text = made.text()) spend(text->size(), e.line);
    return made;
  }

  Value evaluate(const Expr& e) {
    step(e.line);
    using Kind = Expr::Kind;
    switch (e.kind) {
      case Kind::literal:
        return e.value;
      case Kind::name:
        return variable(e.word);
      case Kind::list: {
        List items;
        for (const ExprPtr& a : e.args) items.push_back(value(*a));
        return make_list(std::move(items));
      }
      case Kind::dict:
        return mapping(e);
      case Kind::attribute:
        return attribute(value(*e.args[0]), e.word, where(e.line));
      case Kind::item:
        return item(value(*e.args[0]), value(*e.args[1]), e.line);
      case Kind::slice:
        return slice(e);
      case Kind::call:
        return call(e);
      case Kind::filter: {
        const Value on = value(*e.args[0]);
        return apply_filter(e.word, on, arguments(e, 1), where(e.line));
      }
      case Kind::test: {
        const Value on = value(*e.args[0]);
        return apply_test(e.word, on, arguments(e, 1).plain, where(e.line));
      }
      case Kind::unary:
        return unary(e);
      case Kind::binary:
        return binary(e);
      case Kind::choice:
        if (truthy(value(*e.args[1]))) return value(*e.args[0]);
        return e.args[2] ? value(*e.args[2]) : Value(Undefined{"the value of an if without else"});
    }
    fail(where(e.line), "an expression of no kind");
  }

  Value mapping(const Expr& e) {
    Dict items;
    for (size_t i = 0; i < e.args.size(); i += 2) {
      const Value key = value(*e.args[i]);
      require(key.text() != nullptr, where(e.line), "a key of a mapping is {}, not text", kind(key));
      items.emplace_back(key.text()->bytes, value(*e.args[i + 1]));
    }
    return make_dict(std::move(items));
  }

  Arguments arguments(const Expr& e, size_t first) {
    Arguments a;
    for (size_t i = first; i < e.args.size(); ++i) a.plain.push_back(value(*e.args[i]));
    for (const auto& [name, argument] : e.named) a.named.emplace_back(name, value(*argument));
    return a;
  }

  Value item(const Value& object, const Value& key, int line) {
    if (key.text()) return attribute(object, key.text()->bytes, where(line));
    require(key.get<int64_t>() != nullptr, where(line), "{} is no index", kind(key));
    int64_t at = *key.get<int64_t>();
    const List items = iterable(object, line);
    if (at < 0) at += static_cast<int64_t>(items.size());
    if (at < 0 || at >= static_cast<int64_t>(items.size())) return Undefined{fmt::format("item {}", at)};
    return items[static_cast<size_t>(at)];
  }

  std::optional<int64_t> bound(const ExprPtr& e) {
    if (!e) return {};
    const Value v = value(*e);
    if (v.get<None>()) return {};
    require(v.get<int64_t>() != nullptr, where(e->line), "a bound of a slice is {}", kind(v));
    return *v.get<int64_t>();
  }

  /// As Python slices, of lists and of the characters of a text.
  Value slice(const Expr& e) {
    const Value object = value(*e.args[0]);
    const auto from = bound(e.args[1]), to = bound(e.args[2]);
    const int64_t by = bound(e.args[3]).value_or(1);
    require(by == 1 || by == -1, where(e.line), "a slice goes on by {}, and only 1 and -1 are supported", by);
    const List items = iterable(object, e.line);
    const auto n = static_cast<int64_t>(items.size());
    const int64_t low = by > 0 ? 0 : -1, high = by > 0 ? n : n - 1;
    const auto place = [&](const std::optional<int64_t>& at, int64_t otherwise) {
      return at ? std::clamp(*at < 0 ? *at + n : *at, low, high) : otherwise;
    };
    List chosen;
    const int64_t end = place(to, by > 0 ? n : -1);
    for (int64_t i = place(from, by > 0 ? 0 : n - 1); by > 0 ? i < end : i > end; i += by)
      chosen.push_back(items[static_cast<size_t>(i)]);
    if (!object.text()) return make_list(std::move(chosen));
    Text text;
    for (const Value& c : chosen) text += *c.text();
    return text;
  }

  Value call(const Expr& e) {
    const Expr& callee = *e.args[0];
    if (callee.kind == Expr::Kind::attribute) {
      const Value object = value(*callee.args[0]);
      return call_method(object, callee.word, arguments(e, 1), where(e.line));
    }
    require(callee.kind == Expr::Kind::name, where(e.line), "only functions and methods can be called");
    const Arguments a = arguments(e, 1);
    if (callee.word == "raise_exception") {
      require(a.plain.size() == 1 && a.plain[0].text(), where(e.line), "raise_exception takes a text");
      fail(where(e.line), "the template says: {}", shown(a.plain[0].text()->bytes));
    }
    if (callee.word == "namespace") {
      require(a.plain.empty(), where(e.line), "namespace takes named values only");
      const auto space = std::make_shared<Dict>(a.named);
      namespaces_.push_back(space);
      return Value(space);
    }
    if (callee.word == "range") return range(a, e.line);
    fail(where(e.line), "the function {} is not supported{}", callee.word,
         callee.word == "strftime_now" ? ": what a template says must not change from day to day" : "");
  }

  Value range(const Arguments& a, int line) {
    int64_t bounds[2] = {0, 0};
    require((a.plain.size() == 1 || a.plain.size() == 2) && a.named.empty(), where(line),
            "range takes one or two whole numbers");
    for (size_t i = 0; i < a.plain.size(); ++i) {
      require(a.plain[i].get<int64_t>() != nullptr, where(line), "range is given {}", kind(a.plain[i]));
      bounds[i + 2 - a.plain.size()] = *a.plain[i].get<int64_t>();
    }
    List numbers;
    for (int64_t i = bounds[0]; i < bounds[1]; ++i) {
      step(line);
      numbers.emplace_back(i);
    }
    return make_list(std::move(numbers));
  }

  Value unary(const Expr& e) {
    const Value v = value(*e.args[0]);
    if (e.word == "not") return !truthy(v);
    require(v.get<int64_t>() != nullptr, where(e.line), "the sign {} stands before {}", e.word, kind(v));
    const int64_t n = *v.get<int64_t>();
    require(n != INT64_MIN, where(e.line), "a number is too large");
    return e.word == "-" ? -n : n;
  }

  Value binary(const Expr& e) {
    Value left = value(*e.args[0]);
    if (e.word == "and") return truthy(left) ? value(*e.args[1]) : left;
    if (e.word == "or") return truthy(left) ? left : value(*e.args[1]);
    const Value right = value(*e.args[1]);
    if (e.word == "==") return equal(left, right);
    if (e.word == "!=") return !equal(left, right);
    if (e.word == "in") return contains(right, left, where(e.line));
    if (e.word == "not in") return !contains(right, left, where(e.line));
    if (e.word == "~" || (e.word == "+" && left.text() && right.text())) {
      Text text = written(left, where(e.line));
      text += written(right, where(e.line));
      return text;
    }
    if (e.word == "+" && left.list() && right.list()) {
      List all = *left.list();
      all.insert(all.end(), right.list()->begin(), right.list()->end());
      step(e.line, all.size());
      return make_list(std::move(all));
    }
    return arithmetic(e, left, right);
  }

  Value arithmetic(const Expr& e, const Value& left, const Value& right) {
    const bool order = e.word[0] == '<' || e.word[0] == '>';
    if (order && left.text() && right.text()) return compare(e.word, left.text()->bytes, right.text()->bytes);
    const int64_t *a = left.get<int64_t>(), *b = right.get<int64_t>();
    require(a && b, where(e.line),
            "the operator {} stands between {} and {}; it is supported for whole numbers", e.word, kind(left),
            kind(right));
    if (order) return compare(e.word, *a, *b);
    int64_t result = 0;
    if (e.word == "%" || e.word == "//") {
      require(*b > 0, where(e.line), "{} by {}", e.word, *b);
      const int64_t rest = (*a % *b + *b) % *b;  // as Python: never negative
      return e.word == "%" ? rest : (*a - rest) / *b;
    }
    require(e.word != "/", where(e.line), "the operator / is not supported");
    const bool overflows = e.word == "+"   ? __builtin_add_overflow(*a, *b, &result)
                           : e.word == "-" ? __builtin_sub_overflow(*a, *b, &result)
                                           : __builtin_mul_overflow(*a, *b, &result);
    require(!overflows, where(e.line), "a number is too large");
    return result;
  }

  template <class X>
  static bool compare(const std::string& sign, const X& a, const X& b) {
    return sign == "<" ? a < b : sign == "<=" ? a <= b : sign == ">" ? a > b : a >= b;
  }

  const std::string& name_;
  std::vector<Dict> scopes_;
  std::vector<std::shared_ptr<Dict>> namespaces_;
  Text out_;
  int64_t steps_ = 0;
  size_t bytes_ = 0;
};

}  // namespace

Text render(const Block& block, const Dict& variables, const std::string& name) {
  Renderer renderer(variables, name);
  renderer.run(block);
  return renderer.take();
}

}  // namespace osprey::jinja
