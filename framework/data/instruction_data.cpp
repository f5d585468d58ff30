#include "framework/data/instruction_data.h"

#include "framework/data/template_files.h"
#include "kernels/core/check.h"

namespace osprey {
namespace {

void require_rows(const std::string& what, const InstructionSet& set, const InstructionCounts& counts) {
  if (set.size() > 0) return;
  std::string reasons;
  for (const auto& [reason, dropped] : counts.dropped)
    reasons += fmt::format("; {} because {} ({})", dropped.rows, reason, dropped.first);
  fail("data", "{} holds no row that can be used, of {}{}", what, counts.rows, reasons);
}

}  // namespace

std::vector<std::string> describe(const std::string& what, const InstructionCounts& counts) {
  std::string formats;
  for (const InstructionFormat f : counts.formats)
    formats += (formats.empty() ? "" : ", ") + std::string(name(f));
  std::string line = fmt::format("{}: {} of {} rows ({})", what, counts.kept, counts.rows, formats);
  if (counts.held_out > 0) line += fmt::format(", {} held out to validate on", counts.held_out);
  if (counts.truncated > 0) line += fmt::format(", {} cut at data.sequence_len", counts.truncated);
  std::vector<std::string> lines = {
      line + fmt::format(", {} tokens, {} of them learnt", counts.tokens, counts.trained_tokens)};
  for (const auto& [reason, dropped] : counts.dropped)
    lines.push_back(
        fmt::format("{}: {} left out because {} ({})", what, dropped.rows, reason, dropped.first));
  return lines;
}

std::vector<std::string> InstructionData::summary() const {
  std::vector<std::string> lines = {"template: " + chat_template->name()};
  for (const auto& [what, counts] :
       {std::pair{"data.train", &train_counts}, {"data.validation", &validation_counts}})
    if (counts->rows > 0)
      for (std::string& line : describe(what, *counts)) lines.push_back(std::move(line));
  return lines;
}

InstructionData open_instructions(const DataSpec& spec, std::shared_ptr<const Tokenizer> tokenizer,
                                  const InstructionRequest& request) {
  InstructionData data;
  data.tokenizer = std::move(tokenizer);
  data.chat_template = load_template(spec.chat_template, spec.tokenizer, *data.tokenizer);
  const InstructionSetup setup{.tokenizer = *data.tokenizer,
                               .chat_template = *data.chat_template,
                               .vocab_size = request.vocab_size,
                               .seed = request.seed,
                               .threads = request.threads};
  const auto held_out = std::make_shared<InstructionSet>();
  const bool holds_out = spec.validation_fraction > 0;
  if (request.sources == InstructionRequest::Sources::all || holds_out) {
    std::shared_ptr<InstructionSet> set;
    for (const SourceSpec& source : spec.train) {
      if (!set || source.weight) {
        set = std::make_shared<InstructionSet>();
        data.train.push_back({set, source.weight});
      }
      read_instructions(source, spec, setup, *set, holds_out ? held_out.get() : nullptr, data.train_counts);
      if (source.weight) require_rows(source.path, *set, data.train_counts);
    }
    require_rows("data.train", *data.train.front().set, data.train_counts);
  }
  if (holds_out) {
    data.validation = held_out;
    require(held_out->size() > 0, "data", "data.validation_fraction {} holds out none of {} rows; raise it",
            spec.validation_fraction, data.train_counts.rows);
  } else if (!spec.validation.empty()) {
    const auto set = std::make_shared<InstructionSet>();
    for (const SourceSpec& source : spec.validation)
      read_instructions(source, spec, setup, *set, nullptr, data.validation_counts);
    require_rows("data.validation", *set, data.validation_counts);
    data.validation = set;
  }
  return data;
}

}  // namespace osprey
