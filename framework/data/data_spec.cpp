#include "framework/data/data_spec.h"

#include <fmt/format.h>

#include <algorithm>

#include "framework/data/chat_template.h"

namespace osprey {

void SourceSpec::fields(Fields& f) {
  f("path", path,
    "token shards written by osprey prepare, or instruction data: a shell pattern such as data/train-* or "
    "data/*.jsonl; what ends in .jsonl or .json is instruction data");
  f("weight", weight,
    "share of the training sequences relative to the other sources; null on all of them means by size",
    positive());
  f.when(instructions(), "path ends in .jsonl or .json", [&] {
    using enum InstructionFormat;
    constexpr std::pair<const char*, InstructionFormat> formats[] = {{"auto", automatic},
                                                                     {"alpaca", alpaca},
                                                                     {"sharegpt", sharegpt},
                                                                     {"messages", messages},
                                                                     {"prompt_completion", prompt_completion},
                                                                     {"completion", completion},
                                                                     {"input_output", input_output},
                                                                     {"tokenized", tokenized}};
    f.choice("format", format, std::span<const std::pair<const char*, InstructionFormat>>(formats),
             "how the rows are written; auto: as the keys of the first row say");
  });
  f.rule(!path.empty(), "path", "names no data; give a pattern such as data/train-* or data/*.jsonl");
}

void DataSpec::fields(Fields& f) {
  f("tokenizer", tokenizer,
    "directory of the tokenizer that made the shards, or bytes; empty: the one in model.path");
  f.list("train", train, "sources that training reads, mixed by weight");
  f.list("validation", validation, "sources that evaluation reads, in order and whole; weights do not apply");
  f("sequence_len", sequence_len, "tokens in one training sequence", between(2, 1 << 30));
  f.when(!instructions(), "train names token shards", [&] {
    f("attention_across_documents", attention_across_documents,
      "whether a token may attend to earlier documents packed into its sequence; if not, positions restart with "
      "every document and the first token of a document is not a target");
  });
  f.when(instructions(), "train names instruction data", [&] { instruction_fields(f); });
  const auto weighted =
      std::count_if(train.begin(), train.end(), [](const SourceSpec& s) { return s.weight.has_value(); });
  const auto other = [&](const SourceSpec& s) { return s.instructions() != instructions(); };
  f.rule(!train.empty(), "train", "names no source");
  f.rule(weighted == 0 || weighted == static_cast<int64_t>(train.size()), "train",
         "gives a weight to some sources only; give one to all or to none");
  f.rule(std::none_of(train.begin(), train.end(), other), "train",
         "mixes token shards and instruction data; give one kind");
  f.rule(train.empty() || std::none_of(validation.begin(), validation.end(), other), "validation",
         "is of another kind than train; give token shards for both, or instruction data for both");
}

void DataSpec::instruction_fields(Fields& f) {
  f("template", chat_template,
    "how a conversation is written: chatml, llama3, llama2, mistral, gemma, alpaca, vicuna, none, a file in "
    ".jinja, or auto: the template of the tokenizer's directory, and alpaca where it has none");
  f("train_on_inputs", train_on_inputs, "whether questions are learnt too, and not answers alone");
  f("packing", packing,
    "whether short rows share a sequence, without seeing each other; if not, each has one of its own");
  f.choice("overlong", overlong,
           {{"drop", Overlong::drop}, {"truncate", Overlong::truncate}, {"error", Overlong::error}},
           "what becomes of a row of more than sequence_len tokens: left out and counted, cut at its end, or "
           "the end of the run before it begins");
  f("validation_fraction", validation_fraction,
    "share of the rows held out to evaluate on, drawn by run.seed; for runs without validation sources",
    between(0, 0.5));
  f("strict", strict, "whether a row that cannot be used is an error, instead of left out and counted");
  f.rule(validation.empty() || validation_fraction == 0, "validation_fraction",
         "holds out training rows although validation names sources; take one of the two away");
  const auto names = template_names();
  f.rule(chat_template == "auto" || chat_template.ends_with(".jinja") ||
             std::find(names.begin(), names.end(), chat_template) != names.end(),
         "template",
         fmt::format("{} is none of auto, {}, nor a file in .jinja", chat_template, fmt::join(names, ", ")));
}

}  // namespace osprey
