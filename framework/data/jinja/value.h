#pragma once
// What templates compute with. Every byte of text knows where it came from, so that what users wrote can be
// told from what the template wrote, whatever was cut, joined or trimmed on the way.

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace osprey::jinja {

/// Text and the origin of each of its bytes.
struct Text {
  static constexpr char16_t of_template = 0;
  static constexpr char16_t of_data =
      0xffff;  // data that belongs to no message; others count messages from 1
  std::string bytes;
  std::u16string origin;

  Text() = default;
  explicit Text(std::string text, char16_t from = of_template)
      : bytes(std::move(text)), origin(bytes.size(), from) {}
  size_t size() const { return bytes.size(); }
  Text substr(size_t begin, size_t count = std::string::npos) const;
  Text& operator+=(const Text& other);
};

struct Value;
using List = std::vector<Value>;
using Dict = std::vector<std::pair<std::string, Value>>;  // in order of insertion
struct Undefined {
  std::string name;  // for messages
};
struct None {};

struct Value {
  std::variant<Undefined, None, bool, int64_t, double, Text, std::shared_ptr<List>, std::shared_ptr<Dict>> v;

  Value() = default;
  template <class T>
  Value(T value) : v(std::move(value)) {}  // NOLINT: values are made of what they hold
  template <class T>
  const T* get() const {
    return std::get_if<T>(&v);
  }
  const Text* text() const { return get<Text>(); }
  const List* list() const {
    return get<std::shared_ptr<List>>() ? get<std::shared_ptr<List>>()->get() : nullptr;
  }
  const Dict* dict() const {
    return get<std::shared_ptr<Dict>>() ? get<std::shared_ptr<Dict>>()->get() : nullptr;
  }
  bool defined() const { return !get<Undefined>(); }
};

Value make_list(List items);
Value make_dict(Dict items);
const Value* find(const Dict& dict, std::string_view key);

/// "text", "a list", ...
const char* kind(const Value& value);
bool truthy(const Value& value);
/// As Python compares; values of different kinds differ, but numbers and truth values are numbers.
bool equal(const Value& a, const Value& b);
/// As `{{ value }}` writes it. Errors: lists and mappings, which templates write by tojson.
Text written(const Value& value, const std::string& where);
/// As Python's json.dumps with Hugging Face's settings; all of it counts as data. `indent` spaces, or null.
Text to_json(const Value& value, const int64_t* indent, const std::string& where);

/// Bytes of white space at the ends of text that Python's strip() takes.
bool is_space(char c);
/// Where the code points of `text` begin, and its end.
std::vector<size_t> code_points(std::string_view text);

}  // namespace osprey::jinja
