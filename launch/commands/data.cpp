// What a recipe's instruction data look like to the model, and instruction data made of WordNet.

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>

#include "framework/data/instruction_data.h"
#include "framework/data/wordnet.h"
#include "launch/commands/command.h"
#include "launch/recipe.h"

namespace osprey {
namespace {

/// Text in two kinds: learnt or not. In colour on a terminal, else in [[brackets]].
class Marker {
 public:
  Marker() : colour_(::isatty(STDOUT_FILENO) != 0 && std::getenv("NO_COLOR") == nullptr) {}
  std::string operator()(const std::string& text, bool learnt) const {
    if (colour_) return fmt::format("\033[{}m{}\033[0m", learnt ? "1;32" : "2", text);
    return learnt ? "[[" + text + "]]" : text;
  }
  const char* legend() const {
    return colour_ ? "green is learnt, grey is not" : "what stands in [[ ]] is learnt, the rest is not";
  }

 private:
  bool colour_;
};

/// How a token of no text is shown.
std::string special(const Tokenizer& tokenizer, int32_t token) {
  if (const auto text = tokenizer.special_text(token)) return *text;
  if (token == tokenizer.eos_id()) return "</s>";
  if (token == tokenizer.bos_id()) return "<s>";
  return "";
}

/// Stretches of one kind, each decoded after what stands before it.
std::string shown(const Tokenizer& tokenizer, std::span<const int32_t> tokens,
                  std::span<const uint8_t> trained, const Marker& mark) {
  std::string text;
  for (size_t begin = 0; begin < tokens.size();) {
    size_t end = begin;
    std::string part;
    while (end < tokens.size() && trained[end] == trained[begin]) {
      if (const std::string name = special(tokenizer, tokens[end]); !name.empty()) {
        part += name;
        ++end;
        continue;
      }
      size_t stop = end;
      while (stop < tokens.size() && trained[stop] == trained[begin] &&
             special(tokenizer, tokens[stop]).empty())
        ++stop;
      const std::string before = tokenizer.decode(tokens.first(end)),
                        after = tokenizer.decode(tokens.first(stop));
      part += after.substr(std::min(before.size(), after.size()));
      end = stop;
    }
    text += mark(part, trained[begin] != 0);
    begin = end;
  }
  return text;
}

struct ShowOptions : RecipeOptions {
  int64_t examples = 3;
};

void show(const ShowOptions& o) {
  const Recipe recipe = load_recipe(o.recipe, o.overrides);
  require(recipe.data.instructions(), "data",
          "{} trains on token shards; data.train must name instruction data (.jsonl or .json) to be shown",
          o.recipe);
  const InstructionData data =
      open_instructions(recipe.data, load_tokenizer(recipe.data.tokenizer),
                        {.vocab_size = recipe.model.vocab_size,
                         .seed = static_cast<uint64_t>(recipe.run.seed),
                         .threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()))});
  InstructionLoader loader(recipe.data, data.train,
                           {.seed = static_cast<uint64_t>(recipe.run.seed), .global_rows = 1, .filler = 0});
  const Marker mark;
  const InstructionSet& set = *data.train.front().set;
  fmt::print("{}\n", mark.legend());
  for (int64_t i = 0; i < std::min(o.examples, set.size()); ++i)
    fmt::print("\n--- example {}: {} tokens\n{}\n", i + 1, set.lengths()[static_cast<size_t>(i)],
               shown(*data.tokenizer, set.tokens(i), set.trained(i), mark));
  fmt::print("\n");
  for (const std::string& line : data.summary()) fmt::print("{}\n", line);
  const int64_t rows = loader.rows(1), room = rows * recipe.data.sequence_len;
  const InstructionCounts& c = data.train_counts;
  fmt::print(
      "an epoch: {} sequences of {} tokens, {:.1f}% filled; {:.1f} tokens a row on average, {:.1f} of them "
      "learnt\n",
      rows, recipe.data.sequence_len, 100.0 * static_cast<double>(c.tokens) / static_cast<double>(room),
      static_cast<double>(c.tokens) / static_cast<double>(c.kept),
      static_cast<double>(c.trained_tokens) / static_cast<double>(c.kept));
}

void add_show(CLI::App& data) {
  const auto o = std::make_shared<ShowOptions>();
  CLI::App* command =
      data.add_subcommand("show", "print examples as the model sees them, and count the rest");
  o->add_to(*command);
  command->add_option("--examples", o->examples, "how many to print")
      ->check(CLI::Range(0, 10000))
      ->capture_default_str();
  command->footer("Example:\n  osprey data show recipe.yaml --examples 2 --set data.template=chatml");
  command->callback([o] { show(*o); });
}

void add_wordnet(CLI::App& data) {
  const auto o = std::make_shared<WordnetOptions>();
  CLI::App* command =
      data.add_subcommand("wordnet", "make instruction data of the dictionary in Debian's dict-wn");
  command->add_option("-o,--output", o->output, "directory to write; must not exist")->required();
  command->add_option("--dictionary", o->dictionary, "of WordNet, as dictd reads it")->capture_default_str();
  command->add_option("--words", o->words, "so many words at most, drawn evenly")->capture_default_str();
  command->add_option("--validation-fraction", o->validation_fraction, "share of words held out")
      ->capture_default_str();
  command->add_option("--seed", o->seed, "decides which words are drawn and held out")->capture_default_str();
  command->footer("Example:\n  osprey data wordnet --words 20000 --output data/wordnet");
  command->callback([o] {
    const WordnetSummary s = write_wordnet(*o);
    fmt::print("{} words: {} rows in {}/train.jsonl, {} in {}/validation.jsonl\n", s.words, s.train_rows,
               o->output, s.validation_rows, o->output);
  });
}

}  // namespace

void add_data(CLI::App& app) {
  CLI::App* command = app.add_subcommand("data", "look at instruction data, or make some");
  command->require_subcommand(1);
  add_show(*command);
  add_wordnet(*command);
  command->footer("Example:\n  osprey data show recipe.yaml --examples 2");
}

}  // namespace osprey
