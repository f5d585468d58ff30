// tokenizer.json behind the Tokenizer interface: byte-level BPE, and what Llama 2 and Mistral have.

#include <algorithm>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "framework/data/bpe/added_tokens.h"
#include "framework/data/bpe/decoder.h"
#include "framework/data/bpe/model.h"
#include "framework/data/bpe/normalizer.h"
#include "framework/data/bpe/splitter.h"
#include "framework/data/tokenizer_files.h"
#include "framework/files/file.h"
#include "framework/files/json.h"
#include "framework/files/utf8.h"
#include "kernels/core/random.h"

namespace osprey {
namespace {

using bpe::AddedToken;
using bpe::AddedTokenFinder;
using bpe::JsonNode;
using Specials = AddedTokenFinder::Specials;

/// What one thread needs while it encodes.
struct Workplace {
  bpe::MatchSpace match;
  bpe::WordSpace words;
  std::string normalized;
};

/// Workplaces that are lent to callers, and kept with the words that they remember.
class Workplaces {
 public:
  class Lease {
   public:
    explicit Lease(Workplaces& owner) : owner_(owner), place_(owner.take()) {}
    ~Lease() { owner_.give(std::move(place_)); }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    Workplace* operator->() const { return place_.get(); }

   private:
    Workplaces& owner_;
    std::unique_ptr<Workplace> place_;
  };

 private:
  std::unique_ptr<Workplace> take() {
    const std::lock_guard lock(mutex_);
    if (free_.empty()) return std::make_unique<Workplace>();
    auto place = std::move(free_.back());
    free_.pop_back();
    return place;
  }
  void give(std::unique_ptr<Workplace> place) {
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(place));
  }
  std::mutex mutex_;
  std::vector<std::unique_ptr<Workplace>> free_;
};

class BpeTokenizer final : public Tokenizer {
 public:
  BpeTokenizer(const nlohmann::json& json, std::string source, const BpeFiles& files)
      : source_(std::move(source)),
        files_(files.beside),
        added_(bpe::read_added_tokens(JsonNode(json, files.path)["added_tokens"])),
        normalizer_(JsonNode(json, files.path)["normalizer"]),
        splitter_(JsonNode(json, files.path)["pre_tokenizer"]),
        model_(JsonNode(json, files.path)["model"], splitter_.byte_level(), added_),
        raw_finder_(added_, false, normalizer_),
        finder_(added_, true, normalizer_),
        decoder_(JsonNode(json, files.path)["decoder"]),
        cut_(model_.cuts_before(kMark)) {
    vocab_size_ = model_.size();
    for (const AddedToken& token : added_) {
      vocab_size_ = std::max<int64_t>(vocab_size_, token.id + 1);
      const bool first =
          by_text_.emplace(token.content, token.id).second && by_id_.emplace(token.id, &token).second;
      require(first, files.path, "added_tokens gives the number {} twice", token.id);
    }
    const std::string pieces = JsonNode(json, files.path)["pre_tokenizer"].value().dump() +
                               JsonNode(json, files.path)["normalizer"].value().dump();
    first_ = bpe::first_token(JsonNode(json, files.path)["post_processor"]);
    ids_ = files.ids ? *files.ids
                     : read_special_ids(files.directory,
                                        {.find = [&](const std::string& text) { return find(text); },
                                         .size = vocab_size_,
                                         .first = find_first(files.path)});
    std::vector<int32_t> named = ids_.stops;  // osprey_tokenizer.json may say anything
    named.insert(named.end(), {ids_.eos, ids_.bos.value_or(0)});
    require(*std::max_element(named.begin(), named.end()) < vocab_size_, files.path,
            "has {} tokens, fewer than osprey_tokenizer.json names beside it; restore that file",
            vocab_size_);
    fingerprint_ = fmt::format("bpe-{}-{:016x}", vocab_size_, stream_of(description() + pieces));
  }

  void encode(std::string_view text, std::vector<int32_t>& tokens) const override {
    encode_as(Specials::are_text, text, tokens);
  }
  void encode_with_specials(std::string_view text, std::vector<int32_t>& tokens) const override {
    encode_as(Specials::are_tokens, text, tokens);
  }

  std::string decode(std::span<const int32_t> tokens) const override {
    std::string text;
    bool first = true;
    for (const int32_t token : tokens) {
      require(token >= 0 && token < vocab_size_, "tokenizer", "token {} is outside the vocabulary of {}",
              token, vocab_size_);
      const auto added = by_id_.find(token);
      if (added != by_id_.end()) {
        if (added->second->special) continue;
        text += added->second->content;
      } else if (token < model_.size()) {
        decoder_.append(model_.text(token), first, text);
      }
      first = false;
    }
    return text;
  }

  std::string kind() const override { return "bpe"; }
  int64_t vocab_size() const override { return vocab_size_; }
  int32_t eos_id() const override { return ids_.eos; }
  std::optional<int32_t> bos_id() const override { return ids_.bos; }
  bool adds_bos() const override { return ids_.adds_bos; }
  std::vector<int32_t> stop_ids() const override { return ids_.stops; }
  std::string fingerprint() const override { return fingerprint_; }

  std::optional<int32_t> special_id(std::string_view content) const override {
    const auto found = by_text_.find(std::string(content));
    return found == by_text_.end() ? std::nullopt : std::optional<int32_t>(found->second);
  }
  std::optional<std::string> special_text(int32_t token) const override {
    const auto found = by_id_.find(token);
    return found == by_id_.end() ? std::nullopt : std::optional<std::string>(found->second->content);
  }

  void save(const std::string& directory) const override {
    write_file(directory + "/tokenizer.json", source_);
    for (const auto& [name, content] : files_) write_file(directory + "/" + name, content);
    save_tokenizer_label(*this, directory);
  }

 private:
  static constexpr std::string_view kMark = "\u2581";  // sentencepiece's space

  std::optional<int32_t> find(const std::string& text) const {
    const auto added = special_id(text);
    return added ? added : model_.find(text);
  }
  std::optional<int32_t> find_first(const std::string& path) const {
    if (!first_) return {};
    const auto token = find(*first_);
    require(token.has_value(), path, "post_processor puts '{}' before a text, which is no token",
            shown(*first_));
    return token;
  }
  std::string description() const {
    std::string out = model_.description();
    for (const AddedToken& t : added_)
      out += fmt::format("{} {} {}{}{}{}{}\n", t.id, t.content, t.special, t.single_word, t.lstrip, t.rstrip,
                         t.normalized);
    return out + fmt::format("eos {}\n", ids_.eos);
  }

  void encode_as(Specials specials, std::string_view text, std::vector<int32_t>& tokens) const {
    const auto malformed = find_malformed_utf8(text);
    require(!malformed, "tokenizer", "the text is not UTF-8 at byte {}; mend or drop it",
            malformed.value_or(0));
    const Workplaces::Lease place(places_);
    const auto piece = [&](std::string_view p) { encode_piece(p, place->words, tokens); };
    raw_finder_(text, specials, [&](std::string_view part, const AddedToken* token) {
      if (token) return tokens.push_back(token->id);
      bool at_start = part.data() == text.data();
      const std::string_view normalized = normalizer_(part, place->normalized);
      finder_(normalized, specials, [&](std::string_view rest, const AddedToken* inner) {
        if (inner)
          tokens.push_back(inner->id);
        else
          splitter_(rest, at_start, place->match, piece);
        at_start = false;
      });
    });
  }

  /// Cuts before runs of sentencepiece's space where that changes nothing, so that words are remembered.
  void encode_piece(std::string_view piece, bpe::WordSpace& words, std::vector<int32_t>& tokens) const {
    while (cut_) {
      const size_t run = piece.find_first_not_of(kMark);
      const size_t end = run == std::string_view::npos ? run : piece.find(kMark, run);
      if (end == std::string_view::npos) break;
      model_.encode(piece.substr(0, end), words, tokens);
      piece.remove_prefix(end);
    }
    model_.encode(piece, words, tokens);
  }

  std::string source_;  // tokenizer.json as it stood there
  TokenizerFiles files_;
  std::vector<AddedToken> added_;
  bpe::Normalizer normalizer_;
  bpe::Splitter splitter_;
  bpe::Model model_;
  AddedTokenFinder raw_finder_, finder_;
  bpe::Decoder decoder_;
  bool cut_;
  std::unordered_map<std::string, int32_t> by_text_;
  std::unordered_map<int32_t, const AddedToken*> by_id_;
  std::optional<std::string> first_;
  int64_t vocab_size_ = 0;
  SpecialIds ids_;
  std::string fingerprint_;
  mutable Workplaces places_;
};

}  // namespace

std::unique_ptr<Tokenizer> make_bpe_tokenizer(std::string source, const BpeFiles& files) {
  const nlohmann::json json = parse_json(files.path, source, /*most_depth=*/16);
  return std::make_unique<BpeTokenizer>(json, std::move(source), files);
}

}  // namespace osprey
