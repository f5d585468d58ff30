#include "framework/telemetry/outlier_observer.h"

#include <algorithm>
#include <bit>
#include <charconv>

#include "framework/memory/staging.h"

namespace osprey {
namespace {

std::string tensor_name(int index) {
  const auto& names = observed_tensors();
  return index < static_cast<int>(names.size()) ? names[static_cast<size_t>(index)] : "attention";
}

std::vector<std::string_view> split(std::string_view text, char at) {
  std::vector<std::string_view> parts;
  while (!text.empty()) {
    const size_t end = std::min(text.find(at), text.size());
    parts.push_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return parts;
}

template <class T>
T number(std::string_view text, int base = 10) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  require(error == std::errc{} && end == text.data() + text.size(), "outliers", "'{}' is no number", text);
  return value;
}

}  // namespace

const char* name(Protocol protocol) { return protocol == Protocol::osp ? "osp" : "context"; }

void OutlierObserver::observe(int layer, const char* tensor, const Tensor& t) {
  const auto& wanted = spec_.outlier_tensors;
  if (std::find(wanted.begin(), wanted.end(), tensor) == wanted.end()) return;
  const auto& known = observed_tensors();
  const auto index = std::find(known.begin(), known.end(), tensor) - known.begin();
  const HostCopy copy(queue_, t);
  rows_[{protocol_, static_cast<int>(index), layer}].outliers.merge(
      measure_outliers(host_queue(queue_), copy.tensor()));
}

void OutlierObserver::observe_attention(int layer, const AttentionView& v) {
  if (!spec_.first_token_share || v.tokens < 2) return;  // a sequence of length one has no share to give
  const HostCopy q(queue_, v.q), k(queue_, v.k), lse(queue_, v.lse), starts(queue_, document_start_);
  const FirstTokenArgs args{.q = q.tensor(),
                            .k = k.tensor(),
                            .lse = lse.tensor(),
                            .document_start = starts.tensor(),
                            .batch = v.batch,
                            .tokens = v.tokens,
                            .heads = v.heads,
                            .kv_heads = v.kv_heads,
                            .head_size = v.head_size,
                            .window = v.window,
                            .scale = v.scale};
  rows_[{protocol_, static_cast<int>(observed_tensors().size()), layer}].first_token.merge(
      first_token_share(host_queue(queue_), args));
}

std::string OutlierObserver::pack() const {
  std::string text;
  for (const auto& [key, sums] : rows_)
    text += fmt::format("{};{};{};{};{:x};{};{}\n", static_cast<int>(key.protocol), key.tensor, key.layer,
                        sums.outliers.pack(), std::bit_cast<uint64_t>(sums.first_token.probability),
                        sums.first_token.queries, sums.first_token.nonfinite_queries);
  return text;
}

void OutlierObserver::add_packed(const std::string& text) {
  for (const std::string_view line : split(text, '\n')) {
    const auto part = split(line, ';');
    require(part.size() == 7, "outliers", "a rank sent '{}', which is no row of outlier sums", line);
    const int protocol = number<int>(part[0]), tensor = number<int>(part[1]);
    require((protocol == 0 || protocol == 1) && tensor >= 0 &&
                tensor <= static_cast<int>(observed_tensors().size()),
            "outliers", "a rank sent '{}', which is no row of outlier sums", line);
    Sums& row = rows_[{static_cast<Protocol>(protocol), tensor, number<int>(part[2])}];
    row.outliers.merge(OutlierSums::unpack(part[3]));
    row.first_token.merge({std::bit_cast<double>(number<uint64_t>(part[4], 16)), number<int64_t>(part[5]),
                           number<int64_t>(part[6])});
  }
}

void OutlierObserver::merge(Communicator& comm) {
  if (comm.size() == 1) return;
  const std::vector<std::string> all = comm.gather_strings(pack());
  rows_.clear();
  for (const std::string& text : all) add_packed(text);
}

std::vector<OutlierRow> OutlierObserver::result() const {
  std::vector<OutlierRow> rows;
  for (const auto& [key, sums] : rows_)
    rows.push_back({key.protocol, key.layer, tensor_name(key.tensor), sums.outliers.metrics(),
                    sums.first_token.share()});
  return rows;
}

void observe_both_protocols(OutlierObserver& observer, LanguageModel& model, Tape& tape,
                            const BatchView& batch, int64_t osp_tokens) {
  tape.set_mode(Tape::Mode::evaluate);
  tape.set_tap(&observer);
  observer.begin(Protocol::context, batch.document_start);
  model.hidden(tape, batch);
  tape.reset();
  if (const int64_t n = std::min(osp_tokens, batch.tokens.numel()); n > 0) {
    const auto first = [&](const Tensor& t) { return make_tensor(t.data, {n, 1}, t.dtype, t.device); };
    const Tensor zeros = tape.alloc({n, 1}, DType::i32);
    kernels::fill_bytes(tape.queue(), zeros, 0);
    observer.begin(Protocol::osp);
    model.hidden(tape, {.tokens = first(batch.tokens),
                        .targets = first(batch.targets),
                        .positions = zeros,
                        .document_start = {}});
    tape.reset();
  }
  tape.set_tap(nullptr);
}

MetricsEntry outlier_entry(const OutlierRow& row, int64_t step, int64_t tokens) {
  const OutlierMetrics& m = row.metrics;
  MetricsEntry e("outliers", step, tokens);
  e.add("protocol", name(row.protocol)).add("tensor", row.tensor).add("layer", row.layer);
  if (row.tensor == "attention") return e.add("first_token_share", row.first_token_share);
  e.add("osp_kurtosis", m.osp_kurtosis).add("kurtosis", m.kurtosis).add("pooled_kurtosis", m.pooled_kurtosis);
  e.add("max_abs", m.max_abs).add("max_to_mean", m.max_to_mean).add("max_to_median", m.max_to_median);
  return e.add("tokens_measured", m.tokens).add("nonfinite_tokens", m.nonfinite_tokens);
}

void write_outliers(TfEventsWriter& writer, int64_t step, const std::vector<OutlierRow>& rows) {
  std::vector<std::pair<std::string, double>> points;
  for (const OutlierRow& row : rows) {
    const std::string layer = row.layer < 0 ? "final" : fmt::format("layer_{:02}", row.layer);
    const auto put = [&](const char* metric, const std::optional<double>& value) {
      if (value)
        points.emplace_back(
            fmt::format("outliers_{}/{}/{}/{}", name(row.protocol), row.tensor, layer, metric), *value);
    };
    put("osp_kurtosis", row.metrics.osp_kurtosis);
    put("kurtosis", row.metrics.kurtosis);
    put("pooled_kurtosis", row.metrics.pooled_kurtosis);
    put("max_abs", row.metrics.max_abs);
    put("max_to_mean", row.metrics.max_to_mean);
    put("max_to_median", row.metrics.max_to_median);
    put("first_token_share", row.first_token_share);
  }
  std::vector<TfScalar> scalars;
  for (const auto& [tag, value] : points) scalars.push_back({tag, value});
  writer.scalars(step, scalars);
}

std::vector<OutlierRow> over_layers(const std::vector<OutlierRow>& rows) {
  std::vector<OutlierRow> out;
  const auto mean = [&](const OutlierRow& like, auto field) -> std::optional<double> {
    double sum = 0;
    int64_t n = 0;
    for (const OutlierRow& r : rows)
      if (r.protocol == like.protocol && r.tensor == like.tensor)
        if (const std::optional<double> v = field(r)) sum += *v, ++n;
    if (n == 0) return {};
    return sum / static_cast<double>(n);
  };
  const auto largest = [&](const OutlierRow& like, auto field) -> std::optional<double> {
    std::optional<double> most;
    for (const OutlierRow& r : rows)
      if (r.protocol == like.protocol && r.tensor == like.tensor)
        if (const std::optional<double> v = field(r); v && (!most || *v > *most)) most = v;
    return most;
  };
  for (const OutlierRow& row : rows) {
    const auto same = [&](const OutlierRow& o) {
      return o.protocol == row.protocol && o.tensor == row.tensor;
    };
    if (std::any_of(out.begin(), out.end(), same)) continue;
    OutlierRow r{row.protocol, -1, row.tensor, {}, {}};
    for (const OutlierRow& o : rows)
      if (same(o))
        r.metrics.tokens += o.metrics.tokens, r.metrics.nonfinite_tokens += o.metrics.nonfinite_tokens;
    r.metrics.osp_kurtosis = mean(row, [](const OutlierRow& o) { return o.metrics.osp_kurtosis; });
    r.metrics.kurtosis = mean(row, [](const OutlierRow& o) { return o.metrics.kurtosis; });
    r.metrics.pooled_kurtosis = mean(row, [](const OutlierRow& o) { return o.metrics.pooled_kurtosis; });
    r.metrics.max_abs = largest(row, [](const OutlierRow& o) { return o.metrics.max_abs; });
    r.metrics.max_to_mean = largest(row, [](const OutlierRow& o) { return o.metrics.max_to_mean; });
    r.metrics.max_to_median = mean(row, [](const OutlierRow& o) { return o.metrics.max_to_median; });
    r.first_token_share = mean(row, [](const OutlierRow& o) { return o.first_token_share; });
    out.push_back(std::move(r));
  }
  return out;
}

}  // namespace osprey
