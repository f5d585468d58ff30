// Text in, tokenizer and token shards out.

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "framework/clock.h"
#include "framework/data/prepare.h"
#include "kernels/core/check.h"
#include "launch/commands/command.h"

namespace osprey {
namespace {

constexpr const char* kExamples = R"(Examples:
  osprey prepare /usr/share/dictd/gcide.dict.dz --documents entry --encoding windows-1252 \
      --train-tokenizer bpe --vocab-size 8192 --output data/gcide
  osprey prepare 'corpus/*.jsonl.zst' --text-key text --tokenizer data/gcide/tokenizer --output data/more
  osprey prepare notes.txt --document-separator '\n\n---\n\n' --tokenizer bytes --output data/notes
  osprey prepare --adopt 'megatron/shard-*' --tokenizer megatron/tokenizer

What the recipe then says:
  data: { tokenizer: data/gcide/tokenizer, train: [ { path: "data/gcide/train-*" } ],
          validation: [ { path: "data/gcide/validation-*" } ] })";

/// One line that is rewritten on a terminal, and a line every ten seconds elsewhere.
class ProgressLine {
 public:
  void operator()(const PrepareProgress& at) {
    const double now = now_s();
    const bool terminal = ::isatty(STDERR_FILENO) != 0, new_stage = stage_ != at.stage;
    if (!new_stage && now - last_s_ < (terminal ? 0.2 : 10.0)) return;
    if (new_stage) begin_s_ = now;
    const double seconds = std::max(0.001, now - begin_s_);
    std::string line =
        fmt::format("{}: {} documents, {:.1f} MB", at.stage, at.documents, at.text_bytes * 1e-6);
    if (at.tokens > 0 && !new_stage)
      line +=
          fmt::format(", {:.2f} M tokens, {:.2f} M tokens/s", at.tokens * 1e-6, at.tokens * 1e-6 / seconds);
    std::fputs(terminal ? fmt::format("{}\r{}\033[K", new_stage && !stage_.empty() ? "\n" : "", line).c_str()
                        : (line + "\n").c_str(),
               stderr);
    std::fflush(stderr);
    stage_ = at.stage;
    last_s_ = now;
  }
  ~ProgressLine() {
    if (!stage_.empty() && ::isatty(STDERR_FILENO)) std::fputs("\n", stderr);
  }

 private:
  std::string stage_;
  double begin_s_ = 0, last_s_ = 0;
};

/// \n, \t and \\ as people type them in a shell.
std::string unescape(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\\' || i + 1 == text.size()) {
      out.push_back(text[i]);
      continue;
    }
    const char c = text[++i];
    require(c == 'n' || c == 't' || c == '\\', "prepare",
            "--document-separator may have \\n, \\t and \\\\, got \\{}", c);
    out.push_back(c == 'n' ? '\n' : c == 't' ? '\t' : '\\');
  }
  return out;
}

void print(const PrepareOptions& options, const PrepareSummary& summary, double seconds) {
  if (summary.already_there) fmt::print("{} is complete and of these settings: kept\n", options.output);
  fmt::print("{:<12} {:>7} {:>12} {:>14} {:>10} {:>13}\n", "split", "shards", "documents", "tokens",
             "text MB", "bytes/token");
  for (const SplitSummary& split : summary.splits)
    fmt::print(
        "{:<12} {:>7} {:>12} {:>14} {:>10.1f} {:>13.2f}\n", split.name, split.shards, split.documents,
        split.tokens, split.text_bytes * 1e-6,
        static_cast<double>(split.text_bytes) / static_cast<double>(std::max<int64_t>(1, split.tokens)));
  fmt::print("tokenizer    {}, {} tokens, in {}/tokenizer\n", summary.tokenizer_fingerprint,
             summary.vocab_size, options.output);
  if (summary.skipped > 0)
    fmt::print("skipped      {} documents; the first: {}\n", summary.skipped, summary.first_skipped);
  if (!summary.already_there) fmt::print("written to   {} in {:.1f} s\n", options.output, seconds);
}

template <class E>
using Words = std::vector<std::pair<std::string, E>>;
using Format = TextOptions::Format;
using Documents = TextOptions::Documents;
using Encoding = TextOptions::Encoding;
using Kind = SentencepieceTraining::Kind;
const Words<Format> kFormats = {
    {"auto", Format::automatic}, {"text", Format::text}, {"jsonl", Format::jsonl}};
const Words<Documents> kDocuments = {{"file", Documents::file},
                                     {"line", Documents::line},
                                     {"paragraph", Documents::paragraph},
                                     {"entry", Documents::entry}};
const Words<Encoding> kEncodings = {{"utf-8", Encoding::utf8}, {"windows-1252", Encoding::windows1252}};
const Words<Kind> kKinds = {{"bpe", Kind::bpe}, {"unigram", Kind::unigram}};

/// An option that takes one of a few words.
template <class E>
CLI::Option* add_choice(CLI::App* command, const std::string& name, E& value, const Words<E>& words,
                        const std::string& help) {
  return command
      ->add_option_function<std::string>(
          name,
          [name, &value, &words](const std::string& given) {
            std::string known;
            for (const auto& [word, meaning] : words) {
              if (given == word) {
                value = meaning;
                return;
              }
              known += (known.empty() ? "" : ", ") + word;
            }
            fail("prepare", "{} must be one of {}; got {}", name, known, given);
          },
          help)
      ->option_text("WORD");
}

struct Command {
  PrepareOptions options;
  std::vector<std::string> adopt;
  std::string separator;
  SentencepieceTraining training;
  bool skip_bad = false, if_missing = false;
  CLI::Option* train = nullptr;

  bool train_asked() const { return train->count() > 0; }
  void run() {
    if (!adopt.empty()) {
      require(options.inputs.empty() && options.output.empty() && !train_asked(), "prepare",
              "--adopt takes shards and --tokenizer only");
      const auto tokenizer = load_tokenizer(options.tokenizer);
      for (const std::string& prefix : adopt_shards(adopt, *tokenizer)) fmt::print("wrote {}.json\n", prefix);
      return;
    }
    if (!separator.empty()) options.text.separator = unescape(separator);
    if (skip_bad) options.text.bad = TextOptions::Bad::skip;
    if (if_missing) options.existing = PrepareOptions::Existing::keep;
    if (train_asked()) options.training = training;
    const double begin = now_s();
    PrepareSummary summary;
    {
      ProgressLine line;
      summary = prepare(options, [&](const PrepareProgress& at) { line(at); });
    }
    print(options, summary, now_s() - begin);
  }
};

}  // namespace

void add_prepare(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("prepare", "turn text or JSON lines into a tokenizer and token shards");
  auto state = std::make_shared<Command>();
  PrepareOptions& o = state->options;
  o.threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  command->add_option("inputs", o.inputs,
                      "text or .jsonl files, plain, gzip (.gz, .dz) or zstd; shell patterns too");
  command->add_option("-o,--output", o.output, "directory to write; must not exist");

  const char* tokens = "Tokenizer";
  auto* train = add_choice(command, "--train-tokenizer", state->training.kind, kKinds,
                           "train a sentencepiece tokenizer: bpe or unigram")
                    ->group(tokens);
  state->train = train;
  command->add_option("--vocab-size", state->training.vocab_size, "tokens of the tokenizer to train")
      ->check(CLI::Range(1, 1 << 24).description(""))
      ->capture_default_str()
      ->needs(train)
      ->group(tokens);
  command
      ->add_option("--tokenizer-lines", o.tokenizer_lines,
                   "lines drawn from the training documents to train it on")
      ->capture_default_str()
      ->needs(train)
      ->group(tokens);
  command
      ->add_option("--tokenizer", o.tokenizer,
                   "use this one: a directory (of Hugging Face, too), a tokenizer.json, a sentencepiece "
                   ".model, or the word bytes")
      ->excludes(train)
      ->option_text("WHERE")
      ->group(tokens);

  const char* text = "Text";
  add_choice(command, "--format", o.text.format, kFormats, "auto (by name), text or jsonl")->group(text);
  auto* documents = add_choice(command, "--documents", o.text.documents, kDocuments,
                               "what a document of a text file is: file (default), line, paragraph (between "
                               "blank lines), or entry (an "
                               "unindented line after a blank one begins the next, as in dictionaries)")
                        ->group(text);
  command
      ->add_option("--document-separator", state->separator,
                   "text that stands between documents; \\n is a newline")
      ->option_text("TEXT")
      ->excludes(documents)
      ->group(text);
  command->add_option("--text-key", o.text.text_key, "key of the text in JSON lines")
      ->capture_default_str()
      ->group(text);
  add_choice(command, "--encoding", o.text.encoding, kEncodings,
             "of text files: utf-8 (default) or windows-1252, which includes Latin-1")
      ->group(text);
  command
      ->add_flag("--skip-bad", state->skip_bad,
                 "leave out documents that are not UTF-8 or JSON, and count them")
      ->group(text);

  const char* output = "Output";
  command
      ->add_option("--validation-fraction", o.validation_fraction, "share of documents held out; 0 for none")
      ->capture_default_str()
      ->group(output);
  command->add_option("--shard-tokens", o.shard_tokens, "close a shard when it holds so many tokens")
      ->capture_default_str()
      ->group(output);
  command->add_option("--seed", o.seed, "decides which documents are held out")
      ->capture_default_str()
      ->group(output);
  command->add_option("--threads", o.threads, "threads to encode with; results do not depend on them")
      ->check(CLI::Range(1, 1024).description(""))
      ->capture_default_str()
      ->group(output);
  command->add_flag("--if-missing", state->if_missing, "keep a complete output that has these very settings")
      ->group(output);
  command
      ->add_option("--adopt", state->adopt,
                   "write side-cars for Megatron shards from elsewhere; needs --tokenizer")
      ->option_text("PATTERN")
      ->group(output);
  command->footer(kExamples);
  command->callback([state] { state->run(); });
}

}  // namespace osprey
