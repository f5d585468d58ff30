#include "framework/config/reader.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <unordered_map>

#include "framework/config/numbers.h"
#include "framework/config/yaml.h"
#include "kernels/core/check.h"

namespace osprey {
namespace {

constexpr size_t max_problems = 20;

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

/// A value as a message shows it: short, on one line.
std::string shown(const yaml::Node& node) {
  if (node.kind == yaml::Node::Kind::map) return "a section";
  if (node.kind == yaml::Node::Kind::list) return "a list";
  if (node.is_null()) return "nothing";
  std::string text;
  for (const char c : node.text.substr(0, 60)) text += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  while (!text.empty() && text.size() < node.text.size() && (text.back() & 0xC0) == 0x80) text.pop_back();
  return '"' + text + (node.text.size() > 60 ? "...\"" : "\"");
}

struct Problem {
  std::string where;
  int line = 0;  // for the order; 0 for --set, which comes last
  std::string text;
  size_t rule_depth;  // the frame whose rule found it; 0 for everything that is no rule
};

class Reader final : public Fields {
 public:
  explicit Reader(const yaml::Node& root) : root_(root) {}

  void read(const std::function<void(Fields&)>& visit) {
    if (root_.kind != yaml::Node::Kind::map)
      throw Error(fmt::format("{}: a recipe is a map of sections, got {}", root_.where(), shown(root_)));
    enter(&root_, "", root_.where(), [&] { visit(*this); });
    finish();
  }

  void when(bool active, const char* condition, const std::function<void()>& inside) override {
    if (active) return inside();
    inactive_.push_back(condition);
    inside();
    inactive_.pop_back();
  }

  void required(const char* key) override {
    if (!inactive_.empty() || top().find(key)) return;
    missing(key);
  }

  void rule(bool ok, const char* key, const std::string& message) override {
    if (ok || !inactive_.empty()) return;
    const auto [where, line] = locate(key);
    problems_.push_back({where, line, path_of(key) + ": " + message, frames_.size()});
  }

 protected:
  void boolean(const char* key, bool& v, const char*) override {
    const yaml::Node* node = declare(key);
    if (!node) return;
    if (is_plain(*node) && (node->text == "true" || node->text == "false"))
      v = node->text == "true";
    else
      mistyped(*node, key, "true or false");
  }

  void integer(const char* key, int64_t& v, const char*, Limits limits) override {
    const yaml::Node* node = declare(key);
    if (!node) return absent_number(key, static_cast<double>(v), limits);
    const std::optional<int64_t> value = is_plain(*node) ? parse_integer(node->text) : std::nullopt;
    if (!value) return mistyped(*node, key, "a whole number");
    if (check(*node, key, static_cast<double>(*value), limits)) v = *value;
  }

  void real(const char* key, double& v, const char*, Limits limits) override {
    const yaml::Node* node = declare(key);
    if (!node) return absent_number(key, v, limits);
    const std::optional<double> value = is_plain(*node) ? parse_real(node->text) : std::nullopt;
    if (!value) return mistyped(*node, key, "a number");
    if (check(*node, key, *value, limits)) v = *value;
  }

  void text(const char* key, std::string& v, const char*) override {
    const yaml::Node* node = declare(key);
    if (!node) return;
    if (node->kind == yaml::Node::Kind::scalar && !node->is_null())
      v = node->text;
    else
      mistyped(*node, key, "a text");
  }

  void texts(const char* key, std::vector<std::string>& v, const char*) override {
    const yaml::Node* node = declare(key);
    if (!node) return;
    if (node->kind != yaml::Node::Kind::list) return mistyped(*node, key, "a list of texts such as [a, b]");
    v.clear();
    for (const auto& item : node->items) {
      if (item->kind != yaml::Node::Kind::scalar || item->is_null()) mistyped(*item, key, "a list of texts");
      v.push_back(item->text);
    }
  }

  void reals(const char* key, std::vector<double>& v, const char*, Limits limits) override {
    const yaml::Node* node = declare(key);
    if (!node) return;
    if (node->kind != yaml::Node::Kind::list)
      return mistyped(*node, key, "a list of numbers such as [0.9, 0.95]");
    v.clear();
    for (const auto& item : node->items) {
      const std::optional<double> value = is_plain(*item) ? parse_real(item->text) : std::nullopt;
      if (!value)
        mistyped(*item, key, "a list of numbers");
      else if (check(*item, key, *value, limits))
        v.push_back(*value);
    }
  }

  size_t enumeration(const char* key, const std::vector<const char*>& words, size_t index,
                     const char*) override {
    const yaml::Node* node = declare(key);
    if (!node) return index;
    const std::vector<std::string> names(words.begin(), words.end());
    if (node->kind == yaml::Node::Kind::scalar)
      for (size_t i = 0; i < names.size(); ++i)
        if (node->text == names[i]) return i;
    top().undecided = true;
    const std::string close = node->kind == yaml::Node::Kind::scalar ? nearest(node->text, names) : "";
    problem(*node, fmt::format("{} must be one of {}, got {}{}", path_of(key), joined(names), shown(*node),
                               close.empty() ? "" : "; did you mean " + close + "?"));
    return index;
  }

  bool optional(const char* key, bool set, const char*, const std::function<void()>& inside) override {
    const yaml::Node* node = declare(key);
    if (!node) return set;
    if (node->is_null()) return false;
    inside();
    return true;
  }

  void map(const char* key, const char*, const std::function<void()>& inside) override {
    const yaml::Node* node = declare(key);
    if (!inactive_.empty()) return;
    if (!node) return enter(nullptr, path_of(key), top().where, inside);
    const std::string where = top().node->find(key)->where();
    if (node->is_null())
      enter(nullptr, path_of(key), where, inside);
    else if (node->kind == yaml::Node::Kind::map)
      enter(node, path_of(key), where, inside);
    else
      mistyped(*node, key, "a section of keys");
  }

  void sequence(const char* key, const char*, size_t, const std::function<void(size_t)>& resize,
                const std::function<void(size_t)>& element) override {
    const yaml::Node* node = declare(key);
    if (!node) return;
    if (node->kind != yaml::Node::Kind::list)
      return mistyped(*node, key, "a list (entries begin with a dash)");
    resize(0);
    resize(node->items.size());
    for (size_t i = 0; i < node->items.size(); ++i) {
      const yaml::Node& item = *node->items[i];
      const std::string path = fmt::format("{}.{}", path_of(key), i);
      if (item.kind == yaml::Node::Kind::map)
        enter(&item, path, item.where(), [&] { element(i); });
      else
        problem(item, fmt::format("{} must be a section of keys, got {}", path, shown(item)));
    }
  }

 private:
  struct Known {
    std::string key, condition;  // condition is empty for a key that applies
  };
  struct Frame {
    const yaml::Node* node;  // null for a section that the recipe leaves out
    std::string path, where;
    size_t first_problem;
    std::vector<Known> known;
    bool undecided = false;  // a choice holds no known word, so what depends on it cannot be judged

    const yaml::Node* find(const char* key) const {
      const yaml::Entry* entry = node ? node->find(key) : nullptr;
      return entry ? entry->value.get() : nullptr;
    }
  };
  struct Unknown {
    size_t problem;
    std::string key;
  };

  Frame& top() { return frames_.back(); }
  std::string path_of(const std::string& key) { return top().path.empty() ? key : top().path + "." + key; }
  static bool is_plain(const yaml::Node& node) {
    return node.kind == yaml::Node::Kind::scalar && !node.quoted && !node.is_null();
  }

  void problem(const yaml::Node& node, const std::string& text) {
    problems_.push_back({node.where(), node.line, text, 0});
  }

  void mistyped(const yaml::Node& node, const char* key, const char* expected) {
    problem(node, fmt::format("{} must be {}, got {}", path_of(key), expected, shown(node)));
  }

  bool check(const yaml::Node& node, const char* key, double value, const Limits& limits) {
    if (within(limits, value)) return true;
    problem(node, fmt::format("{} must be {}, got {}", path_of(key), describe(limits), node.text));
    return false;
  }

  void absent_number(const char* key, double value, const Limits& limits) {
    if (inactive_.empty() && !within(limits, value)) missing(key);
  }

  void missing(const char* key) {
    problems_.push_back({top().where, top().node ? top().node->line : 0, path_of(key) + " is required", 0});
  }

  /// Notes that the key exists here; its value where the recipe gives one that applies.
  const yaml::Node* declare(const char* key) {
    top().known.push_back({key, inactive_.empty() ? "" : joined({inactive_.begin(), inactive_.end()})});
    return inactive_.empty() ? top().find(key) : nullptr;
  }

  void enter(const yaml::Node* node, const std::string& path, const std::string& where,
             const std::function<void()>& inside) {
    frames_.push_back({node, path, where, problems_.size(), {}, false});
    inside();
    check_keys();
    // Values that failed to parse still hold defaults, so rules over them would mislead.
    const size_t depth = frames_.size();
    const auto begin = problems_.begin() + static_cast<std::ptrdiff_t>(top().first_problem);
    if (std::any_of(begin, problems_.end(), [](const Problem& p) { return p.rule_depth == 0; }))
      for (auto p = begin; p != problems_.end(); ++p)
        if (p->rule_depth == depth) p->text.clear();
    for (const Known& known : top().known) all_keys_.emplace_back(known.key, path);
    frames_.pop_back();
  }

  /// Keys given twice, keys whose condition does not hold, and keys that do not exist.
  void check_keys() {
    if (!top().node) return;
    std::unordered_map<std::string_view, int> first_line;
    for (const yaml::Entry& entry : top().node->entries) {
      std::string name = entry.key.size() > 60 ? entry.key.substr(0, 60) + "..." : entry.key;
      std::replace_if(
          name.begin(), name.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20; }, ' ');
      name = path_of(name);
      const auto add = [&](const std::string& text) {
        problems_.push_back({entry.where(), entry.value->line > 0 ? entry.line : 0, name + " " + text, 0});
      };
      const auto [first, fresh] = first_line.emplace(entry.key, entry.line);
      if (!fresh) {
        add(fmt::format("is given twice, first on line {}", first->second));
        continue;
      }
      std::vector<std::string> keys, conditions;
      bool applies = false;
      for (const Known& known : top().known) {
        if (std::find(keys.begin(), keys.end(), known.key) == keys.end()) keys.push_back(known.key);
        if (known.key != entry.key) continue;
        if (known.condition.empty())
          applies = true;
        else
          conditions.push_back(known.condition);
      }
      if (applies) continue;
      if (!conditions.empty() && top().undecided) continue;
      if (!conditions.empty()) {
        std::string text;
        for (const std::string& condition : conditions) text += (text.empty() ? "" : ", or ") + condition;
        add(fmt::format("only applies when {}", text));
        continue;
      }
      const std::string close = nearest(entry.key, keys);
      add(fmt::format("is not a key{} (keys of {}: {})", close.empty() ? "" : "; did you mean " + close + "?",
                      top().path.empty() ? "the recipe" : top().path, joined(keys)));
      if (close.empty()) unknown_.push_back({problems_.size() - 1, entry.key});
      if (problems_.size() > 50 * max_problems) return;
    }
  }

  /// The deepest part of `key` that the recipe gives.
  std::pair<std::string, int> locate(const std::string& key) {
    const yaml::Node* node = top().node;
    std::pair<std::string, int> found{top().where, node ? node->line : 0};
    for (size_t begin = 0; node && begin <= key.size();) {
      const size_t dot = std::min(key.find('.', begin), key.size());
      const std::string word = key.substr(begin, dot - begin);
      begin = dot + 1;
      if (node->kind == yaml::Node::Kind::list) {
        const std::optional<int64_t> index = parse_integer(word);
        if (!index || *index < 0 || *index >= static_cast<int64_t>(node->items.size())) break;
        node = node->items[static_cast<size_t>(*index)].get();
        found = {node->where(), node->line};
        continue;
      }
      const yaml::Entry* entry = node->find(word);
      if (!entry) break;
      node = entry->value.get();
      found = {entry->where(), node->line > 0 ? entry->line : 0};
    }
    return found;
  }

  void finish() {
    for (const Unknown& unknown : unknown_) {  // right word, wrong section
      std::vector<std::string> sections;
      for (const auto& [key, path] : all_keys_)
        if (key == unknown.key && std::find(sections.begin(), sections.end(), path) == sections.end())
          sections.push_back(path);
      if (sections.empty() || sections.size() > 3) continue;
      for (std::string& section : sections) section = section.empty() ? "the top of the recipe" : section;
      problems_[unknown.problem].text += fmt::format("; there is one in {}", joined(sections));
    }
    std::erase_if(problems_, [](const Problem& p) { return p.text.empty(); });
    if (problems_.empty()) return;
    std::stable_sort(problems_.begin(), problems_.end(), [](const Problem& a, const Problem& b) {
      return (a.line == 0 ? INT32_MAX : a.line) < (b.line == 0 ? INT32_MAX : b.line);
    });
    std::string text;
    for (size_t i = 0; i < std::min(problems_.size(), max_problems); ++i)
      text += fmt::format("{}{}: {}", i ? "\n" : "", problems_[i].where, problems_[i].text);
    if (problems_.size() > max_problems)
      text += fmt::format("\n... and {} more problems", problems_.size() - max_problems);
    throw Error(text);
  }

  const yaml::Node& root_;
  std::vector<Frame> frames_;
  std::vector<const char*> inactive_;
  std::vector<Problem> problems_;
  std::vector<Unknown> unknown_;
  std::vector<std::pair<std::string, std::string>> all_keys_;  // key, section
};

/// Edits (insert, delete, replace, swap neighbours) between two words, ignoring case and - against _.
size_t edits(std::string_view a, std::string_view b) {
  const auto fold = [](char c) {
    return c == '-' ? '_' : static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
  };
  std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) d[i][0] = i;
  for (size_t j = 0; j <= b.size(); ++j) d[0][j] = j;
  for (size_t i = 1; i <= a.size(); ++i)
    for (size_t j = 1; j <= b.size(); ++j) {
      const bool same = fold(a[i - 1]) == fold(b[j - 1]);
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (same ? 0 : 1)});
      if (i > 1 && j > 1 && fold(a[i - 1]) == fold(b[j - 2]) && fold(a[i - 2]) == fold(b[j - 1]))
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  return d[a.size()][b.size()];
}

}  // namespace

std::string nearest(std::string_view word, const std::vector<std::string>& candidates) {
  if (word.size() > 64) return {};
  std::string best;
  size_t best_edits = std::max<size_t>(1, word.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    if (candidate.size() > 64) continue;
    const size_t distance = edits(word, candidate);
    if (distance < best_edits) best_edits = distance, best = candidate;
  }
  if (!best.empty() || word.size() < 3) return best;
  for (const std::string& candidate :
       candidates)  // seq_len is far from sequence_len by edits; size is in hidden_size
    if (candidate.find(word) != std::string::npos ||
        (candidate.size() >= 3 && word.find(candidate) != std::string_view::npos))
      return candidate;
  return best;
}

void read_yaml(std::string_view text, const std::string& name, const std::vector<std::string>& overrides,
               const std::function<void(Fields&)>& visit) {
  yaml::Node root = yaml::parse(text, name);
  for (const std::string& assignment : overrides) yaml::apply_override(root, assignment);
  Reader(root).read(visit);
}

std::string load_yaml_text(const std::string& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) throw Error(fmt::format("{}: no such file", path));
  if (std::filesystem::is_directory(status)) throw Error(fmt::format("{}: is a folder, not a recipe", path));
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error(fmt::format("{}: cannot be opened for reading", path));
  std::string text(yaml::max_text_bytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  if (text.size() > yaml::max_text_bytes)
    throw Error(fmt::format("{}: is longer than {} bytes; this is no recipe", path, yaml::max_text_bytes));
  return text;
}

}  // namespace osprey
