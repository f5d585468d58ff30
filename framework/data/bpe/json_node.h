#pragma once
// A value of a tokenizer.json together with where it stands, so that whatever is wrong is named.

#include <fmt/format.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "framework/files/file.h"
#include "kernels/core/check.h"

namespace osprey::bpe {

class JsonNode {
 public:
  /// `value` must outlive the node. `path` is empty for the whole file.
  JsonNode(const nlohmann::json& value, std::string file, std::string path = {})
      : value_(&value), file_(std::move(file)), path_(std::move(path)) {}

  const nlohmann::json& value() const { return *value_; }
  /// File and path.
  std::string place() const { return path_.empty() ? file_ : file_ + " " + path_; }
  bool is_null() const { return value_->is_null(); }

  /// A member; null where it is missing. Errors: this is not an object.
  JsonNode operator[](const char* key) const {
    check(value_->is_object(), "is not an object");
    static const nlohmann::json missing;
    const auto found = value_->find(key);
    return {found == value_->end() ? missing : *found, file_, path_.empty() ? key : path_ + "." + key};
  }
  /// Calls visit(node) for every element. Errors: this is not an array.
  template <class Visit>
  void each(const Visit& visit) const {
    check(value_->is_array(), "is not an array");
    for (size_t i = 0; i < value_->size(); ++i)
      visit(JsonNode((*value_)[i], file_, path_ + "[" + std::to_string(i) + "]"));
  }

  const std::string& text() const {
    check(value_->is_string(), "is not text");
    return value_->get_ref<const std::string&>();
  }
  std::string text_or(const char* fallback) const { return is_null() ? fallback : text(); }
  bool flag_or(bool fallback) const {
    if (is_null()) return fallback;
    check(value_->is_boolean(), "is neither true nor false");
    return value_->get<bool>();
  }
  /// A token number: below 2^24, which no vocabulary reaches.
  int32_t token() const {
    check(value_->is_number_integer() && *value_ >= 0 && *value_ < (1 << 24), "is not a token number");
    return value_->get<int32_t>();
  }

  void check(bool ok, const char* problem) const {
    if (!ok) refuse("{}", problem);
  }
  template <class... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) const {
    fail(file_, "{}{}{}", path_, path_.empty() ? "" : " ", fmt::format(format, std::forward<Args>(args)...));
  }

 private:
  const nlohmann::json* value_;
  std::string file_, path_;
};

}  // namespace osprey::bpe
