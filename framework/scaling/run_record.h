#pragma once
// What a scaling law needs to know of a finished run: one JSON object a line, in
// <run.output_dir>/scaling.jsonl, which all runs of a folder share. docs/scaling.md lists every key.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace osprey {

/// Number formats of what goes into the matrix products of the layers. A quantized format shares a scale
/// among `block` numbers; "bf16" and "f32" have none.
struct RunFormats {
  std::string weights = "bf16", activations = "bf16", gradients = "bf16";
  std::optional<int64_t> block;  // the group size G of scaling laws; the row length for a scale per row
  std::string how = {};          // all else that tells two quantizations apart, in words, or nothing

  /// Are all three bf16 or f32?
  bool full_precision() const;
  /// "mxfp4/mxfp4/bf16": weights, activations, gradients.
  std::string names() const;
  /// "mxfp4/mxfp4/bf16 (rotation 32)": the names, and how.
  std::string scheme() const;
  bool operator==(const RunFormats&) const = default;
};

struct RunRecord {
  std::string run;          // its name, which is its folder beside scaling.jsonl
  std::string recipe_hash;  // of the resolved recipe
  std::string version;      // of Osprey
  int64_t parameters = 0;   // all
  int64_t parameters_without_embedding = 0;
  int64_t tokens = 0;  // trained on
  int64_t batch_tokens = 0;
  int64_t sequence_len = 0;
  RunFormats formats;
  std::vector<std::string> optimizers;  // kinds, in the order of the recipe
  std::string schedule;                 // in words
  int64_t seed = 0;
  std::string tokenizer;  // its fingerprint: losses of different tokenizers cannot be compared
  /// Nats per token at the end, on the validation data. Absent without validation data, and where the loss is
  /// not finite.
  std::optional<double> validation_loss;
  std::optional<double> validation_standard_error;  // of EvalResult
  int64_t validation_tokens = 0;
  /// Nats per token: the mean over the last `train_loss_steps` steps. Absent where it is not finite, and
  /// where a process only evaluated what an earlier one had trained to the end.
  std::optional<double> train_loss;
  int64_t train_loss_steps = 0;
  double flops = 0;  // of training: LanguageModel::flops_per_token times tokens

  /// "muon+adamw".
  std::string optimizer() const;
  bool operator==(const RunRecord&) const = default;
};

/// One line, with its newline. Doubles have the fewest digits that read back to the same value.
std::string line_of(const RunRecord& record);
/// The record of a line without its newline; `where` is file and line.
/// Errors: anything that is no record: no JSON, keys missing, of another type or out of range. Keys that are
/// not known are ignored.
RunRecord parse_record(const std::string& where, std::string_view line);

/// All records of a file in its order. Where two are of the same run and recipe, the later one stands.
/// Errors: as parse_record, naming file and line; a missing file, or one of more than 64 MiB.
std::vector<RunRecord> read_records(const std::filesystem::path& file);

/// Appends the record by one write to a file opened for appending, so that runs that end at the same time do
/// not mix their lines. A line that somebody left unfinished is ended first.
/// Errors: throws when the file cannot be written.
void append_record(const std::filesystem::path& file, const RunRecord& record);

}  // namespace osprey
