#include "framework/data/jinja/value.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "kernels/core/check.h"

namespace osprey::jinja {
namespace {

std::optional<double> number(const Value& v) {
  if (const bool* b = v.get<bool>()) return *b;
  if (const int64_t* i = v.get<int64_t>()) return static_cast<double>(*i);
  if (const double* d = v.get<double>()) return *d;
  return {};
}

nlohmann::ordered_json json_of(const Value& v, const std::string& where) {
  using json = nlohmann::ordered_json;
  if (const Text* t = v.text()) return t->bytes;
  if (const bool* b = v.get<bool>()) return *b;
  if (const int64_t* i = v.get<int64_t>()) return *i;
  if (const double* d = v.get<double>()) return *d;
  if (v.get<None>()) return nullptr;
  if (const List* list = v.list()) {
    json all = json::array();
    for (const Value& item : *list) all.push_back(json_of(item, where));
    return all;
  }
  require(v.dict() != nullptr, where, "tojson is given something undefined");
  json all = json::object();
  for (const auto& [key, item] : *v.dict()) all[key] = json_of(item, where);
  return all;
}

/// Text that a template cut inside a character is mended, for JSON is UTF-8.
std::string plain_dump(const nlohmann::ordered_json& j, int indent) {
  return j.dump(indent, ' ', /*ensure_ascii=*/false, nlohmann::ordered_json::error_handler_t::replace);
}

/// json.dumps writes ", " and ": " where the library writes "," and ":".
std::string dump(const nlohmann::ordered_json& j) {
  std::string text;
  if (j.is_array() || j.is_object()) {
    text = j.is_array() ? "[" : "{";
    for (auto it = j.begin(); it != j.end(); ++it) {
      if (it != j.begin()) text += ", ";
      if (j.is_object()) text += plain_dump(it.key(), -1) + ": ";
      text += dump(*it);
    }
    return text + (j.is_array() ? "]" : "}");
  }
  return plain_dump(j, -1);
}

}  // namespace

Text Text::substr(size_t begin, size_t count) const {
  Text part;
  part.bytes = bytes.substr(begin, count);
  part.origin = origin.substr(begin, count);
  return part;
}

Text& Text::operator+=(const Text& other) {
  bytes += other.bytes;
  origin += other.origin;
  return *this;
}

Value make_list(List items) { return Value(std::make_shared<List>(std::move(items))); }
Value make_dict(Dict items) { return Value(std::make_shared<Dict>(std::move(items))); }

const Value* find(const Dict& dict, std::string_view key) {
  for (const auto& [name, value] : dict)
    if (name == key) return &value;
  return nullptr;
}

const char* kind(const Value& value) {
  constexpr const char* names[] = {
      "something undefined", "none", "a truth value", "a number", "a number", "text", "a list", "a mapping"};
  return names[value.v.index()];
}

bool truthy(const Value& value) {
  if (const auto n = number(value)) return *n != 0;
  if (const Text* t = value.text()) return !t->bytes.empty();
  if (const List* l = value.list()) return !l->empty();
  if (const Dict* d = value.dict()) return !d->empty();
  return false;
}

bool equal(const Value& a, const Value& b) {
  const auto x = number(a), y = number(b);
  if (x || y) return x && y && *x == *y;
  if (a.v.index() != b.v.index()) return false;
  if (const Text* t = a.text()) return t->bytes == b.text()->bytes;
  if (const List* l = a.list())
    return std::equal(l->begin(), l->end(), b.list()->begin(), b.list()->end(), equal);
  if (const Dict* d = a.dict()) {
    if (d->size() != b.dict()->size()) return false;
    return std::all_of(d->begin(), d->end(), [&](const auto& item) {
      const Value* other = find(*b.dict(), item.first);
      return other != nullptr && equal(item.second, *other);
    });
  }
  return true;
}

Text written(const Value& value, const std::string& where) {
  if (const Text* t = value.text()) return *t;
  if (const bool* b = value.get<bool>()) return Text(*b ? "True" : "False");
  if (const int64_t* i = value.get<int64_t>()) return Text(std::to_string(*i));
  if (const double* d = value.get<double>()) return Text(nlohmann::json(*d).dump());
  if (value.get<None>()) return Text("None");
  require(!value.defined(), where, "{} would be written as Python writes it; the template must use tojson",
          kind(value));
  return {};
}

Text to_json(const Value& value, const int64_t* indent, const std::string& where) {
  const auto json = json_of(value, where);
  return Text(indent ? plain_dump(json, static_cast<int>(*indent)) : dump(json), Text::of_data);
}

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

std::vector<size_t> code_points(std::string_view text) {
  std::vector<size_t> begins;
  for (size_t i = 0; i < text.size(); ++i)
    if ((static_cast<unsigned char>(text[i]) & 0xc0) != 0x80) begins.push_back(i);
  begins.push_back(text.size());
  return begins;
}

}  // namespace osprey::jinja
