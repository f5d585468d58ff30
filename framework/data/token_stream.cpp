#include "framework/data/token_stream.h"

#include <algorithm>

#include "framework/data/shards.h"
#include "kernels/core/check.h"

namespace osprey {
namespace {

void check_label(const IdxReader& shard, const Tokenizer& tokenizer, int64_t vocab_size) {
  const std::string& prefix = shard.prefix();
  const ShardLabel label = read_label(prefix);
  require(label.tokens == shard.tokens() && label.documents == shard.documents(), "data",
          "{}.json speaks of {} tokens in {} documents, but {}.idx holds {} in {}; the files are of "
          "different shards, write them again with osprey prepare",
          prefix, label.tokens, label.documents, prefix, shard.tokens(), shard.documents());
  require(label.fingerprint == tokenizer.fingerprint(), "data",
          "{}.bin was made with tokenizer {}, but data.tokenizer is {}; name the tokenizer directory that "
          "was written with the shards",
          prefix, label.fingerprint, tokenizer.fingerprint());
  require(label.max_token < vocab_size, "data",
          "model.vocab_size is {}, but {}.bin holds token {}; the tokenizer has {} tokens, so give "
          "at least that",
          vocab_size, prefix, label.max_token, tokenizer.vocab_size());
}

}  // namespace

TokenStream::TokenStream(const std::vector<std::string>& patterns, const Tokenizer& tokenizer,
                         int64_t vocab_size)
    : vocab_size_(vocab_size) {
  for (const std::string& pattern : patterns)
    for (const std::string& prefix : find_shards(pattern)) {
      shards_.emplace_back(prefix);
      check_label(shards_.back(), tokenizer, vocab_size);
    }
  first_document_.push_back(0);
  for (const IdxReader& shard : shards_) {
    first_document_.push_back(first_document_.back() + shard.documents());
    tokens_ += shard.documents() > 0 ? shard.tokens() : 0;
  }
}

TokenStream::Place TokenStream::place(int64_t document) const {
  const auto after = std::upper_bound(first_document_.begin(), first_document_.end(), document);
  const auto shard = static_cast<size_t>(after - first_document_.begin() - 1);
  return {&shards_[shard], document - first_document_[shard]};
}

int64_t TokenStream::length(int64_t document) const {
  const Place at = place(document);
  return at.shard->length(at.document);
}

void TokenStream::read(int64_t document, int64_t offset, std::span<int32_t> out) const {
  const Place at = place(document);
  const uint32_t most = at.shard->read(at.shard->begin(at.document) + offset, out);
  require(most < vocab_size_, "data",
          "{}.bin holds token {}, but model.vocab_size is {}; give the model the "
          "vocabulary of the tokenizer that made the shard",
          at.shard->prefix(), static_cast<int32_t>(most), vocab_size_);
}

DocumentOrder::DocumentOrder(const TokenStream& stream)
    : stream_(&stream), starts_(static_cast<size_t>((stream.documents() + kStride - 1) / kStride)) {}

void DocumentOrder::build(const std::optional<Permutation>& order) {
  order_ = order;
  int64_t at = 0;
  for (int64_t i = 0; i < stream_->documents(); ++i) {
    if (i % kStride == 0) starts_[static_cast<size_t>(i / kStride)] = at;
    at += stream_->length(document_at(i));
  }
}

DocumentOrder::Seat DocumentOrder::seek(int64_t token) const {
  const auto after = std::upper_bound(starts_.begin(), starts_.end(), token);
  const int64_t stride = after - starts_.begin() - 1;
  return {stride * kStride, starts_[static_cast<size_t>(stride)]};
}

}  // namespace osprey
