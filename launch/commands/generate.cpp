#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <memory>

#include "framework/clock.h"
#include "framework/eval/sampler.h"
#include "framework/files/utf8.h"
#include "framework/memory/staging.h"
#include "launch/commands/command.h"
#include "launch/loaded_model.h"

namespace osprey {

namespace {

struct Options : CheckpointOptions {
  std::string prompt;
  int64_t max_tokens = 64, samples = 1;
  SamplerSpec sampler{.temperature = 0.8, .top_k = {}, .top_p = {}, .seed = 42};
};

/// Prints text as it grows; a character that is still incomplete waits.
class Printer {
 public:
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
  size_t shown_ = 0;
};

/// What the cache of one sequence takes, and its few scalars.
int64_t cache_bytes(LoadedModel& m, int64_t capacity) {
  Arena meta("cache", {DeviceKind::meta, 0}, 0);
  m.model->make_cache(meta, 1, capacity);
  return meta.used_bytes() + 4096;
}

void generate(LoadedModel& m, const Options& o, uint64_t sample, const std::vector<int32_t>& prompt) {
  const int64_t capacity = static_cast<int64_t>(prompt.size()) + o.max_tokens;
  Arena memory("cache", m.queue.device, cache_bytes(m, capacity));
  DecodeCache cache = m.model->make_cache(memory, 1, capacity);
  const Tensor token = memory.alloc({1}, DType::i32), position = memory.alloc({1}, DType::i32);
  Sampler sampler(o.sampler);
  const std::vector<int32_t> stops = m.tokenizer->stop_ids();
  Printer printer;
  std::vector<int32_t> text = prompt;
  const double start = now_s();
  for (int64_t i = 0; i < capacity; ++i) {
    const int32_t at = static_cast<int32_t>(i), length = at + 1;
    kernels::upload(m.queue, token, &text[static_cast<size_t>(i)]);
    kernels::upload(m.queue, position, &at);
    kernels::upload(m.queue, cache.lengths, &length);
    const Tensor logits = m.model->decode(m.tape, token, position, cache);
    if (i + 1 >= static_cast<int64_t>(prompt.size())) {
      const HostCopy host(m.queue, logits);
      const std::span<const float> row(host.tensor().as<float>(),
                                       static_cast<size_t>(m.tokenizer->vocab_size()));
      const int32_t next = sampler.sample(row, sample, static_cast<uint64_t>(i));
      if (std::find(stops.begin(), stops.end(), next) != stops.end()) break;
      text.push_back(next);
      printer.show(m.tokenizer->decode(text));
    }
    m.tape.reset();
    if (static_cast<int64_t>(text.size()) >= capacity) break;
  }
  m.tape.reset();
  const double seconds = now_s() - start;
  std::printf("\n");
  std::fflush(stdout);
  fmt::print(stderr, "[{} tokens, {:.1f} tokens/s]\n", text.size() - prompt.size(),
             static_cast<double>(text.size()) / seconds);
}

void run(const Options& o) {
  const Sampler valid(o.sampler);  // a wrong option is told before the model is loaded
  const auto malformed = find_malformed_utf8(o.prompt);
  require(!malformed, "generate", "--prompt is not UTF-8 text: byte {} begins no character",
          malformed.value_or(0));
  LoadedModel m(o.checkpoint, o.threads, o.on_device());
  std::vector<int32_t> prompt;
  // Documents are separated by the end token, so a text begins after one, unless the model has a token for
  // it.
  prompt.push_back(m.tokenizer->adds_bos() ? *m.tokenizer->bos_id() : m.tokenizer->eos_id());
  m.tokenizer->encode(o.prompt, prompt);
  const int64_t trained = m.hub.context().sequence_len;
  if (static_cast<int64_t>(prompt.size()) + o.max_tokens > trained)
    fmt::print(stderr, "note: the model was trained on {} tokens; text beyond that degrades\n", trained);
  for (int64_t i = 0; i < o.samples; ++i) generate(m, o, static_cast<uint64_t>(i), prompt);
}

}  // namespace

void add_generate(CLI::App& app) {
  const auto o = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("generate", "continue a text with a checkpoint");
  o->add_to(*command);
  command->add_option("--prompt", o->prompt, "the text to continue; empty: a new document");
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
      "Example:\n  osprey generate runs/quickstart_osp --prompt \"Osprey\" --temperature 0.7 --top-p 0.9");
  command->callback([o] { run(*o); });
}

}  // namespace osprey
