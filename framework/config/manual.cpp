#include "framework/config/manual.h"

#include <algorithm>

#include "framework/config/numbers.h"
#include "framework/config/reader.h"
#include "kernels/core/check.h"

namespace osprey {
namespace {

class Manual final : public Fields {
 public:
  std::vector<ManualEntry> entries;

  void when(bool, const char* condition, const std::function<void()>& inside) override {
    conditions_.push_back(condition);
    inside();
    conditions_.pop_back();
  }
  void required(const char* key) override {
    for (ManualEntry& entry : entries)
      if (entry.path == path_ + key) entry.fallback = "required";
  }
  void rule(bool, const char*, const std::string&) override {}

 protected:
  void boolean(const char* key, bool& v, const char* help) override {
    add(key, "true or false", v ? "true" : "false", "", help);
  }
  void integer(const char* key, int64_t& v, const char* help, Limits l) override {
    add(key, "whole number", within(l, static_cast<double>(v)) ? fmt::format("{}", v) : "required",
        describe(l), help);
  }
  void real(const char* key, double& v, const char* help, Limits l) override {
    add(key, "number", within(l, v) ? format_real(v) : "required", describe(l), help);
  }
  void text(const char* key, std::string& v, const char* help) override {
    add(key, "text", v.empty() ? "\"\"" : v, "", help);
  }
  void texts(const char* key, std::vector<std::string>& v, const char* help) override {
    std::string items;
    for (const std::string& item : v) items += (items.empty() ? "" : ", ") + item;
    add(key, "list of texts", "[" + items + "]", "", help);
  }
  void reals(const char* key, std::vector<double>& v, const char* help, Limits l) override {
    std::string items;
    for (const double item : v) items += (items.empty() ? "" : ", ") + format_real(item);
    add(key, "list of numbers", "[" + items + "]", describe(l), help);
  }
  size_t enumeration(const char* key, const std::vector<const char*>& words, size_t index,
                     const char* help) override {
    std::string names;
    for (const char* word : words) names += (names.empty() ? "one of " : ", ") + std::string(word);
    add(key, names, words.at(index), "", help);
    return index;
  }
  bool optional(const char* key, bool set, const char* help, const std::function<void()>& inside) override {
    const size_t first = entries.size();
    inside();
    if (entries.size() > first && entries[first].path == path_ + key) {  // a value
      entries[first].type += ", or null";
      if (!set) entries[first].fallback = "off";
    } else {  // a section
      entries.insert(entries.begin() + static_cast<std::ptrdiff_t>(first),
                     {path_ + key, "section, or null", set ? "on" : "off", "", condition(), help});
    }
    return set;
  }
  void map(const char* key, const char*, const std::function<void()>& inside) override {
    below(std::string(key), inside);
  }
  void sequence(const char* key, const char* help, size_t, const std::function<void(size_t)>&,
                const std::function<void(size_t)>& element) override {
    add(key, "list of sections", "", "", help);
    below(std::string(key) + ".N", [&] { element(SIZE_MAX); });  // beyond every list: a blank entry
  }

 private:
  std::string condition() const {
    std::string text;
    for (const char* condition : conditions_) text += (text.empty() ? "" : " and ") + std::string(condition);
    return text;
  }
  void add(const char* key, const std::string& type, const std::string& fallback, const std::string& limits,
           const char* help) {
    entries.push_back({path_ + key, type, fallback, limits, condition(), help});
  }
  void below(const std::string& key, const std::function<void()>& inside) {
    const std::string outer = path_;
    path_ += key + ".";
    inside();
    path_ = outer;
  }

  std::string path_;
  std::vector<const char*> conditions_;
};

/// Without list indices: "optim.0.kind", "optim.N.kind" and "optim.kind" are all asked for.
std::string bare(const std::string& path) {
  std::string out;
  for (size_t begin = 0; begin <= path.size();) {
    const size_t dot = std::min(path.find('.', begin), path.size());
    const std::string word = path.substr(begin, dot - begin);
    begin = dot + 1;
    if (word == "N" || (!word.empty() && word.find_first_not_of("0123456789") == std::string::npos)) continue;
    out += (out.empty() ? "" : ".") + word;
  }
  return out;
}

std::string wrapped(const std::string& text, size_t indent, size_t width) {
  std::string out, line(indent, ' ');
  for (size_t begin = 0; begin < text.size();) {
    const size_t space = std::min(text.find(' ', begin), text.size());
    const std::string word = text.substr(begin, space - begin);
    begin = space + 1;
    if (line.size() > indent && line.size() + 1 + word.size() > width) {
      out += line + "\n";
      line.assign(indent, ' ');
    }
    line += (line.size() > indent ? " " : "") + word;
  }
  return out + line + "\n";
}

}  // namespace

std::vector<ManualEntry> manual(const std::function<void(Fields&)>& visit) {
  Manual manual;
  visit(manual);
  return manual.entries;
}

std::vector<ManualEntry> select(const std::vector<ManualEntry>& entries, const std::string& key) {
  const std::string wanted = bare(key);
  std::vector<ManualEntry> found;
  std::vector<std::string> names;
  for (const ManualEntry& entry : entries) {
    const std::string path = bare(entry.path);
    if (path == wanted || path.starts_with(wanted + ".")) found.push_back(entry);
    for (size_t dot = 0; dot != std::string::npos;) {
      dot = path.find('.', dot + 1);
      names.push_back(path.substr(0, dot));
    }
  }
  if (!found.empty()) return found;
  for (const ManualEntry& entry : entries)  // the last word alone is enough
    if (bare(entry.path).ends_with("." + wanted)) found.push_back(entry);
  if (!found.empty()) return found;
  std::string close = nearest(wanted, names);
  if (close.empty()) {
    for (std::string& name : names) name = name.substr(name.rfind('.') + 1);
    close = nearest(wanted, names);
  }
  fail("fields", "no recipe key is called {}{}", key,
       close.empty() ? "; osprey fields lists them all" : "; did you mean " + close + "?");
}

std::string manual_text(const std::vector<ManualEntry>& entries) {
  std::string out;
  for (const ManualEntry& entry : entries) {
    out += fmt::format("{}\n", entry.path);
    std::string facts = entry.type;
    if (!entry.limits.empty()) facts += ", " + entry.limits;
    if (entry.fallback == "required")
      facts += "; required";
    else if (!entry.fallback.empty())
      facts += "; default " + entry.fallback;
    if (!entry.condition.empty()) facts += "; only when " + entry.condition;
    out += wrapped(facts, 4, 100) + wrapped(entry.help, 4, 100);
  }
  return out;
}

std::string manual_markdown(const std::vector<ManualEntry>& entries) {
  const auto cell = [](const std::string& text) {
    std::string escaped;
    for (const char c : text) {
      if (c == '|') escaped += '\\';
      escaped += c;
    }
    return escaped;
  };
  std::string out, section;
  for (const ManualEntry& entry : entries) {
    const std::string top = entry.path.substr(0, entry.path.find('.'));
    if (out.empty() || top != section) {
      section = top;
      out += fmt::format("{}## {}\n\n| key | type | default | meaning |\n|---|---|---|---|\n",
                         out.empty() ? "" : "\n", top);
    }
    std::string type = entry.type, help = entry.help;
    if (!entry.limits.empty()) type += ", " + entry.limits;
    if (!entry.condition.empty()) help += fmt::format(" (only when {})", entry.condition);
    const std::string fallback =
        entry.fallback.empty() || entry.fallback == "required" || entry.fallback == "off"
            ? entry.fallback
            : "`" + entry.fallback + "`";
    out += fmt::format("| `{}` | {} | {} | {} |\n", entry.path, cell(type), cell(fallback), cell(help));
  }
  return out;
}

}  // namespace osprey
