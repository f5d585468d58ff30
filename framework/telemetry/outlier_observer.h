#pragma once
// Collects outlier figures of named activations while a model runs forward.
//
//   OutlierObserver observer(spec, queue);
//   observe_both_protocols(observer, model, tape, batch, osp_tokens);
//   observer.merge(comm);
//   for (const OutlierRow& row : observer.result()) log.write(outlier_entry(row, step, tokens));  // rank 0

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "framework/model.h"
#include "framework/parallel/communicator.h"
#include "framework/telemetry/first_token.h"
#include "framework/telemetry/metrics_log.h"
#include "framework/telemetry/outliers.h"
#include "framework/telemetry/spec.h"
#include "framework/telemetry/tfevents.h"

namespace osprey {

/// On what the model ran. `osp` is the published protocol: sequences of length one, so that every token
/// is a first token without context; `context` is an ordinary batch. Their numbers are not comparable.
enum class Protocol { context, osp };
const char* name(Protocol protocol);

struct OutlierRow {
  Protocol protocol = Protocol::context;
  int layer = -1;      // -1: after the last layer
  std::string tensor;  // "block_input", ..., "attention" (first_token_share only)
  OutlierMetrics metrics;
  std::optional<double> first_token_share;
};

class OutlierObserver final : public Tap {
 public:
  OutlierObserver(const TelemetrySpec& spec, const Queue& queue) : spec_(spec), queue_(queue) {}

  /// What is observed from now on belongs to `protocol`. `document_start` (B, T) i32 is the batch's, where
  /// attention stays inside documents.
  void begin(Protocol protocol, const Tensor& document_start = {}) {
    protocol_ = protocol;
    document_start_ = document_start;
  }
  void reset() { rows_.clear(); }

  /// Adds one micro batch of a named activation. Tensors that the recipe does not ask for are ignored.
  void observe(int layer, const char* tensor, const Tensor& t) override;
  void observe_attention(int layer, const AttentionView& view) override;

  /// Adds the sums of all ranks, in rank order; every rank then holds the same bits. Collective.
  void merge(Communicator& comm);

  /// Rows by protocol, tensor (in the order of observed_tensors()) and layer.
  std::vector<OutlierRow> result() const;

 private:
  struct Sums {
    OutlierSums outliers;
    FirstTokenSums first_token;
  };
  struct Key {
    Protocol protocol;
    int tensor;  // index into observed_tensors(), or its size for "attention"
    int layer;
    auto operator<=>(const Key&) const = default;
  };
  std::string pack() const;
  void add_packed(const std::string& text);

  TelemetrySpec spec_;
  Queue queue_;
  Protocol protocol_ = Protocol::context;
  Tensor document_start_;
  std::map<Key, Sums> rows_;
};

/// Shows the observer a forward pass over `batch` in context, and one over its first `osp_tokens` tokens (at
/// most all of them) as sequences of length one. Leaves the tape empty and in evaluation mode.
void observe_both_protocols(OutlierObserver& observer, LanguageModel& model, Tape& tape,
                            const BatchView& batch, int64_t osp_tokens);

/// The "outliers" entry of one row.
MetricsEntry outlier_entry(const OutlierRow& row, int64_t step, int64_t tokens);
/// "outliers/context/block_input/layer_03/kurtosis" and so on, one event for all rows.
void write_outliers(TfEventsWriter& writer, int64_t step, const std::vector<OutlierRow>& rows);

/// What the rows say in one figure a tensor and protocol: the mean of the layers' kurtosis, the largest
/// of their maxima. Layer is meaningless in the result.
std::vector<OutlierRow> over_layers(const std::vector<OutlierRow>& rows);

}  // namespace osprey
