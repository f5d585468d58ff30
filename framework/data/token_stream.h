#pragma once
// Shards as one long run of tokens: documents one after the other, in file order or shuffled.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "framework/data/idx.h"
#include "framework/data/permutation.h"
#include "framework/data/tokenizer.h"

namespace osprey {

/// The documents of several shards under one numbering. Documents carry their own end-of-text
/// token. Errors: shards of another tokenizer, a side-car that does not fit its shard, and tokens
/// that the model's vocabulary does not hold are named before anything is read; see also read().
class TokenStream {
 public:
  /// Every pattern is expanded by find_shards; a shard named twice is read twice.
  TokenStream(const std::vector<std::string>& patterns, const Tokenizer& tokenizer, int64_t vocab_size);

  int64_t documents() const { return first_document_.back(); }
  int64_t tokens() const { return tokens_; }

  struct Place {
    const IdxReader* shard = nullptr;
    int64_t document = 0;  // within the shard
  };
  Place place(int64_t document) const;
  int64_t length(int64_t document) const;
  /// Copies out.size() tokens of `document`, from `offset` on.
  /// Errors: a token outside the vocabulary names the file, whatever its side-car says.
  void read(int64_t document, int64_t offset, std::span<int32_t> out) const;

 private:
  std::vector<IdxReader> shards_;
  std::vector<int64_t> first_document_;  // of each shard, then the total
  int64_t tokens_ = 0, vocab_size_ = 0;
};

/// An order of a stream's documents, laid end to end. Holds one number for every kStride documents,
/// so the index of a billion documents is a hundred megabytes.
class DocumentOrder {
 public:
  /// Storage for a stream is taken here; build() allocates nothing.
  explicit DocumentOrder(const TokenStream& stream);
  /// nullopt is file order.
  void build(const std::optional<Permutation>& order);

  /// Calls visit(document, offset in it, tokens) for the pieces that make up [begin, begin +
  /// tokens), which must lie inside the stream.
  template <class Visit>
  void pieces(int64_t begin, int64_t tokens, const Visit& visit) const {
    auto [index, at] = seek(begin);
    while (tokens > 0) {
      const int64_t document = document_at(index++), length = stream_->length(document);
      if (begin < at + length) {
        const int64_t offset = begin - at, take = length - offset < tokens ? length - offset : tokens;
        visit(document, offset, take);
        begin += take;
        tokens -= take;
      }
      at += length;
    }
  }

 private:
  static constexpr int64_t kStride = 64;
  struct Seat {
    int64_t index, at;  // document number in this order, and the token it begins with
  };
  Seat seek(int64_t token) const;
  int64_t document_at(int64_t index) const {
    return order_ ? static_cast<int64_t>((*order_)(static_cast<uint64_t>(index))) : index;
  }

  const TokenStream* stream_;
  std::optional<Permutation> order_;
  std::vector<int64_t> starts_;  // first token of documents 0, kStride, 2 kStride, ... of this order
};

}  // namespace osprey
