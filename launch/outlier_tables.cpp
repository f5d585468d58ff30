#include "launch/outlier_tables.h"

namespace osprey {

std::vector<OutlierRow> measure_outliers_of(LoadedModel& m, ValidationData& data, StagedBatch& batch,
                                            int64_t rows) {
  OutlierObserver observer(TelemetrySpec{}, m.queue);
  for (int64_t first = 0; first < rows; first += batch.host().batch()) {
    const BatchView& view = batch.fill(data, first);
    observe_both_protocols(observer, *m.model, m.tape, view, view.tokens.numel());
  }
  return observer.result();
}

static std::string number(const std::optional<double>& v) {
  if (!v) return "-";
  return std::abs(*v) >= 1e5 ? fmt::format("{:.2e}", *v) : fmt::format("{:.2f}", *v);
}

void print_outliers(const std::vector<OutlierRow>& rows, OutlierDetail detail) {
  const bool each = detail == OutlierDetail::every_layer;
  fmt::print("{:<9}{:<18}{}{:>13}{:>12}{:>10}{:>10}{:>12}{:>12}\n", "protocol", "tensor",
             each ? "  layer" : "", "osp kurtosis", "kurtosis", "max", "max/mean", "max/median",
             "first token");
  for (const OutlierRow& r : each ? rows : over_layers(rows)) {
    const OutlierMetrics& m = r.metrics;
    fmt::print("{:<9}{:<18}{}{:>13}{:>12}{:>10}{:>10}{:>12}{:>12}\n", name(r.protocol), r.tensor,
               each ? fmt::format("{:>7}", r.layer < 0 ? std::string("last") : std::to_string(r.layer)) : "",
               number(m.osp_kurtosis), number(m.kurtosis), number(m.max_abs), number(m.max_to_mean),
               number(m.max_to_median),
               r.first_token_share ? fmt::format("{:.3f}", *r.first_token_share) : "-");
  }
  fmt::print(
      "{}context: ordinary sequences; osp: sequences of length one, the published protocol. "
      "docs/run-directory.md defines the figures.\n",
      each ? "" : "Means of the layers' kurtosis and ratios, largest maximum. ");
}

}  // namespace osprey
