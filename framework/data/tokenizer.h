#pragma once
// Text to tokens and back. A tokenizer directory holds `osprey_tokenizer.json` (kind, fingerprint,
// sizes) and, for bpe, `tokenizer.json`, for sentencepiece, `tokenizer.model`, with the files that a
// Hugging Face directory has beside them (tokenizer_config.json, special_tokens_map.json, ...). A
// directory from Hugging Face, which lacks the first, is a tokenizer directory too, and so is a checkpoint.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace osprey {

/// Const members may be called from several threads at once.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  /// Appends the tokens of `text`, which must be valid UTF-8 unless kind is "bytes". Neither adds special
  /// tokens nor takes text for one: a user's "<|im_end|>" stays text.
  virtual void encode(std::string_view text, std::vector<int32_t>& tokens) const = 0;
  /// As encode(), for text that goes on after other tokens: without the space that sentencepiece models put
  /// before the beginning of a text.
  virtual void encode_continuation(std::string_view text, std::vector<int32_t>& tokens) const {
    encode(text, tokens);
  }
  /// Special tokens give no text. Errors: a token outside the vocabulary.
  virtual std::string decode(std::span<const int32_t> tokens) const = 0;

  virtual std::string kind() const = 0;  // "bytes", "sentencepiece", "bpe"
  virtual int64_t vocab_size() const = 0;
  /// Ends every document in the shards.
  virtual int32_t eos_id() const = 0;
  virtual std::optional<int32_t> bos_id() const = 0;
  /// Do texts for this model begin with bos_id()? As the tokenizer's own files say; encode() never adds it.
  virtual bool adds_bos() const { return false; }
  /// Every token that ends what a model writes: eos_id(), and the ends of a turn of a chat model.
  virtual std::vector<int32_t> stop_ids() const { return {eos_id()}; }

  /// The token that is written `content` as a whole, such as <|im_end|>; ordinary pieces are none.
  virtual std::optional<int32_t> special_id(std::string_view) const { return {}; }
  /// How a token that special_id() knows is written.
  virtual std::optional<std::string> special_text(int32_t) const { return {}; }
  /// As encode(), but special tokens that are written in `text` become themselves: for rendered chat
  /// templates, never for text that users wrote.
  virtual void encode_with_specials(std::string_view text, std::vector<int32_t>& tokens) const {
    encode(text, tokens);
  }

  /// Equal for two tokenizers if and only if they are the same; shards and checkpoints carry it.
  virtual std::string fingerprint() const = 0;
  /// Writes the files that load_tokenizer reads into a directory that is there. Errors: throws when one of
  /// them exists, or cannot be written.
  virtual void save(const std::string& directory) const = 0;

  std::vector<int32_t> encode(std::string_view text) const {
    std::vector<int32_t> tokens;
    encode(text, tokens);
    return tokens;
  }
};

/// `where` is the word `bytes`, a tokenizer directory, a tokenizer.json, or a sentencepiece .model file. Of a
/// directory from Hugging Face tokenizer.json is read, and tokenizer.model where there is no such file.
/// Errors: what is missing, damaged or not a tokenizer is named with the cure.
std::unique_ptr<Tokenizer> load_tokenizer(const std::string& where);

/// Is there something at `where` that load_tokenizer would read?
bool has_tokenizer(const std::string& where);

/// 256 bytes and an end of text: 257 tokens.
std::unique_ptr<Tokenizer> make_bytes_tokenizer();

struct SentencepieceTraining {
  enum class Kind { bpe, unigram };
  Kind kind = Kind::bpe;
  int64_t vocab_size = 8192;
};
/// Learns pieces from `lines` (valid UTF-8, none longer than kMaxTrainingLineBytes). Text is kept
/// as it is: no normalisation, runs of spaces survive, unknown characters become byte pieces.
/// Deterministic: the same lines give the same model on any number of cores.
/// Errors: a vocabulary that is too large or too small for the text says what would fit.
std::unique_ptr<Tokenizer> train_sentencepiece(const SentencepieceTraining& options,
                                               std::vector<std::string> lines);
inline constexpr int64_t kMaxTrainingLineBytes = 4000;

}  // namespace osprey
