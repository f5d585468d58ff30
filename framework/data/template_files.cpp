#include "framework/data/template_files.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "framework/data/jinja_template.h"
#include "framework/files/file.h"
#include "framework/files/json.h"
#include "kernels/core/check.h"

namespace osprey {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxTemplateBytes = 1 << 20, kMaxConfigBytes = int64_t{64} << 20;
constexpr int kMostConfigDepth = 32;

/// `chat_template` of tokenizer_config.json: a text, or a list of named texts of which `default` is meant.
std::optional<std::string> in_config(const std::string& path) {
  const auto config = read_json(path, kMaxConfigBytes, kMostConfigDepth);
  require(config.is_object(), path, "is not a JSON object; the file is damaged");
  if (!config.contains("chat_template") || config["chat_template"].is_null()) return {};
  const auto& given = config["chat_template"];
  if (given.is_string()) return given.get<std::string>();
  if (given.is_array())
    for (const auto& entry : given)
      if (entry.is_object() && entry.value("name", nlohmann::json()) == "default" &&
          entry.contains("template") && entry["template"].is_string())
        return entry["template"].get<std::string>();
  fail(path, "chat_template is neither a text nor a list with a template called default");
}

}  // namespace

std::optional<std::string> directory_template(const std::string& directory) {
  std::error_code ignored;
  const std::string file = directory + "/chat_template.jinja", config = directory + "/tokenizer_config.json";
  if (fs::exists(file, ignored)) return read_file(file, kMaxTemplateBytes);
  if (fs::exists(config, ignored)) return in_config(config);
  return {};
}

std::unique_ptr<ChatTemplate> load_template(const std::string& choice, const std::string& directory,
                                            const Tokenizer& tokenizer) {
  if (choice.ends_with(".jinja"))
    return make_jinja_template(read_file(choice, kMaxTemplateBytes), choice, tokenizer);
  if (choice != "auto") return make_named_template(choice, tokenizer);
  if (const auto source = directory_template(directory))
    return make_jinja_template(*source, "the template of " + directory, tokenizer);
  return make_named_template("alpaca", tokenizer);
}

}  // namespace osprey
