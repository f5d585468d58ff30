#include "launch/report/page.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "framework/telemetry/metrics_log.h"
#include "framework/telemetry/progress.h"
#include "kernels/core/check.h"
#include "launch/report/quantization_part.h"

namespace osprey::report {
namespace {

using nlohmann::json;

constexpr size_t most_curve_points = 3000;
constexpr size_t most_heatmap_columns = 160;

// ---- data for the script -------------------------------------------------------------------------

json values_of(const std::vector<double>& values) {
  json out = json::array();
  for (const double v : values) out.push_back(std::isfinite(v) ? json(v) : json());
  return out;
}

json curve_of(const Curve& all) {
  const Curve c = thinned(all, most_curve_points);
  return {{"step", c.steps}, {"tokens", c.tokens}, {"y", values_of(c.values)}};
}

/// Layers by time: the steps at which any layer was measured, and one row of values per layer.
json grid_of(const LayerCurves& layers) {
  std::map<int64_t, int64_t> times;  // step to tokens
  for (const auto& [layer, curve] : layers)
    for (size_t i = 0; i < curve.steps.size(); ++i) times[curve.steps[i]] = curve.tokens[i];
  const size_t stride = std::max<size_t>(1, (times.size() + most_heatmap_columns - 1) / most_heatmap_columns);
  std::map<int64_t, size_t> column;
  json steps = json::array(), tokens = json::array();
  size_t at = 0;
  for (const auto& [step, seen] : times) {
    if (at % stride == 0 || at + 1 == times.size()) {
      column[step] = steps.size();
      steps.push_back(step);
      tokens.push_back(seen);
    }
    ++at;
  }
  json names = json::array(), rows = json::array();
  for (const auto& [layer, curve] : layers) {
    std::vector<double> row(steps.size(), std::nan(""));
    for (size_t i = 0; i < curve.steps.size(); ++i)
      if (const auto c = column.find(curve.steps[i]); c != column.end()) row[c->second] = curve.values[i];
    names.push_back(layer);
    rows.push_back(values_of(row));
  }
  return {{"step", steps}, {"tokens", tokens}, {"layers", names}, {"rows", rows}};
}

json data_of(const RunData& run) {
  json train = json::object(), outliers = json::object(), skipped = json::array();
  for (const auto& [key, curve] : run.train) train[key] = curve_of(curve);
  for (const auto& [key, layers] : run.outliers) outliers[key[0]][key[1]][key[2]] = grid_of(layers);
  for (const auto& [step, reason] : run.skipped) skipped.push_back({step, reason});
  return {{"name", run.name},
          {"train", train},
          {"validation", curve_of(run.validation)},
          {"outliers", outliers},
          {"skipped", skipped},
          {"resumed", run.resumed},
          {"quantization", quantization_curves(run)}};
}

/// JSON that may stand inside a script element: no "<", so nothing can end the element or open a comment.
std::string script_json(const json& value) {
  std::string out;
  for (const char c : value.dump(-1, ' ', true, json::error_handler_t::replace)) {
    if (c == '<' || c == '>' || c == '&')
      out += fmt::format("\\u{:04x}", static_cast<int>(c));
    else
      out += c;
  }
  return out;
}

// ---- tables --------------------------------------------------------------------------------------

std::optional<double> summary_number(const RunData& run, const std::string& key) {
  const auto at = run.summary.find(key);
  if (at == run.summary.end()) return {};
  char* end = nullptr;
  const double v = std::strtod(at->second.c_str(), &end);
  return end != at->second.c_str() && *end == 0 && std::isfinite(v) ? std::optional(v) : std::nullopt;
}

std::string count_text(const RunData& run, const std::string& key) {
  const auto v = summary_number(run, key);
  return v && std::fabs(*v) < 9e18 ? grouped(static_cast<int64_t>(*v)) : "";
}

std::optional<double> last_finite(const Curve& c) {
  for (size_t i = c.values.size(); i-- > 0;)
    if (std::isfinite(c.values[i])) return c.values[i];
  return {};
}

std::optional<double> train_last(const RunData& run, const char* key) {
  const auto at = run.train.find(key);
  return at == run.train.end() ? std::nullopt : last_finite(at->second);
}

std::string fixed(std::optional<double> v, int digits) { return v ? fmt::format("{:.{}f}", *v, digits) : ""; }

std::string perplexity(std::optional<double> loss) {
  if (!loss) return "";
  const double p = std::exp(*loss);
  return std::isfinite(p) && p < 1e6 ? fmt::format("{:.3f}", p) : fmt::format("{:.3g}", p);
}

/// The latest figure of one tensor: mean or largest over layers.
enum class Over { mean, largest };
std::optional<double> latest(const RunData& run, const OutlierKey& key, Over over) {
  const auto at = run.outliers.find(key);
  if (at == run.outliers.end()) return {};
  double sum = 0, most = -INFINITY;
  int n = 0;
  for (const auto& [layer, curve] : at->second)
    if (const auto v = last_finite(curve)) sum += *v, most = std::max(most, *v), ++n;
  if (n == 0) return {};
  return over == Over::mean ? sum / n : most;
}

std::string outlier_text(std::optional<double> v) {
  if (!v) return "";
  return std::fabs(*v) < 1e5 ? fmt::format("{:.2f}", *v) : fmt::format("{:.3g}", *v);
}

std::string peak_memory(const RunData& run) {
  double total = 0;
  for (const auto& [key, value] : run.summary)
    if (key.rfind("memory_peak_bytes.", 0) == 0) total += summary_number(run, key).value_or(0);
  return total > 0 ? fmt::format("{:.0f} MiB", total / 1048576.0) : "";
}

struct Row {
  std::string label, help;
  std::vector<std::string> cells;
};

std::string table(const std::vector<RunData>& runs, const std::vector<Row>& rows, const char* corner) {
  std::string out = fmt::format("<div class=\"scroll\"><table><thead><tr><th scope=\"col\">{}</th>", corner);
  for (size_t i = 0; i < runs.size(); ++i)
    out += fmt::format("<th scope=\"col\"><span class=\"chip c{}\"></span>{}</th>", i % 8,
                       escape_html(runs[i].name));
  out += "</tr></thead><tbody>\n";
  for (const Row& row : rows) {
    const std::string title = row.help.empty() ? "" : fmt::format(" title=\"{}\"", escape_html(row.help));
    out += fmt::format("<tr><th scope=\"row\"{}>{}</th>", title, escape_html(row.label));
    for (const std::string& cell : row.cells)
      out += cell.empty() ? "<td class=\"none\">&ndash;</td>" : fmt::format("<td>{}</td>", escape_html(cell));
    out += "</tr>\n";
  }
  return out + "</tbody></table></div>\n";
}

/// Appends a row unless no run has anything to say in it.
template <class Cell>
void add_row(std::vector<Row>& rows, const std::vector<RunData>& runs, const std::string& label,
             const char* help, const Cell& cell) {
  Row row{label, help, {}};
  for (const RunData& run : runs) row.cells.push_back(cell(run));
  const bool any =
      std::any_of(row.cells.begin(), row.cells.end(), [](const std::string& c) { return !c.empty(); });
  if (any) rows.push_back(std::move(row));
}

std::string outlier_figures(const std::vector<RunData>& runs) {
  std::vector<Row> rows;
  const auto add = [&](const std::string& label, const char* help, const auto& cell) {
    add_row(rows, runs, label, help, cell);
  };
  for (const auto& [tensor, label] : {std::pair{"block_input", "block input"},
                                      {"attention_output", "attention output"},
                                      {"down_input", "down input"},
                                      {"final_hidden", "final hidden"}}) {
    add(fmt::format("Kurtosis, {}, in context", label), "excess, per token, ordinary batch; mean over layers",
        [t = tensor](const RunData& r) {
          return outlier_text(latest(r, {"context", t, "kurtosis"}, Over::mean));
        });
    add(fmt::format("Kurtosis, {}, OSP protocol", label), "sequences of length one; mean over layers",
        [t = tensor](const RunData& r) {
          return outlier_text(latest(r, {"osp", t, "osp_kurtosis"}, Over::mean));
        });
    add(fmt::format("Largest |x|, {}, in context", label), "ordinary batch, over all layers",
        [t = tensor](const RunData& r) {
          return outlier_text(latest(r, {"context", t, "max_abs"}, Over::largest));
        });
  }
  add("Attention on the first token", "mean over heads, later queries and layers", [](const RunData& r) {
    return fixed(latest(r, {"context", "attention", "first_token_share"}, Over::mean), 4);
  });
  return rows.empty() ? "" : table(runs, rows, "Outliers, last measurement");
}

std::string final_figures(const std::vector<RunData>& runs) {
  std::vector<Row> rows;
  const auto add = [&](const std::string& label, const char* help, const auto& cell) {
    add_row(rows, runs, label, help, cell);
  };
  const auto summary = [](const char* key) {
    return [key](const RunData& run) {
      const auto at = run.summary.find(key);
      return at == run.summary.end() ? std::string() : at->second;
    };
  };
  add("Status", "as summary.json says", summary("status"));
  add("Steps", "", [](const RunData& r) { return grouped(r.step); });
  add("Tokens", "", [](const RunData& r) { return grouped(r.tokens); });
  add("Parameters", "", [](const RunData& r) { return count_text(r, "parameters"); });
  add("Training loss", "last train entry, nats per token",
      [](const RunData& r) { return fixed(train_last(r, "loss"), 4); });
  add("Validation loss", "last eval entry of the run itself, nats per token",
      [](const RunData& r) { return fixed(last_finite(r.validation), 4); });
  add("Perplexity", "exp of the validation loss",
      [](const RunData& r) { return perplexity(last_finite(r.validation)); });
  for (const auto& [how, label] :
       {std::pair{"w8a8", "Perplexity, W8A8"}, {"w4a16", "Perplexity, W4A16"}, {"w4a4", "Perplexity, W4A4"}})
    add(label,
        "round to nearest: weights per row, activations per token; of the latest checkpoint that osprey eval was "
        "given, on the run's own data",
        [how = how](const RunData& r) {
          const auto at = r.eval_loss.find(how);
          return perplexity(at == r.eval_loss.end() ? std::nullopt : std::optional(at->second));
        });
  add("Tokens per second", "over all ranks", [](const RunData& r) {
    const auto v = summary_number(r, "tokens_per_second");
    return fixed(v ? v : train_last(r, "tokens_per_second"), 0);
  });
  add("Percent of GEMM rate", "of the machine's measured bf16 GEMM rate", [](const RunData& r) {
    const auto v = summary_number(r, "gemm_percent");
    return fixed(v ? v : train_last(r, "gemm_percent"), 1);
  });
  add("Ranks", "", [](const RunData& r) { return count_text(r, "ranks"); });
  add("Wall time, s", "of the last process",
      [](const RunData& r) { return fixed(summary_number(r, "wall_s"), 1); });
  add("Peak memory", "all categories of the rank with the most", peak_memory);
  add("Skipped updates", "loss or gradient was not finite",
      [](const RunData& r) { return grouped(static_cast<int64_t>(r.skipped.size())); });
  return "<div class=\"pair\">" + table(runs, rows, "Figure") + outlier_figures(runs) + "</div>\n";
}

/// Every recipe key in the order of first appearance; the ones that differ apart from the rest.
std::string recipes(const std::vector<RunData>& runs) {
  std::vector<std::string> keys;
  std::map<std::string, std::vector<std::optional<std::string>>> values;
  for (size_t i = 0; i < runs.size(); ++i)
    for (const auto& [key, value] : runs[i].recipe) {
      auto [at, fresh] = values.try_emplace(key, runs.size());
      if (fresh) keys.push_back(key);
      at->second[i] = value;
    }
  if (keys.empty()) return "<p class=\"quiet\">No recipe was found.</p>\n";
  std::vector<Row> differing, all;
  for (const std::string& key : keys) {
    Row row{key, "", {}};
    bool same = true;
    for (const auto& v : values[key]) {
      row.cells.push_back(v ? (v->empty() ? "(empty)" : *v) : "");
      same = same && v == values[key][0];
    }
    all.push_back(row);
    if (!same) differing.push_back(std::move(row));
  }
  std::string out;
  if (runs.size() > 1) {
    out += fmt::format("<h3>Keys that differ ({})</h3>\n", differing.size());
    out +=
        differing.empty() ? "<p class=\"quiet\">The recipes are equal.</p>\n" : table(runs, differing, "Key");
  }
  return out +
         fmt::format("<details{}><summary>All {} keys</summary>\n", runs.size() > 1 ? "" : " open",
                     all.size()) +
         table(runs, all, "Key") + "</details>\n";
}

std::string notes(const std::vector<RunData>& runs) {
  std::string out;
  for (const RunData& run : runs)
    for (const std::string& note : run.notes)
      out += fmt::format("<li><b>{}</b>: {}</li>\n", escape_html(run.name), escape_html(note));
  return out.empty() ? out
                     : "<section class=\"notes\" role=\"note\"><h2>Missing or broken</h2><ul>\n" + out +
                           "</ul></section>\n";
}

constexpr const char* head = R"(<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
)";

}  // namespace

std::string escape_html(std::string_view text) {
  // json_string() turns bytes that are no UTF-8 into U+FFFD; what is left to do is the five characters.
  const std::string clean = nlohmann::json::parse(json_string(text)).get<std::string>();
  std::string out;
  for (const char c : clean) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      case '\0':
        out += "\xEF\xBF\xBD";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string page(const std::vector<RunData>& runs) {
  std::string title = "Osprey report", list;
  for (size_t i = 0; i < runs.size(); ++i) {
    title += (i ? ", " : ": ") + escape_html(runs[i].name);
    list +=
        fmt::format("<li><span class=\"chip c{}\"></span><b>{}</b> <span class=\"quiet\">{}</span></li>\n",
                    i % 8, escape_html(runs[i].name), escape_html(runs[i].dir.string()));
  }
  json data = json::array();
  for (const RunData& run : runs) data.push_back(data_of(run));
  return fmt::format(
      "{}<title>{}</title>\n<style>{}</style></head>\n<body>\n<svg id=\"ns\" width=\"0\" height=\"0\" "
      "aria-hidden=\"true\"></svg>\n"
      "<header><h1>Osprey report</h1><ul class=\"runs\">\n{}</ul></header>\n<main>\n{}"
      "<section><h2>Final figures</h2>\n{}</section>\n"
      "<noscript><p class=\"notes\">The curves are drawn by a script inside this page; it is switched off "
      "here.</p></noscript>\n"
      "<div id=\"charts\"></div>\n{}"
      "<section><h2>Recipe</h2>\n{}</section>\n</main>\n"
      "<script type=\"application/json\" id=\"data\">{}</script>\n<script>{}</script>\n</body></html>\n",
      head, title, page_css, list, notes(runs), final_figures(runs), quantization_section(runs),
      recipes(runs), script_json({{"runs", data}}), page_js);
}

}  // namespace osprey::report
