#include "launch/outlier_tables.h"

namespace osprey {

std::vector<OutlierRow> measure_outliers_of(LoadedModel& m, ValidationLoader& data, const BatchView& view,
                                            int64_t rows) {
  OutlierObserver observer(TelemetrySpec{}, m.queue);
  m.tape.set_tap(&observer);
  const int64_t length = view.sequence();
  for (int64_t first = 0; first < rows; first += view.batch()) {
    Batch batch{.tokens = view.tokens,
                .targets = view.targets,
                .positions = view.positions,
                .document_start = view.document_start};
    data.batch(first, batch);
    observer.begin(Protocol::context);
    m.model->hidden(m.tape, view);
    m.tape.reset();
    observer.begin(Protocol::osp);
    BatchView single;
    single.tokens = view.tokens.view({view.batch() * length, 1});
    single.targets = view.targets.view({view.batch() * length, 1});
    const int64_t mark = m.activations.mark();
    single.positions = m.activations.alloc({view.batch() * length, 1}, DType::i32);
    std::fill_n(single.positions.as<int32_t>(), single.positions.numel(), 0);
    m.model->hidden(m.tape, single);
    m.tape.reset(mark);
  }
  m.tape.set_tap(nullptr);
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
      "docs/run-directory.md defines "
      "the figures.\n",
      each ? "" : "Means of the layers' kurtosis and ratios, largest maximum. ");
}

}  // namespace osprey
