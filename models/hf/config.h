#pragma once
// Typed access to a config.json that may hold anything.

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace osprey {

/// Absent and null are the same: what `otherwise` says. Errors: everything else of another type, by file and
/// key.
class HubConfig {
 public:
  using Json = nlohmann::json;
  /// Errors: `tree` is no object.
  HubConfig(std::string where, Json tree);
  const std::string& where() const { return where_; }
  const Json& tree() const { return tree_; }

  /// Null when the key is absent or null.
  const Json* find(const char* key) const { return find(tree_, key); }
  static const Json* find(const Json& holder, const char* key);

  /// From 1 to 2^40.
  int64_t whole(const char* key) const;
  int64_t whole(const char* key, int64_t otherwise) const { return find(key) ? whole(key) : otherwise; }
  /// From 0 to 2^40; 0 where the key is absent.
  int64_t whole_or_zero(const Json& holder, const char* key) const;
  int64_t whole_or_zero(const char* key) const { return whole_or_zero(tree_, key); }
  double real(const Json& holder, const char* key, double otherwise) const;
  double real(const char* key, double otherwise) const { return real(tree_, key, otherwise); }
  bool flag(const Json& holder, const char* key, bool otherwise) const;
  bool flag(const char* key, bool otherwise) const { return flag(tree_, key, otherwise); }
  std::string word(const Json& holder, const char* key, const char* otherwise) const;
  std::string word(const char* key, const char* otherwise) const { return word(tree_, key, otherwise); }
  /// A token, or a list of them; empty where the key is absent.
  std::vector<int32_t> tokens(const char* key) const;
  /// The object of a key. Errors: no object.
  const Json* object(const Json& holder, const char* key) const;

 private:
  std::string where_;
  Json tree_;
};

}  // namespace osprey
