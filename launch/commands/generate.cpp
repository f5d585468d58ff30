#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <memory>

#include "framework/clock.h"
#include "framework/data/template_files.h"
#include "framework/eval/sampler.h"
#include "framework/files/utf8.h"
#include "framework/memory/staging.h"
#include "launch/commands/command.h"
#include "launch/loaded_model.h"

namespace osprey {

namespace {

struct Options : CheckpointOptions {
  std::string prompt, system;
  std::string chat_template;  // empty: the checkpoint's own
  bool chat = false;
  int64_t max_tokens = 64, samples = 1;
  SamplerSpec sampler{.temperature = 0.8, .top_k = {}, .top_p = {}, .seed = 42};
};

/// Prints text as it grows, from byte `from` on; a character that is still incomplete waits.
class Printer {
 public:
  explicit Printer(size_t from) : shown_(from) {}
  void show(const std::string& text) {
    const size_t whole = complete(text);
    if (whole > shown_) std::fwrite(text.data() + shown_, 1, whole - shown_, stdout);
    shown_ = std::max(shown_, whole);
    std::fflush(stdout);
  }

 private:
  static size_t complete(const std::string& text) {
    size_t end = text.size();
    for (size_t back = 1; back <= 3 && back <= text.size(); ++back) {
      const unsigned char c = static_cast<unsigned char>(text[text.size() - back]);
      if ((c & 0xc0) == 0x80) continue;
      const size_t length = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : c >= 0xc0 ? 2 : 1;
      if (length > back) end = text.size() - back;
      break;
    }
    return end;
  }
  size_t shown_;
};

/// What the cache of one sequence takes, and its few scalars.
int64_t cache_bytes(LoadedModel& m, int64_t capacity) {
  Arena meta("cache", {DeviceKind::meta, 0}, 0);
  m.model->make_cache(meta, 1, capacity);
  return meta.used_bytes() + 4096;
}

/// Continues `text` until a token of `stops` or o.max_tokens, and prints it from byte `from` of its text on.
/// Returns whether it came to a stop, which is left out.
bool generate(LoadedModel& m, const Options& o, uint64_t sample, std::span<const int32_t> stops, size_t from,
              std::vector<int32_t>& text) {
  const size_t prompt = text.size();
  const int64_t capacity = static_cast<int64_t>(prompt) + o.max_tokens;
  Arena memory("cache", m.queue.device, cache_bytes(m, capacity));
  DecodeCache cache = m.model->make_cache(memory, 1, capacity);
  const Tensor token = memory.alloc({1}, DType::i32), position = memory.alloc({1}, DType::i32);
  Sampler sampler(o.sampler);
  Printer printer(from);
  bool stopped = false;
  double start = now_s();
  for (int64_t i = 0; i < capacity && !stopped; ++i) {
    if (i + 1 == static_cast<int64_t>(prompt)) start = now_s();  // what was given is read
    const int32_t at = static_cast<int32_t>(i), length = at + 1;
    kernels::upload(m.queue, token, &text[static_cast<size_t>(i)]);
    kernels::upload(m.queue, position, &at);
    kernels::upload(m.queue, cache.lengths, &length);
    const Tensor logits = m.model->decode(m.tape, token, position, cache);
    if (i + 1 >= static_cast<int64_t>(prompt)) {
      const HostCopy host(m.queue, logits);
      const std::span<const float> row(host.tensor().as<float>(),
                                       static_cast<size_t>(m.tokenizer->vocab_size()));
      const int32_t next = sampler.sample(row, sample, static_cast<uint64_t>(i));
      stopped = std::find(stops.begin(), stops.end(), next) != stops.end();
      if (!stopped) {
        text.push_back(next);
        printer.show(m.tokenizer->decode(text));
      }
    }
    m.tape.reset();
    if (static_cast<int64_t>(text.size()) >= capacity) break;
  }
  m.tape.reset();
  const double seconds = now_s() - start;
  std::printf("\n");
  std::fflush(stdout);
  fmt::print(stderr, "[{} tokens, {:.1f} tokens/s]\n", text.size() - prompt,
             static_cast<double>(text.size() - prompt) / seconds);
  return stopped;
}

void note_length(const LoadedModel& m, const Options& o, size_t prompt) {
  const int64_t trained = m.hub.context().sequence_len;
  if (static_cast<int64_t>(prompt) + o.max_tokens > trained)
    fmt::print(stderr, "note: the model was trained on {} tokens; text beyond that degrades\n", trained);
}

/// The template that the checkpoint was trained with, unless another is asked for.
std::unique_ptr<ChatTemplate> template_of(const LoadedModel& m, const Options& o) {
  DataSpec data;
  if (std::filesystem::exists(m.path / "recipe.yaml"))
    data = load_recipe((m.path / "recipe.yaml").string(), {}).data;
  use_template_of(m.path, data);
  if (!o.chat_template.empty()) data.chat_template = o.chat_template;
  auto chosen = load_template(data.chat_template, data.tokenizer, *m.tokenizer);
  fmt::print(stderr, "template: {}\n", chosen->name());
  return chosen;
}

std::string trimmed(const std::string& text) {
  constexpr const char* space = " \t\r\n";
  const size_t begin = text.find_first_not_of(space);
  return begin == std::string::npos ? "" : text.substr(begin, text.find_last_not_of(space) + 1 - begin);
}

/// The next thing a user says: a line of a terminal, or all of what is piped in.
std::optional<std::string> next_turn(bool terminal) {
  std::string text;
  if (terminal) {
    fmt::print(stderr, "> ");
    if (!std::getline(std::cin, text)) return {};
  } else {
    text.assign(std::istreambuf_iterator<char>(std::cin), {});
    if (text.empty()) return {};
  }
  require(!find_malformed_utf8(text), "generate", "what was typed is not UTF-8 text");
  return trimmed(text);
}

/// On a terminal turn after turn, elsewhere one answer to what is piped in.
void chat(LoadedModel& m, const Options& o) {
  const auto chat = template_of(m, o);
  const std::vector<int32_t> stops = chat->stop_ids();
  const bool terminal = ::isatty(STDIN_FILENO) != 0;
  Conversation turns;
  if (!o.system.empty()) turns.push_back({.role = Message::Role::system, .content = o.system});
  uint64_t sample = 0;
  while (const auto said = next_turn(terminal)) {
    if (said->empty()) continue;
    turns.push_back({.role = Message::Role::user, .content = *said});
    std::vector<int32_t> text =
        encode_pieces(*m.tokenizer, chat->render(turns, ChatTemplate::Ask::answer)).tokens;
    note_length(m, o, text.size());
    const size_t asked = m.tokenizer->decode(text).size();
    if (!generate(m, o, sample++, stops, asked, text))
      fmt::print(stderr, "note: the answer was cut after --max-tokens {}\n", o.max_tokens);
    turns.push_back(
        {.role = Message::Role::assistant, .content = trimmed(m.tokenizer->decode(text).substr(asked))});
    if (!terminal) return;
  }
  require(terminal, "generate", "--chat was given nothing to answer on its standard input");
}

void run(const Options& o) {
  const Sampler valid(o.sampler);  // a wrong option is told before the model is loaded
  const auto malformed = find_malformed_utf8(o.prompt);
  require(!malformed, "generate", "--prompt is not UTF-8 text: byte {} begins no character",
          malformed.value_or(0));
  require(!o.chat || (o.prompt.empty() && o.samples == 1), "generate",
          "--chat reads its questions from the standard input; leave --prompt and --samples out");
  require(o.chat || (o.system.empty() && o.chat_template.empty()), "generate",
          "--system and --template are for --chat");
  LoadedModel m(o.checkpoint, o.threads, o.on_device());
  require(m.tokenizer->vocab_size() <= m.hub.spec().vocab_size, "generate",
          "the tokenizer has {} tokens but the model only {}", m.tokenizer->vocab_size(),
          m.hub.spec().vocab_size);
  if (o.chat) return chat(m, o);
  std::vector<int32_t> prompt;
  // Documents are separated by the end token, so a text begins after one, unless the model has a token for
  // it.
  prompt.push_back(m.tokenizer->adds_bos() ? *m.tokenizer->bos_id() : m.tokenizer->eos_id());
  m.tokenizer->encode(o.prompt, prompt);
  note_length(m, o, prompt.size());
  for (int64_t i = 0; i < o.samples; ++i) {
    std::vector<int32_t> text = prompt;
    generate(m, o, static_cast<uint64_t>(i), m.tokenizer->stop_ids(), 0, text);
  }
}

}  // namespace

void add_generate(CLI::App& app) {
  const auto o = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("generate", "continue a text with a checkpoint");
  o->add_to(*command);
  command->add_option("--prompt", o->prompt, "the text to continue; empty: a new document");
  command->add_flag("--chat", o->chat,
                    "answer questions: turn after turn on a terminal, else once, to what is piped in");
  command->add_option("--system", o->system, "of --chat: what the model is told first");
  command->add_option(
      "--template", o->chat_template,
      "of --chat: a name or a file in .jinja as in data.template; empty: the checkpoint's own");
  command->add_option("--max-tokens", o->max_tokens, "tokens to add at most")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--samples", o->samples, "continuations")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--temperature", o->sampler.temperature, "0: always the most likely token")
      ->capture_default_str();
  command->add_option("--top-k", o->sampler.top_k, "only the k most likely tokens");
  command->add_option("--top-p", o->sampler.top_p,
                      "only the most likely tokens that together have probability p");
  command->add_option("--seed", o->sampler.seed, "of the draws")
      ->check(CLI::Range(int64_t{0}, INT64_MAX))
      ->capture_default_str();
  command->footer(
      "Example:\n  osprey generate runs/quickstart_osp --prompt \"Osprey\" --temperature 0.7 --top-p 0.9\n"
      "  echo 'Define the noun osprey.' | osprey generate runs/wordnet --chat --temperature 0");
  command->callback([o] { run(*o); });
}

}  // namespace osprey
