#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>

#include "framework/files/file.h"
#include "framework/finetune/layer_outliers.h"
#include "framework/memory/staging.h"
#include "kernels/pointwise.h"
#include "launch/commands/command.h"
#include "launch/outlier_tables.h"

namespace osprey {

namespace {

struct Options : CheckpointOptions {
  std::vector<std::string> data;
  int64_t sequences = 8;
  int64_t sequence_len = 0;
  std::string lod;
  double lod_threshold = 13;
};

/// Largest |w| over mean |w|: of the matrix, and of its worst input channel (column) over the mean column.
void print_weights(const Queue& queue, const ParamStore& params) {
  fmt::print("\n{:<32}{:>16}{:>10}{:>12}{:>16}{:>12}\n", "weight", "shape", "max", "max/mean", "worst column",
             "kurtosis");
  int64_t packed = 0;
  for (const auto& p : params.all()) {
    if (!p->matrix()) continue;
    if (p->stored_format) {
      ++packed;
      continue;
    }
    const HostCopy copy(queue, p->value);
    const Tensor& value = copy.tensor();
    const int64_t cols = p->shape[1];
    std::vector<double> column(static_cast<size_t>(cols));
    double largest = 0, sum = 0, square = 0, fourth = 0;
    for (int64_t i = 0; i < p->shape.numel(); ++i) {
      const double v = std::abs(static_cast<double>(value.dtype == DType::bf16 ? to_float(value.as<bf16>()[i])
                                                                               : value.as<float>()[i]));
      largest = std::max(largest, v);
      sum += v;
      square += v * v;
      fourth += v * v * v * v;
      column[static_cast<size_t>(i % cols)] += v;
    }
    const double n = static_cast<double>(p->shape.numel()), mean = sum / n;
    const double worst = *std::max_element(column.begin(), column.end()) / (sum / static_cast<double>(cols));
    fmt::print("{:<32}{:>16}{:>10.4f}{:>12.2f}{:>16.2f}{:>12.2f}\n", p->name, p->shape.str(), largest,
               mean > 0 ? largest / mean : 0, worst, square > 0 ? fourth * n / (square * square) - 3 : 0);
  }
  if (packed > 0)
    fmt::print("{} more are packed; the checkpoint they were made of can be inspected\n", packed);
  fmt::print(
      "worst column: mean |w| of the heaviest input channel over the mean of all; kurtosis: excess, "
      "uncentred.\n");
}

/// Scores every layer by its outliers on `rows` sequences, prints the scores and writes them to a file that
/// finetune.scores reads.
void write_layer_scores(LoadedModel& m, ValidationData& data, StagedBatch& batch, int64_t rows,
                        const Options& o) {
  LayerOutliers outliers(m.tape);
  Arena scalars("loss sums", m.queue.device, 64);
  const Tensor sums = scalars.alloc({2}, DType::f64);
  kernels::fill(m.queue, {.y = sums, .value = 0});
  for (int64_t first = 0; first < rows; first += batch.host().batch()) {
    m.model->loss(m.tape, batch.fill(data, first), {.grad_scale = {}, .sums = sums});
    m.tape.reset();
  }
  const std::vector<double> scores = outliers.scores(m.params, o.lod_threshold);
  fmt::print("{:<7}{:>10}   share of |weight| |input| above {} times the mean of its block, in percent\n",
             "layer", "score", o.lod_threshold);
  for (size_t l = 0; l < scores.size(); ++l) fmt::print("{:<7}{:>10.5f}\n", l, scores[l]);
  const nlohmann::ordered_json file = {{"scores", scores},
                                       {"threshold", o.lod_threshold},
                                       {"sequences", rows},
                                       {"sequence_len", batch.host().sequence()},
                                       {"model", m.path.string()}};
  replace_file(o.lod, file.dump(1) + "\n");
  fmt::print("written to {}; name it in finetune.scores\n", o.lod);
}

}  // namespace

void add_inspect(CLI::App& app) {
  const auto o = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "inspect", "outlier tables of a checkpoint: every tensor of every layer, and its weights");
  o->add_to(*command);
  command->add_option("--data", o->data, "token shards (glob) instead of the recipe's validation data");
  command->add_option("--sequences", o->sequences, "sequences to run")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--sequence-len", o->sequence_len, "length of a sequence; the checkpoint's if absent")
      ->check(CLI::Range(1, 1 << 30));
  command->add_option(
      "--lod", o->lod,
      "score layers by their outliers instead, and write the scores to this file (for finetune.scores)");
  command
      ->add_option("--lod-threshold", o->lod_threshold,
                   "how many times the mean of its block an outlier is (OWL: 5, OwLore: 13)")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->footer("Example:\n  osprey inspect runs/quickstart_osp --sequences 16");
  command->callback([o] {
    LoadedModel m(o->checkpoint, o->threads, o->on_device());
    const int64_t length = o->sequence_len ? o->sequence_len : m.hub.context().sequence_len;
    require_evaluation_memory(m, std::min<int64_t>(o->sequences, 8), length);
    const auto data = validation_data(m, o->data, length, o->sequences * length);
    const int64_t rows = data->rows();
    int64_t batch = 8;  // of which all rows are a multiple: none is left out, and none is filler
    while (rows % batch != 0) --batch;
    StagedBatch buffers(m.queue, *data, batch);
    fmt::print("{}\n\n", m.path.string());
    if (!o->lod.empty()) return write_layer_scores(m, *data, buffers, rows, *o);
    print_outliers(measure_outliers_of(m, *data, buffers, rows), OutlierDetail::every_layer);
    print_weights(m.queue, m.params);
  });
}

}  // namespace osprey
