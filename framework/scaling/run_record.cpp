#include "framework/scaling/run_record.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "framework/files/file.h"
#include "framework/files/json.h"
#include "framework/scaling/words.h"
#include "framework/telemetry/metrics_log.h"
#include "kernels/core/check.h"

namespace osprey {
namespace {

using nlohmann::json;

constexpr int64_t most_bytes = int64_t{64} << 20;
constexpr int64_t most_count = int64_t{1} << 60;
constexpr size_t most_text = 1000;
constexpr size_t most_quantization = 1 << 20;  // every group of a recipe, with patterns
constexpr const char* cure = "correct the line or remove it; docs/scaling.md lists the keys";

/// One line as it grows.
class Line {
 public:
  template <class T>
  Line& add(std::string_view key, const T& value) {
    text_ += fmt::format("{}{}:{}", text_.empty() ? "{" : ",", json_string(key), json_of(value));
    return *this;
  }
  template <class T>
  Line& add(std::string_view key, const std::optional<T>& value) {
    return value ? add(key, *value) : *this;
  }
  std::string str() const { return text_ + "}\n"; }

 private:
  static std::string json_of(double value) { return json_number(value); }
  static std::string json_of(int64_t value) { return fmt::format("{}", value); }
  static std::string json_of(const std::string& text) { return json_string(text); }
  static std::string json_of(const std::vector<std::string>& texts) {
    std::string all;
    for (const std::string& text : texts) all += (all.empty() ? "" : ",") + json_string(text);
    return "[" + all + "]";
  }
  std::string text_;
};

/// Reads members of one object and says what is wrong with them.
class Members {
 public:
  Members(const std::string& where, const json& object) : where_(where), object_(object) {}

  bool has(const char* key) const { return object_.contains(key); }

  std::string text(const char* key, size_t most = most_text) const {
    const json& v = at(key);
    require(v.is_string(), where_, "{} must be a text, got {}; {}", key, shown(v.dump()), cure);
    return plain_text(key, v, most);
  }
  std::vector<std::string> texts(const char* key) const {
    const json& v = at(key);
    require(v.is_array() && !v.empty() && v.size() <= 100, where_, "{} must be a list of texts, got {}; {}",
            key, shown(v.dump()), cure);
    std::vector<std::string> all;
    for (const json& item : v) {
      require(item.is_string(), where_, "{} must hold texts, got {}; {}", key, shown(item.dump()), cure);
      all.push_back(plain_text(key, item, most_text));
    }
    return all;
  }
  int64_t count(const char* key, int64_t least) const {
    const json& v = at(key);
    const bool whole = v.is_number_unsigned() ? v.get<uint64_t>() <= static_cast<uint64_t>(most_count)
                                              : v.is_number_integer();
    require(whole && v.get<int64_t>() >= least && v.get<int64_t>() <= most_count, where_,
            "{} must be a whole number of at least {}, got {}; {}", key, least, shown(v.dump()), cure);
    return v.get<int64_t>();
  }
  double positive(const char* key) const {
    const json& v = at(key);
    require(v.is_number() && std::isfinite(v.get<double>()) && v.get<double>() > 0, where_,
            "{} must be a number above 0, got {}; {}", key, shown(v.dump()), cure);
    return v.get<double>();
  }
  double not_negative(const char* key) const {
    const json& v = at(key);
    require(v.is_number() && std::isfinite(v.get<double>()) && v.get<double>() >= 0, where_,
            "{} must be a number of at least 0, got {}; {}", key, shown(v.dump()), cure);
    return v.get<double>();
  }

 private:
  const json& at(const char* key) const {
    const auto found = object_.find(key);
    require(found != object_.end(), where_, "has no {}; {}", key, cure);
    return *found;
  }
  std::string plain_text(const char* key, const json& v, size_t most) const {
    const std::string text = v.get<std::string>();
    const bool plain = std::none_of(text.begin(), text.end(),
                                    [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F; });
    require(plain && !text.empty() && text.size() <= most, where_,
            "{} must be a text of one line, of at most {} bytes and not empty; {}", key, most, cure);
    return text;
  }

  const std::string& where_;
  const json& object_;
};

bool full(const std::string& format) { return format == "bf16" || format == "f32"; }

}  // namespace

bool RunFormats::full_precision() const { return full(weights) && full(activations) && full(gradients); }

std::string RunFormats::names() const { return scaling::joined({weights, activations, gradients}, "/"); }

std::string RunFormats::scheme() const { return how.empty() ? names() : names() + " (" + how + ")"; }

std::string RunRecord::optimizer() const { return scaling::joined(optimizers, "+"); }

std::string line_of(const RunRecord& r) {
  Line line;
  line.add("run", r.run).add("recipe_hash", r.recipe_hash).add("version", r.version);
  line.add("parameters", r.parameters).add("parameters_without_embedding", r.parameters_without_embedding);
  line.add("tokens", r.tokens).add("batch_tokens", r.batch_tokens).add("sequence_len", r.sequence_len);
  line.add("weights", r.formats.weights).add("activations", r.formats.activations);
  line.add("gradients", r.formats.gradients).add("block", r.formats.block);
  if (!r.formats.how.empty()) line.add("quantization", r.formats.how);
  line.add("optimizers", r.optimizers).add("schedule", r.schedule).add("seed", r.seed);
  line.add("tokenizer", r.tokenizer).add("validation_loss", r.validation_loss);
  line.add("validation_standard_error", r.validation_standard_error);
  line.add("validation_tokens", r.validation_tokens).add("train_loss", r.train_loss);
  line.add("train_loss_steps", r.train_loss_steps).add("flops", r.flops);
  return line.str();
}

RunRecord parse_record(const std::string& where, std::string_view line) {
  const json object = parse_json(where, line, 4);
  require(object.is_object(), where, "is no JSON object; {}", cure);
  const Members m(where, object);
  RunRecord r;
  r.run = m.text("run");
  r.recipe_hash = m.text("recipe_hash");
  r.version = m.text("version");
  r.parameters = m.count("parameters", 1);
  r.parameters_without_embedding = m.count("parameters_without_embedding", 1);
  require(r.parameters_without_embedding <= r.parameters, where,
          "parameters_without_embedding {} is more than parameters {}; {}", r.parameters_without_embedding,
          r.parameters, cure);
  r.tokens = m.count("tokens", 1);
  r.batch_tokens = m.count("batch_tokens", 1);
  r.sequence_len = m.count("sequence_len", 1);
  r.formats = {m.text("weights"), m.text("activations"), m.text("gradients"), {}, {}};
  if (m.has("block")) r.formats.block = m.count("block", 1);
  require(!r.formats.block || !r.formats.full_precision(), where,
          "has a block, but none of its formats {} is quantized; {}", r.formats.scheme(), cure);
  if (m.has("quantization")) r.formats.how = m.text("quantization", most_quantization);
  require(r.formats.how.empty() || !r.formats.full_precision(), where,
          "says how it is quantized, but none of its formats {} is; {}", r.formats.scheme(), cure);
  r.optimizers = m.texts("optimizers");
  r.schedule = m.text("schedule");
  r.seed = m.count("seed", 0);
  r.tokenizer = m.text("tokenizer");
  if (m.has("validation_loss")) r.validation_loss = m.positive("validation_loss");
  if (m.has("validation_standard_error"))
    r.validation_standard_error = m.not_negative("validation_standard_error");
  r.validation_tokens = m.count("validation_tokens", 0);
  if (m.has("train_loss")) r.train_loss = m.positive("train_loss");
  r.train_loss_steps = m.count("train_loss_steps", 0);
  r.flops = m.positive("flops");
  return r;
}

std::vector<RunRecord> read_records(const std::filesystem::path& file) {
  const std::string text = read_file(file, most_bytes);
  std::vector<RunRecord> records;
  std::map<std::pair<std::string, std::string>, size_t> of_run;
  int64_t number = 0;
  for (size_t begin = 0; begin < text.size(); ++number) {
    const size_t end = std::min(text.size(), text.find('\n', begin));
    const std::string_view line = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    RunRecord record = parse_record(fmt::format("{}:{}", file.string(), number + 1), line);
    const auto [at, fresh] = of_run.try_emplace({record.run, record.recipe_hash}, records.size());
    if (fresh)
      records.push_back(std::move(record));
    else
      records[at->second] = std::move(record);
  }
  return records;
}

void append_record(const std::filesystem::path& file, const RunRecord& record) {
  std::string line = line_of(record);
  std::ifstream before(file, std::ios::binary | std::ios::ate);
  if (before && before.tellg() > 0) {
    before.seekg(-1, std::ios::end);
    if (before.get() != '\n') line.insert(line.begin(), '\n');
  }
  AppendFile(file).write(line);
}

}  // namespace osprey
