#include "launch/report/quantization_part.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "launch/report/page.h"

namespace osprey::report {
namespace {

using nlohmann::json;

constexpr std::array<const char*, 3> roles{"weights", "activations", "gradients"};

/// The mean of several curves at each step that one of them has; NaN at any of them is left out.
class MeanCurve {
 public:
  void add(const Curve& c) {
    for (size_t i = 0; i < c.values.size(); ++i) {
      Point& p = points_[c.steps[i]];
      p.tokens = c.tokens[i];
      if (!std::isfinite(c.values[i])) continue;
      p.sum += c.values[i];
      ++p.count;
    }
  }
  Curve curve() const {
    Curve c;
    for (const auto& [step, p] : points_)
      c.add(step, p.tokens, p.count > 0 ? p.sum / static_cast<double>(p.count) : std::nan(""));
    return c;
  }
  double last() const {
    const Curve c = curve();
    return c.values.empty() ? std::nan("") : c.values.back();
  }

 private:
  struct Point {
    int64_t tokens = 0, count = 0;
    double sum = 0;
  };
  std::map<int64_t, Point> points_;
};

/// Calls f(operand, curve) for each weight of a role that has the figure.
template <class F>
void each(const RunData& run, const std::string& role, const char* figure, const F& f) {
  for (const auto& [operand, figures] : run.quantization)
    if (const auto at = figures.find(figure); operand.role == role && at != figures.end())
      f(operand, at->second);
}

json points_of(const Curve& all) {
  const Curve c = thinned(all, 1000);
  json y = json::array();
  for (const double v : c.values) y.push_back(std::isfinite(v) ? json(v) : json());
  return {{"step", c.steps}, {"tokens", c.tokens}, {"y", y}};
}

std::string short_number(double v) { return std::isfinite(v) ? fmt::format("{:.3g}", v) : ""; }

std::string cell(const std::string& text) {
  return text.empty() ? "<td class=\"none\">&ndash;</td>" : "<td>" + escape_html(text) + "</td>";
}

/// The last measurement of one layer and role.
std::string table_row(const RunData& run, int layer, const std::string& role) {
  const auto mean = [&](const char* figure) {
    MeanCurve m;
    each(run, role, figure, [&](const QuantizedOperand& o, const Curve& c) {
      if (o.layer == layer) m.add(c);
    });
    return short_number(m.last());
  };
  std::string worst;
  double most = -INFINITY;
  each(run, role, "relative_error", [&](const QuantizedOperand& o, const Curve& c) {
    if (o.layer != layer || c.values.empty() || !(c.values.back() > most)) return;
    most = c.values.back();
    worst = fmt::format("{} {}", o.weight, short_number(most));
  });
  std::string out = fmt::format("<tr><th scope=\"row\">{}</th><td>{}</td>", layer, role);
  out += cell(mean("relative_error")) + cell(worst);
  for (const char* figure : {"clipped", "underflow", "wide_rows_3", "wide_rows_14", "oscillating", "frozen"})
    out += cell(mean(figure));
  return out + "</tr>\n";
}

std::string table_of(const RunData& run, size_t index) {
  std::map<std::pair<int, size_t>, bool> rows;  // layer, role
  for (const auto& [operand, figures] : run.quantization)
    for (size_t r = 0; r < roles.size(); ++r)
      if (operand.role == roles[r]) rows[{operand.layer, r}] = true;
  if (rows.empty()) return "";
  std::string out = fmt::format(
      "<details{}><summary><span class=\"chip c{}\"></span>{}, last measurement</summary>\n"
      "<div class=\"scroll\"><table><thead><tr>",
      rows.size() <= 60 ? " open" : "", index % 8, escape_html(run.name));
  for (const char* title : {"Layer", "Operand", "Relative error", "Worst weight", "Clipped", "Underflow",
                            "Rows over 2^3", "Rows over 2^14", "Oscillating", "Frozen"})
    out += fmt::format("<th scope=\"col\">{}</th>", title);
  out += "</tr></thead><tbody>\n";
  for (const auto& [key, used] : rows) out += table_row(run, key.first, roles[key.second]);
  return out + "</tbody></table></div></details>\n";
}

}  // namespace

json quantization_curves(const RunData& run) {
  json out = json::object();
  for (const char* role : roles) {
    MeanCurve mean;
    std::map<int, MeanCurve> layers;
    each(run, role, "relative_error", [&](const QuantizedOperand& o, const Curve& c) {
      mean.add(c);
      layers[o.layer].add(c);
    });
    if (layers.empty()) continue;
    const auto worst = std::max_element(layers.begin(), layers.end(), [](const auto& a, const auto& b) {
      const double x = a.second.last(), y = b.second.last();
      return (std::isfinite(x) ? x : -1) < (std::isfinite(y) ? y : -1);
    });
    out[role] = {{"mean", points_of(mean.curve())},
                 {"worst", points_of(worst->second.curve())},
                 {"worst_layer", worst->first},
                 {"layers", layers.size()}};
  }
  return out;
}

std::string quantization_section(const std::vector<RunData>& runs) {
  std::string tables;
  for (size_t i = 0; i < runs.size(); ++i) tables += table_of(runs[i], i);
  if (tables.empty()) return "";
  return "<section><h2>Quantization</h2>\n<p class=\"quiet\">What the quantized operands of products lose in "
         "training steps, as the mean of the weights of a layer. Relative error: sum of (q - x)&sup2; over sum of "
         "x&sup2;. Clipped: share of elements beyond the largest number of their block. Underflow: share that was "
         "not 0 and became 0. Rows over 2^3, 2^14: share of rows whose largest scale is more than that many times "
         "the smallest. Oscillating: share of weights whose code jumps back and forth (one jump counts for 69 "
         "steps). Frozen: share of weights that stand still.</p>\n<div id=\"quantization-charts\"></div>\n" +
         tables + "</section>\n";
}

}  // namespace osprey::report
