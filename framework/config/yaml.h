#pragma once
// A YAML text as a small tree that remembers where each value stood. Recipes are plain data: anchors,
// aliases, tags and second documents are refused, and size, depth and the number of values are limited,
// so a hostile file costs little. framework/config/yaml.cpp is the only file that includes yaml-cpp.

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace osprey::yaml {

inline constexpr size_t max_text_bytes = 1 << 20;
inline constexpr size_t max_depth = 32;
inline constexpr size_t max_values = 20'000;

struct Node;

/// One `key: value` of a map. Duplicate keys are kept: the reader reports them.
struct Entry {
  std::string key;
  int line = 0;
  std::unique_ptr<Node> value;

  /// Where the key stands: "recipes/x.yaml:12", or the --set that gave the value.
  std::string where() const;
};

struct Node {
  enum class Kind { scalar, map, list };
  Kind kind = Kind::scalar;
  bool quoted = false;                        // scalar only: "5" is text, 5 is a number
  int line = 0;                               // 1-based; 0 for a value that stood in no file
  std::shared_ptr<const std::string> source;  // file name, or the --set assignment it came from
  std::string text;                           // scalar
  std::vector<Entry> entries;                 // map
  std::vector<std::unique_ptr<Node>> items;   // list

  bool is_null() const;
  /// "recipes/x.yaml:12", or "--set train.tokens=5".
  std::string where() const;
  /// The first entry with this key, or null.
  const Entry* find(std::string_view key) const;
};

/// Parses one document. An empty text is an empty map.
/// Errors: "name:line: what is wrong" for anything that is not one plain YAML document.
Node parse(std::string_view text, const std::string& name);

/// Applies "key.path=value" (list entries by index, `optim.0.learning_rate=1e-3`) to the tree. The value
/// is read as YAML when it begins with [ { " or ', else taken as it stands.
/// Errors: a path through a value that is no section, or an index beyond the list.
void apply_override(Node& root, const std::string& assignment);

}  // namespace osprey::yaml
