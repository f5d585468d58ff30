#include "framework/data/idx.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <filesystem>

#include "kernels/core/check.h"

namespace osprey {
namespace {

static_assert(std::endian::native == std::endian::little, "token files are little-endian");

constexpr char kMagic[9] = {'M', 'M', 'I', 'D', 'I', 'D', 'X', '\0', '\0'};
constexpr int64_t kHeaderBytes = 34;
constexpr uint8_t kInt32 = 4, kUint16 = 8;
constexpr const char* kMissing = "a shard is a .bin and a .idx; write them with osprey prepare";
constexpr const char* kDamaged = "the file is damaged or incomplete; write it again with osprey prepare";

constexpr size_t kBufferBytes = size_t{1} << 20;

template <class T>
void append(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
}

bool narrow_tokens(int64_t vocab_size) { return vocab_size < 65500; }

}  // namespace

IdxReader::IdxReader(const std::string& prefix)
    : prefix_(prefix), idx_(prefix + ".idx", kMissing), bin_(prefix + ".bin", kMissing) {
  check_header();
  check_sequences();
  check_documents();
}

// Arrays begin at any byte, so values are copied out, never cast.
template <class T>
T IdxReader::at(int64_t offset_bytes) const {
  T value;
  std::memcpy(&value, idx_.data() + offset_bytes, sizeof value);
  return value;
}

void IdxReader::check_header() {
  const std::string& path = idx_.path();
  const int64_t size = idx_.size_bytes();
  require(size >= kHeaderBytes, "idx", "{} has {} bytes, fewer than the {} of a header; {}", path, size,
          kHeaderBytes, kDamaged);
  require(std::memcmp(idx_.data(), kMagic, sizeof kMagic) == 0, "idx",
          "{} is not a token index (it does not begin with MMIDIDX); name shards made by osprey prepare",
          path);
  const auto version = at<uint64_t>(9);
  require(version == 1, "idx", "{} has version {}, expected 1; write it again with osprey prepare", path,
          version);
  const auto dtype = at<uint8_t>(17);
  require(dtype == kInt32 || dtype == kUint16, "idx",
          "{} holds tokens of type code {}, expected 8 (uint16) or 4 (int32); write it again with "
          "osprey prepare",
          path, dtype);
  token_bytes_ = dtype == kUint16 ? 2 : 4;

  const auto sequences = at<uint64_t>(18), boundaries = at<uint64_t>(26);
  const auto room = static_cast<uint64_t>(size - kHeaderBytes);
  // Compared by division first: counts come from outside and may overflow any product.
  require(sequences <= room / 12 && boundaries <= room / 8 && 12 * sequences + 8 * boundaries == room, "idx",
          "{} has {} bytes, which does not fit its counts of {} sequences and {} boundaries; {}", path, size,
          sequences, boundaries, kDamaged);
  require(boundaries >= 1, "idx", "{} has no document boundaries, expected at least one; {}", path, kDamaged);
  sequences_ = static_cast<int64_t>(sequences);
  documents_ = static_cast<int64_t>(boundaries) - 1;
  pointers_at_ = kHeaderBytes + 4 * sequences_;
  boundaries_at_ = pointers_at_ + 8 * sequences_;
}

void IdxReader::check_sequences() {
  int64_t expected_bytes = 0;
  const int64_t bin_bytes = bin_.size_bytes();
  for (int64_t i = 0; i < sequences_; ++i) {
    const auto length = at<int32_t>(kHeaderBytes + 4 * i);
    const auto pointer = at<int64_t>(pointers_at_ + 8 * i);
    require(length >= 0, "idx", "{} gives sequence {} a length of {}; {}", idx_.path(), i, length, kDamaged);
    require(pointer == expected_bytes, "idx", "{} places sequence {} at byte {}, expected {}; {}",
            idx_.path(), i, pointer, expected_bytes, kDamaged);
    // Lengths are below 2^31 and S below 2^60, and each sum is compared with the file before the
    // next.
    expected_bytes += length * token_bytes_;
    require(expected_bytes <= bin_bytes, "idx", "{} has {} bytes, but {} ends sequence {} at byte {}; {}",
            bin_.path(), bin_bytes, idx_.path(), i, expected_bytes, kDamaged);
  }
  require(expected_bytes == bin_bytes, "idx", "{} has {} bytes, but {} describes {}; {}", bin_.path(),
          bin_bytes, idx_.path(), expected_bytes, kDamaged);
  tokens_ = bin_bytes / token_bytes_;
}

void IdxReader::check_documents() const {
  int64_t last = 0;
  for (int64_t i = 0; i <= documents_; ++i) {
    const auto boundary = at<int64_t>(boundaries_at_ + 8 * i);
    require(i > 0 || boundary == 0, "idx", "{} begins its first document at sequence {}, expected 0; {}",
            idx_.path(), boundary, kDamaged);
    require(boundary >= last && boundary <= sequences_, "idx",
            "{} puts boundary {} at sequence {}, expected {} to {}; {}", idx_.path(), i, boundary, last,
            sequences_, kDamaged);
    last = boundary;
  }
  require(last == sequences_, "idx", "{} ends its last document at sequence {} of {}; {}", idx_.path(), last,
          sequences_, kDamaged);
}

int64_t IdxReader::begin(int64_t document) const {
  const auto sequence = at<int64_t>(boundaries_at_ + 8 * document);
  return sequence == sequences_ ? tokens_ : at<int64_t>(pointers_at_ + 8 * sequence) / token_bytes_;
}

uint32_t IdxReader::read(int64_t begin, std::span<int32_t> out) const {
  const unsigned char* source = bin_.data() + begin * token_bytes_;
  uint32_t most = 0;
  if (token_bytes_ == 4) {
    if (!out.empty()) std::memcpy(out.data(), source, out.size_bytes());
    for (const int32_t token : out) most = std::max(most, static_cast<uint32_t>(token));
    return most;
  }
  const auto* narrow =
      reinterpret_cast<const uint16_t*>(source);  // the map is page-aligned, so pairs are even
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = narrow[i];
    most = std::max<uint32_t>(most, narrow[i]);
  }
  return most;
}

IdxWriter::IdxWriter(const std::string& prefix, int64_t vocab_size)
    : prefix_(prefix), vocab_size_(vocab_size), bin_(prefix + ".bin.partial") {}

IdxWriter::~IdxWriter() {
  std::error_code ignored;  // after finish() these names are gone
  std::filesystem::remove(prefix_ + ".bin.partial", ignored);
  std::filesystem::remove(prefix_ + ".idx.partial", ignored);
}

void IdxWriter::add(std::span<const int32_t> document) {
  require(document.size() <= 0x7fffffff, "idx", "a document of {} tokens does not fit {}.idx; split it",
          document.size(), prefix_);
  int64_t most = 0;
  for (const int32_t token : document) {
    require(token >= 0 && token < vocab_size_, "idx", "token {} does not fit the vocabulary of {} ({}.bin)",
            token, vocab_size_, prefix_);
    most = std::max<int64_t>(most, token);
  }
  max_token_ = std::max(max_token_, most);
  if (narrow_tokens(vocab_size_))
    for (const int32_t token : document) append(buffer_, static_cast<uint16_t>(token));
  else
    buffer_.append(reinterpret_cast<const char*>(document.data()), document.size_bytes());
  if (buffer_.size() >= kBufferBytes) flush();
  lengths_.push_back(static_cast<int32_t>(document.size()));
  tokens_ += static_cast<int64_t>(document.size());
}

void IdxWriter::flush() {
  bin_.write(buffer_);
  buffer_.clear();
}

void IdxWriter::finish() {
  const bool narrow = narrow_tokens(vocab_size_);
  std::string idx(kMagic, sizeof kMagic);
  append(idx, uint64_t{1});
  append(idx, narrow ? kUint16 : kInt32);
  append(idx, static_cast<uint64_t>(lengths_.size()));
  append(idx, static_cast<uint64_t>(lengths_.size() + 1));
  for (const int32_t length : lengths_) append(idx, length);
  int64_t pointer = 0;
  for (const int32_t length : lengths_) {
    append(idx, pointer);
    pointer += int64_t{length} * (narrow ? 2 : 4);
  }
  for (size_t i = 0; i <= lengths_.size(); ++i) append(idx, static_cast<int64_t>(i));

  flush();
  bin_.finish();
  write_file(prefix_ + ".idx.partial", idx);
  std::filesystem::rename(prefix_ + ".bin.partial", prefix_ + ".bin");
  std::filesystem::rename(prefix_ + ".idx.partial", prefix_ + ".idx");
}

}  // namespace osprey
