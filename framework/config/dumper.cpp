#include "framework/config/dumper.h"

#include <string_view>

#include "framework/config/numbers.h"
#include "kernels/core/check.h"

namespace osprey {
namespace {

/// Plain where every YAML reader takes it for a text, else in double quotes.
std::string quoted(const std::string& text) {
  const auto letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
  bool plain = !text.empty() && (letter(text[0]) || text[0] == '/' || text[0] == '_');
  for (const char c : text)
    plain = plain && (letter(c) || (c >= '0' && c <= '9') ||
                      std::string_view("_-./").find(c) != std::string_view::npos);
  std::string lower;
  for (const char c : text) lower += static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
  for (const char* word : {"null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan", "inf"})
    plain = plain && lower != word;
  if (plain) return text;
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\')
      out += '\\', out += c;
    else if (c == '\n')
      out += "\\n";
    else if (c == '\t')
      out += "\\t";
    else if (byte < 0x20 || byte == 0x7F)
      out += fmt::format("\\x{:02x}", byte);
    else
      out += c;
  }
  return out + '"';
}

class Dumper final : public Fields {
 public:
  std::string yaml;

  void when(bool active, const char*, const std::function<void()>& inside) override {
    if (active) inside();
  }
  void required(const char*) override {}
  void rule(bool, const char*, const std::string&) override {}

 protected:
  void boolean(const char* key, bool& v, const char*) override { line(key, v ? "true" : "false"); }
  void integer(const char* key, int64_t& v, const char*, Limits) override { line(key, fmt::format("{}", v)); }
  void real(const char* key, double& v, const char*, Limits) override { line(key, format_real(v)); }
  void text(const char* key, std::string& v, const char*) override { line(key, quoted(v)); }
  void texts(const char* key, std::vector<std::string>& v, const char*) override {
    std::string items;
    for (const std::string& item : v) items += (items.empty() ? "" : ", ") + quoted(item);
    line(key, "[" + items + "]");
  }
  void reals(const char* key, std::vector<double>& v, const char*, Limits) override {
    std::string items;
    for (const double item : v) items += (items.empty() ? "" : ", ") + format_real(item);
    line(key, "[" + items + "]");
  }
  size_t enumeration(const char* key, const std::vector<const char*>& words, size_t index,
                     const char*) override {
    line(key, words.at(index));
    return index;
  }
  bool optional(const char* key, bool set, const char*, const std::function<void()>& inside) override {
    if (set)
      inside();
    else
      line(key, "null");
    return set;
  }
  void map(const char* key, const char*, const std::function<void()>& inside) override {
    line(key, "");
    nest(inside, " {}");
  }
  void sequence(const char* key, const char*, size_t size, const std::function<void(size_t)>&,
                const std::function<void(size_t)>& element) override {
    line(key, size == 0 ? "[]" : "");
    for (size_t i = 0; i < size; ++i) {
      indent_ += 2;
      yaml += std::string(indent_, ' ') + "-";
      dash_ = true;
      nest([&] { element(i); }, " {}\n");
      dash_ = false;
      indent_ -= 2;
    }
  }

 private:
  void line(const std::string& key, const std::string& value) {
    yaml += dash_ ? " " : std::string(indent_, ' ');
    dash_ = false;
    yaml += key + ":" + (value.empty() ? "" : " " + value) + "\n";
  }
  /// Runs `inside` one level deeper; writes `empty` where it declared nothing.
  void nest(const std::function<void()>& inside, const std::string& empty) {
    const size_t before = yaml.size();
    indent_ += 2;
    inside();
    indent_ -= 2;
    if (yaml.size() != before) return;
    if (yaml.back() == '\n') yaml.pop_back();
    yaml += empty;
    if (yaml.back() != '\n') yaml += '\n';
  }

  size_t indent_ = 0;
  bool dash_ = false;
};

}  // namespace

std::string dump_yaml(const std::function<void(Fields&)>& visit) {
  Dumper dumper;
  visit(dumper);
  return dumper.yaml;
}

}  // namespace osprey
