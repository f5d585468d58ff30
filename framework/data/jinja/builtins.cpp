#include "framework/data/jinja/builtins.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <functional>

#include "kernels/core/check.h"

namespace osprey::jinja {
namespace {

const Text& text_of(const Value& value, const std::string& what, const std::string& where) {
  require(value.text() != nullptr, where, "{} is for text, not for {}", what, kind(value));
  return *value.text();
}

void at_most(const Arguments& arguments, size_t count, const std::string& what, const std::string& where) {
  require(arguments.plain.size() <= count && arguments.named.empty(), where,
          "{} takes at most {} plain argument{}", what, count, count == 1 ? "" : "s");
}

enum class Ends { left, right, both };
Text strip(const Text& text, Ends ends, const std::string& characters) {
  const auto taken = [&](char c) {
    return characters.empty() ? is_space(c) : characters.find(c) != std::string::npos;
  };
  size_t begin = 0, end = text.size();
  if (ends != Ends::right)
    while (begin < end && taken(text.bytes[begin])) ++begin;
  if (ends != Ends::left)
    while (end > begin && taken(text.bytes[end - 1])) --end;
  return text.substr(begin, end - begin);
}

Value split(const Text& text, const Arguments& a, const std::string& where) {
  at_most(a, 2, "split", where);
  int64_t most = -1;
  if (a.plain.size() > 1) {
    require(a.plain[1].get<int64_t>() != nullptr, where, "split is given {} where it takes a number",
            kind(a.plain[1]));
    most = *a.plain[1].get<int64_t>();
  }
  List parts;
  if (a.plain.empty()) {  // at runs of white space
    size_t i = 0;
    while (i < text.size()) {
      while (i < text.size() && is_space(text.bytes[i])) ++i;
      size_t end = i;
      while (end < text.size() && !is_space(text.bytes[end])) ++end;
      if (end > i) parts.emplace_back(text.substr(i, end - i));
      i = end;
    }
    return make_list(std::move(parts));
  }
  const Text& mark = text_of(a.plain[0], "split", where);
  require(mark.size() > 0, where, "split is given an empty text to split at");
  size_t begin = 0;
  for (size_t at = text.bytes.find(mark.bytes); at != std::string::npos && most != 0;
       at = text.bytes.find(mark.bytes, begin), --most) {
    parts.emplace_back(text.substr(begin, at - begin));
    begin = at + mark.size();
  }
  parts.emplace_back(text.substr(begin));
  return make_list(std::move(parts));
}

Text replaced(const Text& text, const Arguments& a, const std::string& where) {
  at_most(a, 2, "replace", where);
  require(a.plain.size() == 2, where, "replace takes two texts");
  const Text &from = text_of(a.plain[0], "replace", where), &to = text_of(a.plain[1], "replace", where);
  require(from.size() > 0, where, "replace is given an empty text to replace");
  Text out;
  size_t begin = 0;
  for (size_t at = text.bytes.find(from.bytes); at != std::string::npos;
       at = text.bytes.find(from.bytes, begin)) {
    out += text.substr(begin, at - begin);
    out += to;
    begin = at + from.size();
  }
  out += text.substr(begin);
  return out;
}

/// Letters of ASCII; others need tables of Unicode, and are refused rather than left alone.
Text cased(const Text& text, const std::string& how, const std::string& where) {
  Text out = text;
  bool begins = true;
  for (char& c : out.bytes) {
    require(static_cast<unsigned char>(c) < 0x80, where, "{} is supported for ASCII text only", how);
    const bool upper = how == "upper" || (begins && (how == "capitalize" || how == "title"));
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (letter) c = static_cast<char>(upper ? c & ~0x20 : c | 0x20);
    begins = how == "title" && !letter;
  }
  return out;
}

List items_of(const Value& value, const std::string& what, const std::string& where) {
  if (const List* list = value.list()) return *list;
  List items;
  if (const Dict* dict = value.dict()) {
    for (const auto& [key, item] : *dict) items.emplace_back(Text(key));
    return items;
  }
  const Text& text = text_of(value, what, where);
  const std::vector<size_t> at = code_points(text.bytes);
  for (size_t i = 0; i + 1 < at.size(); ++i) items.emplace_back(text.substr(at[i], at[i + 1] - at[i]));
  return items;
}

Value pairs_of(const Value& value, const std::string& where) {
  require(value.dict() != nullptr, where, "items is for a mapping, not for {}", kind(value));
  List pairs;
  for (const auto& [key, item] : *value.dict()) pairs.push_back(make_list({Value(Text(key)), item}));
  return make_list(std::move(pairs));
}

int64_t length_of(const Value& value, const std::string& where) {
  if (const List* l = value.list()) return static_cast<int64_t>(l->size());
  if (const Dict* d = value.dict()) return static_cast<int64_t>(d->size());
  return static_cast<int64_t>(code_points(text_of(value, "length", where).bytes).size()) - 1;
}

Value joined(const Value& value, const Arguments& a, const std::string& where) {
  at_most(a, 1, "join", where);
  const Text mark = a.plain.empty() ? Text() : text_of(a.plain[0], "join", where);
  Text out;
  bool first = true;
  for (const Value& item : items_of(value, "join", where)) {
    if (!first) out += mark;
    out += written(item, where);
    first = false;
  }
  return out;
}

/// selectattr("role", "equalto", "user") and its opposite.
Value selected(const Value& value, const Arguments& a, bool keep, const std::string& where) {
  require(
      !a.plain.empty() && a.plain[0].text() && a.named.empty() && (a.plain.size() < 2 || a.plain[1].text()),
      where, "selectattr and rejectattr take the name of an attribute, and a test");
  const std::vector<Value> rest(a.plain.begin() + std::min<int64_t>(2, static_cast<int64_t>(a.plain.size())),
                                a.plain.end());
  List chosen;
  for (const Value& item : items_of(value, "selectattr", where)) {
    const Value found = attribute(item, a.plain[0].text()->bytes, where);
    const bool holds =
        a.plain.size() == 1 ? truthy(found) : apply_test(a.plain[1].text()->bytes, found, rest, where);
    if (holds == keep) chosen.push_back(item);
  }
  return make_list(std::move(chosen));
}

Value json_filter(const Value& value, const Arguments& a, const std::string& where) {
  const int64_t* indent = nullptr;
  for (const auto& [name, argument] : a.named) {
    require(name == "indent" && argument.get<int64_t>() && *argument.get<int64_t>() >= 0 &&
                *argument.get<int64_t>() <= 16,
            where, "tojson takes indent=0 to 16 only, got {}", name);
    indent = argument.get<int64_t>();
  }
  require(a.plain.empty(), where, "tojson takes no plain argument");
  return to_json(value, indent, where);
}

}  // namespace

Value attribute(const Value& object, const std::string& key, const std::string& where) {
  if (const auto* undefined = object.get<Undefined>())
    fail(where, "{} is undefined, so it has no {}", undefined->name, key);
  if (const Dict* dict = object.dict())
    if (const Value* found = find(*dict, key)) return *found;
  return Undefined{key};
}

bool contains(const Value& collection, const Value& item, const std::string& where) {
  if (const Text* text = collection.text())
    return text->bytes.find(text_of(item, "in", where).bytes) != std::string::npos;
  if (const Dict* dict = collection.dict()) return item.text() && find(*dict, item.text()->bytes);
  require(collection.list() != nullptr, where, "in needs a list, a mapping or a text, not {}",
          kind(collection));
  return std::any_of(collection.list()->begin(), collection.list()->end(),
                     [&](const Value& v) { return equal(v, item); });
}

Value apply_filter(const std::string& name, const Value& value, const Arguments& a,
                   const std::string& where) {
  if (name == "default" || name == "d") {
    require(!a.plain.empty() && a.plain.size() <= 2, where, "default takes a value");
    bool falsy = a.plain.size() == 2 && truthy(a.plain[1]);
    for (const auto& [key, argument] : a.named) {
      require(key == "boolean", where, "default takes boolean=..., got {}", key);
      falsy = truthy(argument);
    }
    return !value.defined() || (falsy && !truthy(value)) ? a.plain[0] : value;
  }
  if (name == "tojson") return json_filter(value, a, where);
  if (name == "trim") {
    at_most(a, 1, name, where);
    return strip(text_of(value, name, where), Ends::both,
                 a.plain.empty() ? "" : text_of(a.plain[0], name, where).bytes);
  }
  if (name == "replace") return replaced(text_of(value, name, where), a, where);
  if (name == "join") return joined(value, a, where);
  if (name == "selectattr" || name == "rejectattr") return selected(value, a, name == "selectattr", where);
  at_most(a, 0, name, where);
  if (name == "length" || name == "count") return length_of(value, where);
  if (name == "upper" || name == "lower" || name == "capitalize" || name == "title")
    return cased(text_of(value, name, where), name, where);
  if (name == "string") return written(value, where);
  if (name == "list") return make_list(items_of(value, name, where));
  if (name == "items") return pairs_of(value, where);
  if (name == "first" || name == "last") {
    const List items = items_of(value, name, where);
    return items.empty() ? Value(Undefined{name}) : name == "first" ? items.front() : items.back();
  }
  if (name == "int") {
    if (value.get<int64_t>()) return value;
    const Text& text = text_of(value, name, where);
    int64_t number = 0;
    const auto [end, problem] = std::from_chars(text.bytes.data(), text.bytes.data() + text.size(), number);
    require(problem == std::errc() && end == text.bytes.data() + text.size(), where,
            "int is given no whole number");
    return number;
  }
  fail(where, "the filter {} is not supported", name);
}

bool apply_test(const std::string& name, const Value& value, const std::vector<Value>& arguments,
                const std::string& where) {
  constexpr std::array with_value = {"equalto", "eq", "==", "ne", "in"};
  const bool takes_value = std::find(with_value.begin(), with_value.end(), name) != with_value.end();
  if (takes_value) {
    require(arguments.size() == 1, where, "the test {} takes one value", name);
    if (name == "in") return contains(arguments[0], value, where);
    return equal(value, arguments[0]) != (name == "ne");
  }
  if (name == "defined") return value.defined();
  if (name == "undefined") return !value.defined();
  if (name == "none") return value.get<None>() != nullptr;
  if (name == "string") return value.text() != nullptr;
  if (name == "mapping") return value.dict() != nullptr;
  if (name == "sequence" || name == "iterable") return value.list() || value.dict() || value.text();
  if (name == "boolean") return value.get<bool>() != nullptr;
  if (name == "number") return value.get<int64_t>() || value.get<double>() || value.get<bool>();
  if (name == "integer") return value.get<int64_t>() != nullptr;
  if (name == "true" || name == "false") return value.get<bool>() && *value.get<bool>() == (name == "true");
  if (name == "odd" || name == "even") {
    require(value.get<int64_t>() != nullptr, where, "{} is for whole numbers, not for {}", name, kind(value));
    return (*value.get<int64_t>() % 2 != 0) == (name == "odd");
  }
  fail(where, "the test {} is not supported{}", name, arguments.empty() ? "" : " with a value");
}

Value call_method(const Value& object, const std::string& name, const Arguments& a,
                  const std::string& where) {
  require(object.defined(), where, "something undefined has no {}()", name);
  if (object.dict()) {
    if (name == "items") return pairs_of(object, where);
    if (name == "keys") return make_list(items_of(object, name, where));
    if (name == "values") {
      List values;
      for (const auto& [key, item] : *object.dict()) values.push_back(item);
      return make_list(std::move(values));
    }
    if (name == "get") {
      at_most(a, 2, name, where);
      require(!a.plain.empty() && a.plain[0].text(), where, "get takes the name of a key");
      const Value* found = find(*object.dict(), a.plain[0].text()->bytes);
      return found ? *found : a.plain.size() > 1 ? a.plain[1] : Value(None{});
    }
  }
  if (const Text* text = object.text()) {
    if (name == "strip" || name == "lstrip" || name == "rstrip") {
      at_most(a, 1, name, where);
      return strip(*text,
                   name == "strip"    ? Ends::both
                   : name == "lstrip" ? Ends::left
                                      : Ends::right,
                   a.plain.empty() ? "" : text_of(a.plain[0], name, where).bytes);
    }
    if (name == "split") return split(*text, a, where);
    if (name == "replace") return replaced(*text, a, where);
    if (name == "startswith" || name == "endswith") {
      at_most(a, 1, name, where);
      require(a.plain.size() == 1, where, "{} takes a text", name);
      const std::string& part = text_of(a.plain[0], name, where).bytes;
      return name == "startswith" ? text->bytes.starts_with(part) : text->bytes.ends_with(part);
    }
    if (name == "upper" || name == "lower" || name == "title" || name == "capitalize") {
      at_most(a, 0, name, where);
      return cased(*text, name, where);
    }
  }
  fail(where, "{} has no method {} that is supported", kind(object), name);
}

}  // namespace osprey::jinja
