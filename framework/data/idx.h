#pragma once
// Megatron-compatible token files: `<prefix>.bin` holds tokens back to back, `<prefix>.idx` says
// where documents begin. Layout of .idx, little-endian, nothing aligned:
//   "MMIDIDX\0\0" | u64 version = 1 | u8 dtype | u64 sequences S | u64 boundaries D |
//   i32 lengths[S] (tokens) | i64 pointers[S] (bytes into .bin) | i64 boundaries[D]
// boundaries start with 0 and end with S, so D is the number of documents plus one.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "framework/files/file.h"
#include "framework/files/mapped_file.h"

namespace osprey {

/// One pair of token files, mapped. Everything in them is checked once, on opening; afterwards
/// token offsets count from the start of the .bin. Errors: a file that is missing, truncated,
/// foreign or inconsistent is named with the cure.
class IdxReader {
 public:
  explicit IdxReader(const std::string& prefix);

  const std::string& prefix() const { return prefix_; }
  int64_t documents() const { return documents_; }
  int64_t tokens() const { return tokens_; }
  int64_t token_bytes() const { return token_bytes_; }
  /// Offset of the first token of `document` in [0, documents()]; the last one is tokens().
  int64_t begin(int64_t document) const;
  int64_t length(int64_t document) const { return begin(document + 1) - begin(document); }
  /// Copies tokens [begin, begin + out.size()) and returns the largest as unsigned 32 bits, so that
  /// a negative token in an i32 file looks enormous. Reading past the end is the caller's error.
  uint32_t read(int64_t begin, std::span<int32_t> out) const;

 private:
  template <class T>
  T at(int64_t offset_bytes) const;
  void check_header();
  void check_sequences();
  void check_documents() const;

  std::string prefix_;
  MappedFile idx_, bin_;
  int64_t sequences_ = 0, documents_ = 0, tokens_ = 0, token_bytes_ = 0;
  int64_t pointers_at_ = 0, boundaries_at_ = 0;
};

/// Writes one pair of token files aside (`.bin.partial`, `.idx.partial`) and makes them visible in
/// finish(), .idx last. Tokens are uint16 for vocabularies below 65500, else int32. Errors: a full
/// disk, and tokens outside [0, vocab_size), throw; dropped unfinished, nothing remains.
class IdxWriter {
 public:
  IdxWriter(const std::string& prefix, int64_t vocab_size);
  IdxWriter(const IdxWriter&) = delete;
  IdxWriter& operator=(const IdxWriter&) = delete;
  ~IdxWriter();

  void add(std::span<const int32_t> document);
  /// Durable and visible afterwards.
  void finish();
  int64_t documents() const { return static_cast<int64_t>(lengths_.size()); }
  int64_t tokens() const { return tokens_; }
  int64_t max_token() const { return max_token_; }

 private:
  void flush();

  std::string prefix_;
  int64_t vocab_size_;
  OutputFile bin_;
  std::vector<int32_t> lengths_;
  std::string buffer_;  // encoded tokens on their way to the file
  int64_t tokens_ = 0, max_token_ = 0;
};

}  // namespace osprey
