#include "launch/report/run_data.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "framework/config/yaml.h"
#include "kernels/core/check.h"

namespace osprey::report {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr size_t most_line_bytes = 1 << 20;
constexpr size_t named_bad_lines = 8;

/// A number, or one of the words that stand for the numbers JSON does not have.
std::optional<double> number(const json& entry, const char* key) {
  const auto at = entry.find(key);
  if (at == entry.end()) return {};
  if (at->is_number()) return at->get<double>();
  if (at->is_string()) {
    const auto& word = at->get_ref<const std::string&>();
    if (word == "NaN") return std::numeric_limits<double>::quiet_NaN();
    if (word == "Infinity") return std::numeric_limits<double>::infinity();
    if (word == "-Infinity") return -std::numeric_limits<double>::infinity();
  }
  return {};
}

std::optional<int64_t> count(const json& entry, const char* key) {
  const auto at = entry.find(key);
  if (at == entry.end() || !at->is_number_integer()) return {};
  const int64_t value =
      at->is_number_unsigned() && at->get<uint64_t>() > uint64_t{1} << 62 ? -1 : at->get<int64_t>();
  return value < 0 ? std::nullopt : std::optional(value);
}

std::string text(const json& entry, const char* key, const char* otherwise) {
  const auto at = entry.find(key);
  return at != entry.end() && at->is_string() ? at->get<std::string>() : otherwise;
}

/// Adds one entry to the run. Returns what is wrong with it, or nothing.
std::string add_entry(RunData& run, const json& entry) {
  if (!entry.is_object()) return "no JSON object";
  const auto step = count(entry, "step"), tokens = count(entry, "tokens");
  const std::string event = text(entry, "event", "");
  if (event.empty()) return "no event";
  if (!step) return "no step";
  if (!tokens) return "no tokens";
  if (event == "train") {
    if (!number(entry, "loss")) return "a train entry without loss";
    for (const char* key :
         {"loss", "grad_norm", "learning_rate", "tokens_per_second", "gemm_percent", "step_ms"})
      if (const auto value = number(entry, key)) run.train[key].add(*step, *tokens, *value);
  } else if (event == "eval") {
    const auto loss = number(entry, "loss");
    if (!loss) return "an eval entry without loss";
    const std::string how = text(entry, "quantization", "none");
    const bool trained = how == "none" || how == "as trained";
    // By osprey eval, of any checkpoint and data.
    const bool afterwards = text(entry, "source", "") == "eval";
    const bool elsewhere = entry.contains("data") || entry.contains("sequence_len");
    if (trained && !afterwards) run.validation.add(*step, *tokens, *loss);
    const auto known = run.eval_step.find(how);
    const bool latest = known == run.eval_step.end() || known->second <= *step;
    if (latest && (!afterwards || (!trained && !elsewhere))) {
      run.eval_loss[how] = *loss;
      run.eval_step[how] = *step;
    }
  } else if (event == "outliers") {
    const std::string protocol = text(entry, "protocol", ""), tensor = text(entry, "tensor", "");
    const auto layer = entry.find("layer");
    if (protocol.empty() || tensor.empty() || layer == entry.end() || !layer->is_number_integer())
      return "an outliers entry without protocol, tensor or layer";
    const auto index = layer->get<int64_t>();
    if (index < -1 || index > 100000) return "an outliers entry with an impossible layer";
    for (const char* key : {"osp_kurtosis", "kurtosis", "pooled_kurtosis", "max_abs", "max_to_mean",
                            "max_to_median", "first_token_share"})
      if (const auto value = number(entry, key))
        run.outliers[{protocol, tensor, key}][static_cast<int>(index)].add(*step, *tokens, *value);
  } else if (event == "quantization") {
    const std::string role = text(entry, "role", ""), weight = text(entry, "weight", "");
    const auto layer = count(entry, "layer");
    if (role.empty() || weight.empty() || !layer || *layer > 100000)
      return "a quantization entry without role, layer or weight";
    auto& figures = run.quantization[{role, static_cast<int>(*layer), weight}];
    for (const char* key : {"relative_error", "clipped", "underflow", "wide_rows_3", "wide_rows_14",
                            "oscillating", "oscillated", "frozen"})
      if (const auto value = number(entry, key)) figures[key].add(*step, *tokens, *value);
  } else if (event == "skipped_update") {
    run.skipped.emplace_back(*step, text(entry, "reason", "unknown"));
  } else if (event == "start") {
    if (*step > 0) run.resumed.push_back(*step);
  }  // other events (checkpoint, end, ...) have nothing to draw
  run.step = std::max(run.step, *step);
  run.tokens = std::max(run.tokens, *tokens);
  ++run.entries;
  return {};
}

void read_metrics(RunData& run) {
  const fs::path file = run.dir / "metrics.jsonl";
  std::ifstream in(file, std::ios::binary);
  if (!in) {
    run.notes.push_back("there is no metrics.jsonl: no curves");
    return;
  }
  int64_t line_number = 0;
  for (std::string line; std::getline(in, line);) {
    ++line_number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string wrong = line.size() > most_line_bytes ? "longer than 1 MiB" : [&] {
      const json entry = json::parse(line, nullptr, false);
      return entry.is_discarded() ? std::string("not JSON") : add_entry(run, entry);
    }();
    if (wrong.empty()) continue;
    if (++run.bad_lines <= static_cast<int64_t>(named_bad_lines))
      run.notes.push_back(fmt::format("metrics.jsonl line {}: {}; skipped", line_number, wrong));
  }
  if (run.bad_lines > static_cast<int64_t>(named_bad_lines))
    run.notes.push_back(fmt::format("metrics.jsonl: {} lines skipped in all", run.bad_lines));
  if (run.entries == 0) run.notes.push_back("metrics.jsonl holds no entries yet: no curves");
}

void flatten(const json& value, const std::string& path, std::map<std::string, std::string>& out) {
  if (value.is_object()) {
    for (const auto& [key, inner] : value.items()) flatten(inner, path.empty() ? key : path + "." + key, out);
  } else if (value.is_array()) {
    for (size_t i = 0; i < value.size(); ++i) flatten(value[i], path + "." + std::to_string(i), out);
  } else {
    out[path] = value.is_string() ? value.get<std::string>() : value.dump();
  }
}

/// Nesting depth of brackets outside strings, to refuse what would exhaust the stack when flattened.
size_t depth_of(const std::string& text) {
  size_t depth = 0, most = 0;
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (quoted) {
      if (text[i] == '\\')
        ++i;
      else if (text[i] == '"')
        quoted = false;
    } else if (text[i] == '"') {
      quoted = true;
    } else if (text[i] == '{' || text[i] == '[') {
      most = std::max(most, ++depth);
    } else if (depth > 0 && (text[i] == '}' || text[i] == ']')) {
      --depth;
    }
  }
  return most;
}

/// The file's text, or nothing when it is missing or beyond 1 MiB.
std::optional<std::string> small_file(RunData& run, const char* name) {
  const fs::path file = run.dir / name;
  std::error_code error;
  const auto size = fs::file_size(file, error);
  if (error) {
    run.notes.push_back(fmt::format("there is no {}", name));
    return {};
  }
  if (size > most_line_bytes) {
    run.notes.push_back(fmt::format("{} is {} bytes long, more than 1 MiB: not read", name, size));
    return {};
  }
  std::ifstream in(file, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), {});
}

void read_summary(RunData& run) {
  const auto content = small_file(run, "summary.json");
  if (!content) return;
  const json value = depth_of(*content) > 32 ? json() : json::parse(*content, nullptr, false);
  if (value.is_object())
    flatten(value, "", run.summary);
  else
    run.notes.push_back("summary.json is not a JSON object: not read");
}

void flatten(const yaml::Node& node, const std::string& path,
             std::vector<std::pair<std::string, std::string>>& out) {
  const std::string prefix = path.empty() ? "" : path + ".";
  switch (node.kind) {
    case yaml::Node::Kind::scalar:
      out.emplace_back(path, node.text);
      break;
    case yaml::Node::Kind::map:
      for (const yaml::Entry& e : node.entries)
        if (e.value) flatten(*e.value, prefix + e.key, out);
      break;
    case yaml::Node::Kind::list:
      for (size_t i = 0; i < node.items.size(); ++i) flatten(*node.items[i], prefix + std::to_string(i), out);
  }
}

void read_recipe(RunData& run) {
  const auto content = small_file(run, "recipe.yaml");
  if (!content) return;
  try {
    flatten(yaml::parse(*content, "recipe.yaml"), "", run.recipe);
  } catch (const Error& e) {
    run.notes.push_back(fmt::format("recipe.yaml is not read: {}", e.what()));
  }
}

}  // namespace

void Curve::add(int64_t step, int64_t tokens_seen, double value) {
  steps.push_back(step);
  tokens.push_back(tokens_seen);
  values.push_back(std::isfinite(value) ? value : std::numeric_limits<double>::quiet_NaN());
}

RunData read_run(const fs::path& dir) {
  std::error_code error;
  require(fs::is_directory(dir, error), "report",
          "{} is no directory; give the run directory that osprey train wrote", dir.string());
  require(fs::exists(dir / "recipe.yaml", error) || fs::exists(dir / "metrics.jsonl", error), "report",
          "{} is no run: it holds neither recipe.yaml nor metrics.jsonl; give the run directory that osprey "
          "train wrote",
          dir.string());
  RunData run;
  run.dir = dir;
  read_recipe(run);
  read_metrics(run);
  read_summary(run);
  return run;
}

void name_runs(std::vector<RunData>& runs) {
  const auto wanted = [](const RunData& run) {
    for (const auto& [key, value] : run.recipe)
      if (key == "run.name" && !value.empty()) return value;
    std::error_code error;
    const fs::path full = fs::weakly_canonical(run.dir, error);
    const std::string last = (error ? run.dir : full).filename().string();
    return last.empty() ? run.dir.string() : last;
  };
  std::map<std::string, int> uses;
  for (RunData& run : runs) ++uses[run.name = wanted(run)];
  for (RunData& run : runs)
    if (uses[run.name] > 1) run.name += " (" + run.dir.string() + ")";
  std::set<std::string> taken;
  for (RunData& run : runs)
    for (const std::string base = run.name; !taken.insert(run.name).second;)
      run.name = fmt::format("{} #{}", base, taken.size() + 1);
}

Curve thinned(const Curve& curve, size_t most) {
  const size_t n = curve.values.size(), buckets = std::max<size_t>(1, most / 2);
  if (n <= most) return curve;
  Curve out;
  for (size_t b = 0; b < buckets; ++b) {
    const size_t begin = n * b / buckets, end = n * (b + 1) / buckets;
    size_t low = begin, high = begin, broken = end;
    for (size_t i = begin; i < end; ++i) {
      const double v = curve.values[i];
      if (std::isnan(v)) broken = std::min(broken, i);
      // Written so that a NaN in low or high gives way to the first finite value.
      if (!(v >= curve.values[low]) && !std::isnan(v)) low = i;
      if (!(v <= curve.values[high]) && !std::isnan(v)) high = i;
    }
    std::set<size_t> keep{low, high};
    if (broken < end) keep.insert(broken);
    if (b + 1 == buckets) keep.insert(n - 1);
    for (const size_t i : keep) out.add(curve.steps[i], curve.tokens[i], curve.values[i]);
  }
  return out;
}

}  // namespace osprey::report
