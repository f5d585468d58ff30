// The sentencepiece library behind the Tokenizer interface. It encodes a text in one go, so long
// documents are cut here at line ends; that gives the same tokens wherever a model keeps lines
// apart, which is tried out on loading.

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "framework/data/tokenizer_files.h"
#include "framework/files/file.h"
#include "kernels/core/check.h"
#include "kernels/core/random.h"

namespace osprey {
namespace {

constexpr size_t kCutBytes = 64 * 1024;

class SentencepieceTokenizer final : public Tokenizer {
 public:
  SentencepieceTokenizer(std::string model, const std::string& name, TokenizerFiles beside)
      : model_(std::move(model)), beside_(std::move(beside)), adds_bos_(says_add_bos(beside_)) {
    const auto status = processor_.LoadFromSerializedProto(model_);
    require(status.ok() && processor_.GetPieceSize() > 0, "tokenizer",
            "{} is not a sentencepiece model; give the tokenizer.model of a Llama-style tokenizer, or train "
            "one with osprey prepare --train-tokenizer bpe",
            name);
    require(processor_.eos_id() >= 0 && processor_.eos_id() < processor_.GetPieceSize(), "tokenizer",
            "{} has no end-of-sentence piece, which ends every document in the shards; train it with one",
            name);
    newline_ = find_newline();
    prefixes_space_ = find_space_prefix();
    for (int id = 0; id < processor_.GetPieceSize(); ++id)
      if (processor_.IsControl(id)) controls_.emplace_back(processor_.IdToPiece(id), id);
  }

  void encode(std::string_view text, std::vector<int32_t>& tokens) const override {
    Place place = Place::start;
    while (newline_ && text.size() > 2 * kCutBytes) {
      const size_t cut = text.find('\n', kCutBytes);
      if (cut == std::string_view::npos) break;
      encode_part(text.substr(0, cut), place, tokens);
      text.remove_prefix(cut);  // the rest begins with the newline
      place = Place::at_newline;
    }
    encode_part(text, place, tokens);
  }

  void encode_continuation(std::string_view text, std::vector<int32_t>& tokens) const override {
    if (text.empty() || !prefixes_space_) return encode(text, tokens);
    require(newline_.has_value(), "tokenizer",
            "this sentencepiece model puts a space before every text and does not keep lines apart, so text "
            "cannot go on after other tokens; train a tokenizer with osprey prepare");
    std::vector<int32_t> after_newline;
    encode("\n" + std::string(text), after_newline);
    const auto newline = std::find(after_newline.begin(), after_newline.end(), *newline_);
    require(newline != after_newline.end(), "tokenizer",
            "this sentencepiece model loses the newline of a text");
    tokens.insert(tokens.end(), newline + 1, after_newline.end());
  }

  std::string decode(std::span<const int32_t> tokens) const override {
    for (const int32_t token : tokens)
      require(token >= 0 && token < vocab_size(), "tokenizer", "token {} is outside the vocabulary of {}",
              token, vocab_size());
    std::string text;
    const auto status = processor_.Decode(std::vector<int>(tokens.begin(), tokens.end()), &text);
    require(status.ok(), "tokenizer", "decoding failed: {}", status.ToString());
    return text;
  }

  std::string kind() const override { return "sentencepiece"; }
  int64_t vocab_size() const override { return processor_.GetPieceSize(); }
  int32_t eos_id() const override { return processor_.eos_id(); }
  std::optional<int32_t> bos_id() const override {
    return processor_.bos_id() >= 0 ? std::optional<int32_t>(processor_.bos_id()) : std::nullopt;
  }
  std::string fingerprint() const override {
    return fmt::format("sentencepiece-{}-{:016x}", vocab_size(), stream_of(model_));
  }

  bool adds_bos() const override { return adds_bos_ && bos_id(); }
  std::optional<int32_t> special_id(std::string_view content) const override {
    const int id = processor_.PieceToId(content);
    return processor_.IsControl(id) ? std::optional<int32_t>(id) : std::nullopt;
  }
  std::optional<std::string> special_text(int32_t token) const override {
    const bool control = token >= 0 && token < vocab_size() && processor_.IsControl(token);
    return control ? std::optional<std::string>(processor_.IdToPiece(token)) : std::nullopt;
  }
  /// What stands between special tokens is encoded as a text of its own, with the space that begins one.
  void encode_with_specials(std::string_view text, std::vector<int32_t>& tokens) const override {
    while (!text.empty()) {
      size_t at = text.size();
      const std::pair<std::string, int32_t>* found = nullptr;
      for (const auto& control : controls_)
        if (const size_t place = text.find(control.first); place < at) {
          at = place;
          found = &control;
        }
      if (at > 0) encode(text.substr(0, at), tokens);
      if (!found) return;
      tokens.push_back(found->second);
      text.remove_prefix(at + found->first.size());
    }
  }

  void save(const std::string& directory) const override {
    write_file(directory + "/tokenizer.model", model_);
    if (beside_.contains("tokenizer_config.json")) {
      for (const auto& [name, content] : beside_)
        if (name != "tokenizer.model") write_file(directory + "/" + name, content);
    } else {
      write_hub_files(directory);
    }
    save_tokenizer_label(*this, directory);
  }

 private:
  enum class Place { start, at_newline };

  void write_hub_files(const std::string& directory) const {
    const auto piece = [&](int id) { return id >= 0 ? processor_.IdToPiece(id) : std::string(); };
    nlohmann::ordered_json config = {
        {"tokenizer_class", "LlamaTokenizer"},
        {"add_bos_token", false},
        {"add_eos_token", false},
        {"legacy", false},
        {"clean_up_tokenization_spaces", false},
        {"model_max_length", int64_t{1} << 30},
        {"unk_token", piece(processor_.unk_id())},
        {"eos_token", piece(eos_id())},
    };
    nlohmann::ordered_json special = {{"unk_token", piece(processor_.unk_id())},
                                      {"eos_token", piece(eos_id())}};
    if (bos_id()) config["bos_token"] = special["bos_token"] = piece(*bos_id());
    write_file(directory + "/tokenizer_config.json", config.dump(2) + "\n");
    write_file(directory + "/special_tokens_map.json", special.dump(2) + "\n");
  }

  /// Encodes a part as if the library saw the whole document: the space that it puts before every
  /// text it is given is dropped before a newline that continues one.
  void encode_part(std::string_view text, Place place, std::vector<int32_t>& tokens) const {
    std::vector<int> ids;
    const auto status = processor_.Encode(text, &ids);
    require(status.ok(), "tokenizer", "encoding failed: {}", status.ToString());
    tokens.insert(tokens.end(), ids.begin() + (place == Place::at_newline ? space_before(ids, *newline_) : 0),
                  ids.end());
  }

  /// 1 if a token precedes the newline that the text began with, else 0.
  static int space_before(const std::vector<int>& ids, int newline) {
    return ids.size() > 1 && ids[0] != newline && ids[1] == newline ? 1 : 0;
  }

  /// The token of a newline if texts may be cut before it.
  std::optional<int32_t> find_newline() const {
    std::vector<int> ids;
    if (!processor_.Encode("\n", &ids).ok() || ids.empty()) return {};
    const int newline = ids.back();
    for (int id = 0; id < processor_.GetPieceSize(); ++id)
      if (id != newline && processor_.IdToPiece(id).find('\n') != std::string::npos) return {};
    // Normalisers may turn newlines into spaces or trim at ends; then parts would differ from the
    // whole.
    const std::string_view head = "one  \t two  ", tail = "\n\n  three \nfour";
    std::vector<int> whole, parts, rest;
    if (!processor_.Encode(std::string(head) + std::string(tail), &whole).ok() ||
        !processor_.Encode(head, &parts).ok() || !processor_.Encode(tail, &rest).ok())
      return {};
    parts.insert(parts.end(), rest.begin() + space_before(rest, newline), rest.end());
    return parts == whole ? std::optional<int32_t>(newline) : std::nullopt;
  }

  /// Does the model put a space before a text?
  bool find_space_prefix() const {
    std::vector<std::string> pieces;
    return processor_.Encode("a", &pieces).ok() && !pieces.empty() && pieces[0].starts_with("\xe2\x96\x81");
  }

  std::string model_;
  TokenizerFiles beside_;
  bool adds_bos_;
  std::vector<std::pair<std::string, int32_t>> controls_;
  sentencepiece::SentencePieceProcessor processor_;
  std::optional<int32_t> newline_;
  bool prefixes_space_ = false;
};

class Lines final : public sentencepiece::SentenceIterator {
 public:
  explicit Lines(const std::vector<std::string>& lines) : lines_(lines) {}
  bool done() const override { return next_ >= lines_.size(); }
  void Next() override { ++next_; }
  const std::string& value() const override { return lines_[next_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  const std::vector<std::string>& lines_;
  size_t next_ = 0;
};

/// The number after `mark` in what the library says.
std::optional<int64_t> number_after(const std::string& text, std::string_view mark) {
  const size_t at = text.find(mark);
  if (at == std::string::npos) return {};
  const int64_t value = std::strtoll(text.c_str() + at + mark.size(), nullptr, 10);
  return value > 0 ? std::optional<int64_t>(value) : std::nullopt;
}

[[noreturn]] void explain(const SentencepieceTraining& options, const std::string& said) {
  if (const auto most = number_after(said, "value <= "))
    fail("tokenizer",
         "a vocabulary of {} is too large for this text; give more text or --vocab-size {} at most",
         options.vocab_size, *most);
  if (const auto least = number_after(said, " vs "))
    fail("tokenizer",
         "a vocabulary of {} cannot hold the bytes and characters of this text; give --vocab-size {} or more",
         options.vocab_size, *least);
  fail("tokenizer", "training failed: {}", said);
}

}  // namespace

std::unique_ptr<Tokenizer> make_sentencepiece_tokenizer(std::string model, const std::string& name,
                                                        TokenizerFiles beside) {
  return std::make_unique<SentencepieceTokenizer>(std::move(model), name, std::move(beside));
}

std::unique_ptr<Tokenizer> train_sentencepiece(const SentencepieceTraining& options,
                                               std::vector<std::string> lines) {
  require(!lines.empty(), "tokenizer",
          "there is no text to train a tokenizer on; give an input with text in it");
  require(options.vocab_size > 259, "tokenizer",
          "a vocabulary of {} is too small, 256 pieces are bytes and 3 are special; give a larger "
          "--vocab-size, or --tokenizer bytes",
          options.vocab_size);
  const std::unordered_map<std::string, std::string> settings = {
      {"model_type", options.kind == SentencepieceTraining::Kind::bpe ? "bpe" : "unigram"},
      {"vocab_size", std::to_string(options.vocab_size)},
      {"byte_fallback", "true"},
      {"normalization_rule_name", "identity"},
      {"remove_extra_whitespaces", "false"},
      {"allow_whitespace_only_pieces", "true"},
      {"split_digits", "true"},
      {"character_coverage", "0.9999"},
      {"shuffle_input_sentence", "false"},  // the library's shuffle depends on its standard library
      {"num_threads", "2"},                 // unigram sums per thread: a constant keeps the sums
      {"max_sentence_length", std::to_string(kMaxTrainingLineBytes + 1)},
      {"minloglevel", "2"},
  };
  Lines iterator(lines);
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(settings, &iterator, &model);
  if (!status.ok()) explain(options, status.ToString());
  return make_sentencepiece_tokenizer(std::move(model), "the tokenizer just trained");
}

}  // namespace osprey
