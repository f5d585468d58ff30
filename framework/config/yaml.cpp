#include "framework/config/yaml.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <charconv>
#include <sstream>

#include "framework/files/utf8.h"
#include "kernels/core/check.h"

namespace osprey::yaml {
namespace {

[[noreturn]] void wrong(const std::string& name, int line, const std::string& message) {
  if (line > 0) throw Error(fmt::format("{}:{}: {}", name, line, message));
  throw Error(fmt::format("{}: {}", name, message));
}

/// What yaml-cpp would misread or report badly: wrong encodings, control characters (it takes 0x04 for
/// the end of the file) and tabs in the indentation.
void check_characters(std::string_view text, const std::string& name) {
  if (text.size() > max_text_bytes)
    wrong(name, 0, fmt::format("is {} bytes long; a recipe has at most {}", text.size(), max_text_bytes));
  int line = 1;
  bool indentation = true, tab = false;
  for (size_t i = 0; i < text.size();) {
    const unsigned char c = static_cast<unsigned char>(text[i]);
    const size_t length = utf8_length(text, i);
    if (length == 0) wrong(name, line, "is not UTF-8 text");
    if ((c < 0x20 && c != '\n' && c != '\r' && c != '\t') || c == 0x7F)
      wrong(name, line, fmt::format("holds the control character 0x{:02x}; a recipe is plain text", c));
    if (c == '\n') {
      ++line;
      indentation = true;
      tab = false;
    } else if (indentation) {
      if (c == '\t')
        tab = true;
      else if (c != ' ' && c != '\r') {
        if (tab && c != '#') wrong(name, line, "is indented with a tab; use spaces");
        indentation = false;
      }
    }
    i += length;
  }
}

class Builder final : public YAML::EventHandler {
 public:
  Builder(Node& root, const std::string& name)
      : root_(root), name_(name), source_(std::make_shared<const std::string>(name)) {}

  bool seen_document() const { return documents_ > 0; }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (documents_++ > 0) wrong(name_, line_of(mark), "begins a second document; a recipe is one document");
  }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override { scalar(mark, anchor, "", "?"); }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    wrong(name_, line_of(mark), "uses an alias (*name); write the value out");
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    scalar(mark, anchor, value, tag);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, Node::Kind::list);
  }
  void OnSequenceEnd() override { open_.pop_back(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, Node::Kind::map);
  }
  void OnMapEnd() override {
    if (!at_key()) wrong(name_, open_.back()->line, "has a key without a value");
    open_.pop_back();
  }

 private:
  static int line_of(const YAML::Mark& mark) { return mark.line + 1; }

  void check(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) const {
    if (anchor != 0) wrong(name_, line_of(mark), "uses an anchor (&name); write the value out");
    if (!tag.empty() && tag != "?" && tag != "!")
      wrong(name_, line_of(mark), fmt::format("uses the tag {}; a recipe needs none", tag));
  }

  bool at_key() const {
    return !open_.empty() && open_.back()->kind == Node::Kind::map &&
           (open_.back()->entries.empty() || open_.back()->entries.back().value);
  }

  void scalar(const YAML::Mark& mark, YAML::anchor_t anchor, const std::string& value,
              const std::string& tag) {
    check(mark, tag, anchor);
    if (at_key()) {
      if (value.empty()) wrong(name_, line_of(mark), "has an empty key");
      open_.back()->entries.push_back({value, line_of(mark), nullptr});
      return;
    }
    Node& node = add(mark, Node::Kind::scalar);
    node.text = value;
    node.quoted = tag == "!";
  }

  void open(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, Node::Kind kind) {
    check(mark, tag, anchor);
    if (at_key())
      wrong(name_, line_of(mark), "has a list or a map as a key, or a bracket left open; keys are words");
    if (open_.size() >= max_depth)
      wrong(name_, line_of(mark), fmt::format("nests deeper than {} levels", max_depth));
    open_.push_back(&add(mark, kind));
  }

  Node& add(const YAML::Mark& mark, Node::Kind kind) {
    if (++values_ > max_values)
      wrong(name_, line_of(mark), fmt::format("holds more than {} values", max_values));
    Node* node = &root_;
    if (!open_.empty()) {
      auto fresh = std::make_unique<Node>();
      node = fresh.get();
      Node& parent = *open_.back();
      if (parent.kind == Node::Kind::map)
        parent.entries.back().value = std::move(fresh);
      else
        parent.items.push_back(std::move(fresh));
    }
    node->kind = kind;
    node->line = line_of(mark);
    node->source = source_;
    return *node;
  }

  Node& root_;
  const std::string& name_;
  std::shared_ptr<const std::string> source_;
  std::vector<Node*> open_;
  size_t values_ = 0;
  int documents_ = 0;
};

}  // namespace

bool Node::is_null() const {
  return kind == Kind::scalar && !quoted &&
         (text.empty() || text == "null" || text == "~" || text == "Null" || text == "NULL");
}

std::string Entry::where() const {
  return value->line > 0 ? fmt::format("{}:{}", *value->source, line) : value->where();
}

std::string Node::where() const {
  const std::string name = source ? *source : std::string("recipe");
  return line > 0 ? fmt::format("{}:{}", name, line) : name;
}

const Entry* Node::find(std::string_view key) const {
  for (const Entry& entry : entries)
    if (entry.key == key) return &entry;
  return nullptr;
}

Node parse(std::string_view text, const std::string& name) {
  check_characters(text, name);
  Node root;
  root.kind = Node::Kind::map;
  root.source = std::make_shared<const std::string>(name);
  Builder builder(root, name);
  try {
    std::istringstream stream{std::string(text)};
    YAML::Parser parser(stream);
    while (parser.HandleNextDocument(builder)) {
    }
  } catch (const YAML::Exception& error) {
    wrong(name, error.mark.is_null() ? 0 : error.mark.line + 1,
          fmt::format("is not valid YAML: {}", error.msg));
  }
  return root;
}

void apply_override(Node& root, const std::string& assignment) {
  const std::string name = "--set " + assignment;
  const size_t equals = assignment.find('=');
  if (equals == std::string::npos || equals == 0) wrong(name, 0, "must read key.path=value");
  if (root.is_null()) root.kind = Node::Kind::map, root.text.clear();

  const std::string path = assignment.substr(0, equals), value = assignment.substr(equals + 1);
  auto fresh = std::make_unique<Node>();
  if (!value.empty() && std::string_view("[{\"'").find(value[0]) != std::string_view::npos) {
    *fresh = parse(value, name);
  } else {
    check_characters(value, name);
    fresh->text = value;
  }
  const auto source = std::make_shared<const std::string>(name);
  std::vector<Node*> todo{fresh.get()};
  while (!todo.empty()) {  // lines of the assignment mean nothing to its reader
    Node* node = todo.back();
    todo.pop_back();
    node->line = 0;
    node->source = source;
    for (Entry& entry : node->entries) entry.line = 0, todo.push_back(entry.value.get());
    for (auto& item : node->items) todo.push_back(item.get());
  }

  Node* node = &root;
  for (size_t begin = 0, depth = 1;; ++depth) {
    if (depth > max_depth) wrong(name, 0, fmt::format("names a path deeper than {} levels", max_depth));
    const size_t dot = path.find('.', begin);
    const bool last = dot == std::string::npos;
    const std::string key = path.substr(begin, last ? std::string::npos : dot - begin);
    const std::string so_far = path.substr(0, begin == 0 ? 0 : begin - 1);
    if (key.empty()) wrong(name, 0, "has an empty word in its key path");
    std::unique_ptr<Node>* slot = nullptr;
    if (node->kind == Node::Kind::list) {
      size_t index = 0;
      const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), index);
      if (error != std::errc() || end != key.data() + key.size() || index >= node->items.size())
        wrong(name, 0,
              fmt::format("{} is a list of {}; {} is none of its indices (the first is 0)", so_far,
                          node->items.size(), key));
      slot = &node->items[index];
    } else if (node->kind == Node::Kind::map) {
      for (Entry& entry : node->entries)
        if (entry.key == key) slot = &entry.value;
      if (!slot) {
        node->entries.push_back({key, 0, nullptr});
        slot = &node->entries.back().value;
      }
    } else {
      wrong(name, 0,
            fmt::format("{} is a single value in the recipe, so {} cannot stand below it", so_far, key));
    }
    if (last) {
      *slot = std::move(fresh);
      return;
    }
    if (!*slot || (*slot)->is_null()) {
      *slot = std::make_unique<Node>();
      (*slot)->kind = Node::Kind::map;
      (*slot)->source = source;
    }
    node = slot->get();
    begin = dot + 1;
  }
}

}  // namespace osprey::yaml
