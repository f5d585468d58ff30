#include "launch/report/scaling_plot.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "framework/scaling/grid.h"
#include "kernels/core/check.h"
#include "launch/report/page.h"

namespace osprey::report {
namespace {

constexpr double width = 1010, height = 600, left = 78, right = 720, top = 84, bottom = 540;
constexpr double legend_x = 744;
constexpr size_t most_legend_rows = 22;

/// The report's colours from cold to warm, for what has an order.
constexpr const char* colours[] = {"#4a3fb5", "#0b62a4", "#00806a", "#7a6a00", "#c8511b", "#b3123f"};

/// A logarithmic axis of the picture.
struct Axis {
  double low, high;  // of the data
  double from, to;   // of the picture
  double at(double value) const { return from + (to - from) * std::log(value / low) / std::log(high / low); }
};

/// An axis around these values with some air.
Axis axis_of(const std::vector<double>& values, double from, double to) {
  const auto [least, most] = std::minmax_element(values.begin(), values.end());
  const double air = std::max(0.04 * std::log(*most / *least), 0.005);
  return {*least * std::exp(-air), *most * std::exp(air), from, to};
}

/// Ticks at 1, 2 and 5 times powers of ten; at round steps where these would be too few.
std::vector<double> ticks_of(const Axis& axis) {
  std::vector<double> ticks;
  for (int power = static_cast<int>(std::floor(std::log10(axis.low))); power <= std::log10(axis.high);
       ++power)
    for (const double digit : {1.0, 2.0, 5.0})
      if (const double v = digit * std::pow(10.0, power); v >= axis.low && v <= axis.high) ticks.push_back(v);
  if (ticks.size() > 9)
    std::erase_if(ticks, [](double v) { return std::abs(std::remainder(std::log10(v), 1)) > 1e-9; });
  if (ticks.size() >= 4) return ticks;
  ticks.clear();
  const double raw = (axis.high - axis.low) / 6, power = std::pow(10.0, std::floor(std::log10(raw)));
  double step = 10 * power;
  for (const double digit : {5.0, 2.0, 1.0})
    if (digit * power >= raw) step = digit * power;
  for (double v = std::ceil(axis.low / step) * step; v <= axis.high; v += step) ticks.push_back(v);
  return ticks;
}

std::string number(double value) {
  return value >= 1000 ? short_count(std::llround(value)) : fmt::format("{:.3g}", value);
}

class Picture {
 public:
  Picture(const std::string& title, const std::string& subtitle) {
    text_ = fmt::format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" role=\"img\" "
        "font-family=\"system-ui,'DejaVu Sans',sans-serif\" font-size=\"13\" fill=\"#1d2126\">\n"
        "<rect width=\"{0}\" height=\"{1}\" fill=\"#ffffff\"/>\n"
        "<text x=\"{2}\" y=\"32\" font-size=\"18\" font-weight=\"600\">{3}</text>\n"
        "<text x=\"{2}\" y=\"56\" fill=\"#5a626c\">{4}</text>\n",
        width, height, left, escape_html(title), escape_html(subtitle));
  }

  void axes(const Axis& x, const Axis& y, const std::string& x_label, const std::string& y_label) {
    for (const double v : ticks_of(x)) {
      line(x.at(v), top, x.at(v), bottom, "#e9ebec", "");
      label(x.at(v), bottom + 20, "middle", number(v), "#5a626c");
    }
    for (const double v : ticks_of(y)) {
      line(left, y.at(v), right, y.at(v), "#e9ebec", "");
      label(left - 8, y.at(v) + 4.5, "end", number(v), "#5a626c");
    }
    text_ +=
        fmt::format("<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"none\" stroke=\"#b5b9be\"/>\n",
                    left, top, right - left, bottom - top);
    label((left + right) / 2, bottom + 46, "middle", x_label, "#1d2126");
    text_ +=
        fmt::format("<text transform=\"translate(22 {}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n",
                    (top + bottom) / 2, escape_html(y_label));
  }

  void line(double x0, double y0, double x1, double y1, const char* colour, const std::string& dash) {
    text_ += fmt::format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\"{}/>\n",
                         x0, y0, x1, y1, colour, dashes(dash));
  }
  void curve(const std::vector<std::pair<double, double>>& places, const char* colour,
             const std::string& dash) {
    std::string points;
    for (const auto& [x, y] : places) points += fmt::format("{:.1f},{:.1f} ", x, y);
    text_ += fmt::format("<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"1.6\"{} points=\"{}\"/>\n",
                         colour, dashes(dash), points);
  }
  /// Circle, square, triangle, diamond, cross; `help` shows under the pointer.
  void mark(double x, double y, size_t shape, const char* colour, const std::string& help) {
    std::string body;
    switch (shape % 5) {
      case 0:
        body = fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4.6\"", x, y);
        break;
      case 1:
        body = fmt::format("<path d=\"M{:.1f} {:.1f}h8.4v8.4h-8.4z\"", x - 4.2, y - 4.2);
        break;
      case 2:
        body = fmt::format("<path d=\"M{:.1f} {:.1f}l5.4 9.4h-10.8z\"", x, y - 6);
        break;
      case 3:
        body = fmt::format("<path d=\"M{:.1f} {:.1f}l5.8 5.8l-5.8 5.8l-5.8 -5.8z\"", x, y - 5.8);
        break;
      case 4:
        body = fmt::format("<path d=\"M{0:.1f} {1:.1f}l8 8m0 -8l-8 8\" stroke-width=\"2.4\"", x - 4, y - 4);
        break;
    }
    const std::string edge = shape % 5 == 4 ? colour : "#ffffff";
    text_ += fmt::format("{} fill=\"{}\" stroke=\"{}\"><title>{}</title></{}>\n", body, colour, edge,
                         escape_html(help), shape % 5 == 0 ? "circle" : "path");
  }
  void label(double x, double y, const char* anchor, const std::string& words, const char* colour) {
    text_ += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" fill=\"{}\">{}</text>\n", x, y,
                         anchor, colour, escape_html(words));
  }

  void legend_title(const std::string& words) {
    row_ += rows_ ? 10 : 0;
    label(legend_x, row_, "start", words, "#5a626c");
    next_row();
  }
  void legend(const char* colour, const std::optional<size_t>& shape, const std::string& dash,
              const std::string& words, const std::string& more = "") {
    if (!shape || !dash.empty()) curve({{legend_x, row_ - 4}, {legend_x + 24, row_ - 4}}, colour, dash);
    if (shape) mark(legend_x + 12, row_ - 4, *shape, colour, words);
    std::string fitting = words.substr(0, 30);
    if (fitting.size() < words.size()) fitting += "...";
    label(legend_x + 34, row_, "start", fitting, "#1d2126");
    next_row();
    if (more.empty()) return;
    label(legend_x + 34, row_, "start", more, "#5a626c");
    next_row();
  }
  bool legend_full() const { return rows_ >= most_legend_rows; }

  std::string str() const { return text_ + "</svg>\n"; }

 private:
  static std::string dashes(const std::string& dash) {
    return dash.empty() || dash == "0" ? "" : fmt::format(" stroke-dasharray=\"{}\"", dash);
  }
  void next_row() { row_ += 20, ++rows_; }

  std::string text_;
  double row_ = top + 12;
  size_t rows_ = 0;
};

/// Values in order, each with its place among them.
std::map<double, size_t> ranked(const std::vector<LawPoint>& points, double (*of)(const LawPoint&)) {
  std::set<double> values;
  for (const LawPoint& p : points) values.insert(of(p));
  std::map<double, size_t> rank;
  for (const double v : values) rank.emplace(v, rank.size());
  return rank;
}

/// Of `rank` among `all`: spread over the colours, so that few values differ much.
const char* colour_of(size_t rank, size_t all) {
  constexpr size_t n = std::size(colours);
  return colours[all < 2 ? 1 : rank * (n - 1) / (all - 1)];
}

std::string dash_of(size_t group) {
  constexpr const char* dashes[] = {"0", "7 4", "2 3", "9 3 2 3", "1 5"};
  return dashes[group % std::size(dashes)];
}

/// The parameters of a group, or of none: "A 402   B 411".
std::string parameters_of(const Fit& fit, const std::string& group) {
  std::string text;
  for (size_t i = 0; i < fit.parameters.size(); ++i) {
    const LawParameter& p = fit.law.parameters()[i];
    const bool of_group = p.family != p.name;
    if (group.empty() ? of_group : p.name != fmt::format("{}[{}]", p.family, group)) continue;
    text += fmt::format("{}{} {:.4g}", text.empty() ? "" : ", ", p.family, fit.parameters[i].value);
  }
  return text;
}

double size_of(const LawPoint& p) { return p.parameters; }
double block_of(const LawPoint& p) { return p.block.value_or(0); }

void size_legend(Picture& picture, const std::map<double, size_t>& sizes) {
  picture.legend_title("N, parameters");
  for (const auto& [n, rank] : sizes)
    if (!picture.legend_full())
      picture.legend(colour_of(rank, sizes.size()), {}, "0", short_count(std::llround(n)));
}

std::string help_of(const Fit& fit, size_t i) {
  const LawPoint& p = fit.points[i];
  return fmt::format("{}: N {}, D {}, measured {:.4f}, predicted {:.4f}", p.run,
                     short_count(std::llround(p.parameters)), short_count(std::llround(p.tokens)), p.target,
                     fit.predictions[i]);
}

std::string losses_svg(const Fit& fit) {
  constexpr int steps = 60;
  std::vector<double> tokens, losses;
  for (const LawPoint& p : fit.points) tokens.push_back(p.tokens), losses.push_back(p.target);
  const Axis x = axis_of(tokens, left, right);
  std::set<std::pair<double, size_t>> curves;  // N and group
  for (const LawPoint& p : fit.points) curves.emplace(p.parameters, p.group);
  const auto place = [&](double n, size_t group, int step) {
    LawPoint p;
    p.parameters = n, p.group = group;
    p.tokens = x.low * std::pow(x.high / x.low, static_cast<double>(step) / steps);
    return std::pair(p.tokens, fit.law.prediction(fit.theta, p));
  };
  for (const auto& [n, group] : curves)
    for (const int step : {0, steps}) losses.push_back(place(n, group, step).second);
  const Axis y = axis_of(losses, bottom, top);

  Picture picture(fmt::format("{}: {}", fit.law.name(), fit.law.formula()), parameters_of(fit, ""));
  picture.axes(x, y, "D, tokens", "loss, nats per token");
  const auto sizes = ranked(fit.points, size_of);
  for (const auto& [n, group] : curves) {
    std::vector<std::pair<double, double>> places;
    for (int step = 0; step <= steps; ++step) {
      const auto [d, loss] = place(n, group, step);
      places.emplace_back(x.at(d), y.at(loss));
    }
    picture.curve(places, colour_of(sizes.at(n), sizes.size()), dash_of(group));
  }
  for (size_t i = 0; i < fit.points.size(); ++i) {
    const LawPoint& p = fit.points[i];
    picture.mark(x.at(p.tokens), y.at(p.target), p.group, colour_of(sizes.at(p.parameters), sizes.size()),
                 help_of(fit, i));
  }
  size_legend(picture, sizes);
  if (fit.law.groups().size() > 1) {
    picture.legend_title(fit.law.kind() == Law::Kind::quartet ? "scheme" : "optimizer");
    for (size_t g = 0; g < fit.law.groups().size() && !picture.legend_full(); ++g)
      picture.legend("#51565c", g, dash_of(g), fit.law.groups()[g], parameters_of(fit, fit.law.groups()[g]));
  }
  picture.legend_title("marks: measured, lines: the law");
  return picture.str();
}

std::string deltas_svg(const Fit& fit) {
  std::vector<double> values = fit.predictions;
  for (const LawPoint& p : fit.points) values.push_back(p.target);
  const Axis x = axis_of(values, left, right), y = axis_of(values, bottom, top);
  Picture picture(fmt::format("{}: {}", fit.law.name(), fit.law.formula()), parameters_of(fit, ""));
  picture.axes(x, y, "predicted delta, nats per token", "measured delta, nats per token");
  picture.line(left, bottom, right, top, "#5a626c", "5 4");
  const auto sizes = ranked(fit.points, size_of), blocks = ranked(fit.points, block_of);
  for (size_t i = 0; i < fit.points.size(); ++i) {
    const LawPoint& p = fit.points[i];
    picture.mark(x.at(fit.predictions[i]), y.at(p.target), blocks.at(block_of(p)),
                 colour_of(sizes.at(p.parameters), sizes.size()), help_of(fit, i));
  }
  size_legend(picture, sizes);
  picture.legend_title("G, block");
  for (const auto& [g, rank] : blocks)
    if (!picture.legend_full())
      picture.legend("#51565c", rank, "", g > 0 ? fmt::format("{:.0f}", g) : std::string("not said"));
  picture.legend_title("on the line: as predicted");
  return picture.str();
}

}  // namespace

std::string scaling_svg(const Fit& fit) {
  return fit.law.kind() == Law::Kind::qat ? deltas_svg(fit) : losses_svg(fit);
}

}  // namespace osprey::report
