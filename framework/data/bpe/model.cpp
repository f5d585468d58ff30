#include "framework/data/bpe/model.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "framework/data/bpe/byte_table.h"
#include "framework/files/utf8.h"

namespace osprey::bpe {
namespace {

constexpr size_t kShort = 24;         // symbols: up to here looking at all pairs beats a heap
constexpr size_t kEntries = 1 << 14;  // one megabyte for each thread

uint64_t hash_of(std::string_view text) {
  uint64_t hash = text.size() * 0x9e3779b97f4a7c15u;
  for (; text.size() >= 8; text.remove_prefix(8)) {
    uint64_t word;
    std::memcpy(&word, text.data(), 8);
    hash = (hash ^ word) * 0xbf58476d1ce4e5b9u;
    hash ^= hash >> 29;
  }
  uint64_t rest = 0;
  std::memcpy(&rest, text.data(), text.size());
  hash = (hash ^ rest) * 0xbf58476d1ce4e5b9u;
  return hash ^ hash >> 32;
}

std::string byte_name(int byte) { return fmt::format("<0x{:02X}>", byte); }

int32_t code_point(std::string_view character) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(character[i]); };
  switch (character.size()) {
    case 1:
      return byte(0);
    case 2:
      return (byte(0) & 31) << 6 | (byte(1) & 63);
    case 3:
      return (byte(0) & 15) << 12 | (byte(1) & 63) << 6 | (byte(2) & 63);
    default:
      return (byte(0) & 7) << 18 | (byte(1) & 63) << 12 | (byte(2) & 63) << 6 | (byte(3) & 63);
  }
}

}  // namespace

WordSpace::WordSpace() : entries_(kEntries) {}

Model::Model(const JsonNode& json, bool byte_level, const std::vector<AddedToken>& added)
    : byte_level_(byte_level), byte_tokens_(256, -1) {
  // Old files leave the type out.
  const std::string type = json["type"].text_or("BPE");
  if (type != "BPE") json["type"].refuse("is {}; Osprey reads BPE", shown(type));
  const JsonNode dropout = json["dropout"];
  dropout.check(dropout.is_null() || dropout.value() == 0,
                "is set; set it to null, texts are encoded in one way only");
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"})
    json[affix].check(json[affix].text_or("").empty(), "is set, which Osprey does not know");
  fuse_unknown_ = json["fuse_unk"].flag_or(false);
  byte_fallback_ = json["byte_fallback"].flag_or(false);
  ignore_merges_ = json["ignore_merges"].flag_or(false);
  read_vocabulary(json["vocab"]);
  if (!json["unk_token"].is_null()) {
    unknown_ = find(json["unk_token"].text());
    json["unk_token"].check(unknown_.has_value(), "is not in the vocabulary");
  }
  never_.resize(texts_.size());
  for (const AddedToken& token : added) {
    const auto held = find(token.content);
    if (held && *held != token.id)
      json.refuse("gives '{}' the number {}, but added_tokens the number {}", shown(token.content), *held,
                  token.id);
    if (token.id >= size()) continue;
    if (!held && !texts_[static_cast<size_t>(token.id)].empty())
      json.refuse("gives the number {} to '{}', but added_tokens to '{}'", token.id,
                  shown(texts_[static_cast<size_t>(token.id)]), shown(token.content));
    if (!token.special) continue;
    never_[static_cast<size_t>(token.id)] = true;
    if (byte_level_ && texts_[static_cast<size_t>(token.id)].size() == 1)
      json.refuse("spells a byte by '{}', which added_tokens makes a special token", shown(token.content));
  }
  for (const auto& [text, token] : vocabulary_) {
    if (never_[static_cast<size_t>(token)]) continue;
    if (!byte_level && utf8_length(text, 0) == text.size()) characters_[code_point(text)] = token;
    if (ignore_merges_ && (!byte_level_ || spelled_bytes(text)))
      whole_[texts_[static_cast<size_t>(token)]] = token;
  }
  read_merges(json["merges"]);
}

void Model::read_vocabulary(const JsonNode& json) {
  json.check(json.value().is_object() && !json.value().empty(), "is no vocabulary");
  int32_t most = 0;
  vocabulary_.reserve(json.value().size());
  for (const auto& [text, number] : json.value().items()) {
    if (text.empty() || !number.is_number_integer() || number < 0 || number >= (1 << 24))
      json.refuse("gives '{}' the number {}; expected text and a number below 2^24", shown(text),
                  shown(number.dump()));
    vocabulary_.emplace(text, number.get<int32_t>());
    most = std::max(most, number.get<int32_t>());
  }
  // Holes are few in real files; a number out of all proportion would only take memory.
  if (static_cast<size_t>(most) > vocabulary_.size() * 4 + 65536)
    json.refuse("has {} tokens, but numbers up to {}", vocabulary_.size(), most);
  texts_.resize(static_cast<size_t>(most) + 1);
  for (const auto& [text, token] : vocabulary_) {
    std::string& held = texts_[static_cast<size_t>(token)];
    if (!held.empty()) json.refuse("gives the number {} twice, the second time to '{}'", token, shown(text));
    held = byte_level_ ? spelled_bytes(text).value_or(text) : text;
    if (byte_level_ && held.size() == 1) byte_tokens_[static_cast<unsigned char>(held[0])] = token;
  }
  if (byte_fallback_ && !byte_level_)
    for (int byte = 0; byte < 256; ++byte)
      byte_tokens_[static_cast<size_t>(byte)] = find(byte_name(byte)).value_or(-1);
}

void Model::read_merges(const JsonNode& json) {
  json.check(json.value().is_array(), "is not an array");
  const size_t slots = std::bit_ceil(json.value().size() * 2 + 2);
  shift_ = 64 - std::countr_zero(slots);
  merges_.assign(slots, {});
  uint32_t rank = 0;
  json.each([&](const JsonNode& one) {
    std::string left, right;
    if (one.value().is_string()) {
      const std::string& both = one.text();
      const size_t space = both.find(' ');
      one.check(space != std::string::npos && both.find(' ', space + 1) == std::string::npos,
                "is not two tokens with a space between");
      left = both.substr(0, space);
      right = both.substr(space + 1);
    } else {
      one.check(one.value().is_array() && one.value().size() == 2 && one.value()[0].is_string() &&
                    one.value()[1].is_string(),
                "is not two tokens");
      left = one.value()[0].get<std::string>();
      right = one.value()[1].get<std::string>();
    }
    const auto number = [&](const std::string& text) {
      const auto token = find(text);
      if (!token) one.refuse("needs '{}', which is not in the vocabulary", shown(text));
      return *token;
    };
    const Merge merge{pair_of(number(left), number(right)), rank++, number(left + right)};
    if (!never_[static_cast<size_t>(merge.merged)]) insert(merge);
  });
}

std::optional<int32_t> Model::find(const std::string& text) const {
  const auto found = vocabulary_.find(text);
  return found == vocabulary_.end() ? std::nullopt : std::optional<int32_t>(found->second);
}

void Model::insert(const Merge& merge) {
  size_t at = (merge.pair * 0x9e3779b97f4a7c15u) >> shift_;
  while (merges_[at].merged >= 0 && merges_[at].pair != merge.pair) at = (at + 1) & (merges_.size() - 1);
  merges_[at] = merge;  // a pair that comes twice has its later rank, as in tokenizers
}

const Model::Merge* Model::find_merge(int32_t left, int32_t right) const {
  const uint64_t pair = pair_of(left, right);
  for (size_t at = (pair * 0x9e3779b97f4a7c15u) >> shift_; merges_[at].merged >= 0;
       at = (at + 1) & (merges_.size() - 1))
    if (merges_[at].pair == pair) return &merges_[at];
  return nullptr;
}

bool Model::cuts_before(std::string_view mark) const {
  if (byte_level_ || ignore_merges_ || !find(std::string(mark))) return false;
  return std::none_of(merges_.begin(), merges_.end(), [&](const Merge& merge) {
    if (merge.merged < 0) return false;
    std::string_view text = this->text(merge.merged);
    while (text.starts_with(mark)) text.remove_prefix(mark.size());
    return text.find(mark) != std::string_view::npos;
  });
}

void Model::encode(std::string_view piece, WordSpace& space, std::vector<int32_t>& tokens) const {
  if (ignore_merges_)
    if (const auto found = whole_.find(piece); found != whole_.end()) return tokens.push_back(found->second);
  if (piece.size() > WordSpace::Entry::most_bytes) {
    merge(piece, space);
    tokens.insert(tokens.end(), space.tokens_.begin(), space.tokens_.end());
    return;
  }
  WordSpace::Entry& entry = space.entries_[hash_of(piece) & (kEntries - 1)];
  if (entry.bytes != piece.size() || std::memcmp(entry.text, piece.data(), piece.size()) != 0) {
    merge(piece, space);
    if (space.tokens_.size() > WordSpace::Entry::most_tokens) {
      tokens.insert(tokens.end(), space.tokens_.begin(), space.tokens_.end());
      return;
    }
    entry.bytes = static_cast<uint8_t>(piece.size());
    entry.tokens = static_cast<uint8_t>(space.tokens_.size());
    std::memcpy(entry.text, piece.data(), piece.size());
    std::copy(space.tokens_.begin(), space.tokens_.end(), entry.token);
  }
  tokens.insert(tokens.end(), entry.token, entry.token + entry.tokens);
}

void Model::merge(std::string_view piece, WordSpace& space) const {
  spell(piece, space.symbols_);
  if (space.symbols_.size() <= kShort)
    merge_short(space.symbols_);
  else
    merge_long(space.symbols_, space.heap_);
  space.tokens_.clear();
  for (const Symbol& symbol : space.symbols_)
    if (symbol.token >= 0) space.tokens_.push_back(symbol.token);
}

void Model::spell(std::string_view piece, std::vector<Symbol>& symbols) const {
  symbols.clear();
  bool after_unknown = false;
  for (size_t at = 0; at < piece.size();) {
    const size_t bytes = byte_level_ ? 1 : std::max<size_t>(1, utf8_length(piece, at));
    const std::string_view character = piece.substr(at, bytes);
    at += bytes;
    int32_t token = -1;
    if (byte_level_) {
      token = byte_tokens_[static_cast<unsigned char>(character[0])];
    } else if (const auto found = characters_.find(code_point(character)); found != characters_.end()) {
      token = found->second;
    }
    if (token < 0) {
      spell_unknown(character, after_unknown, symbols);
    } else {
      symbols.push_back({.token = token});
      after_unknown = false;
    }
  }
  const auto count = static_cast<int32_t>(symbols.size());
  for (int32_t i = 0; i < count; ++i) {
    symbols[static_cast<size_t>(i)].previous = i - 1;
    symbols[static_cast<size_t>(i)].next = i + 1 < count ? i + 1 : -1;
  }
}

void Model::spell_unknown(std::string_view character, bool& after_unknown,
                          std::vector<Symbol>& symbols) const {
  const auto byte_token = [&](char c) { return byte_tokens_[static_cast<unsigned char>(c)]; };
  if (byte_fallback_ && !byte_level_ &&
      std::all_of(character.begin(), character.end(), [&](char c) { return byte_token(c) >= 0; })) {
    for (const char c : character) symbols.push_back({.token = byte_token(c)});
    after_unknown = false;
    return;
  }
  require(
      unknown_.has_value(), "tokenizer",
      "the vocabulary of tokenizer.json has no token for {} {:#x}, which stands in the text; remove it from the "
      "text, or take a tokenizer that knows it",
      byte_level_ ? "the byte" : "the character",
      byte_level_ ? static_cast<unsigned char>(character[0]) : code_point(character));
  if (!(fuse_unknown_ && after_unknown)) symbols.push_back({.token = *unknown_});
  after_unknown = true;
}

/// The pair of lowest rank, the leftmost of equals, again and again.
void Model::merge_short(std::vector<Symbol>& symbols) const {
  const size_t count = symbols.size();
  const Merge* pairs[kShort];  // of symbol i and the one behind it
  size_t size = count;
  int32_t tokens[kShort];
  for (size_t i = 0; i < count; ++i) tokens[i] = symbols[i].token;
  for (size_t i = 0; i + 1 < count; ++i) pairs[i] = find_merge(tokens[i], tokens[i + 1]);
  while (size > 1) {
    const Merge* best = nullptr;
    size_t at = 0;
    for (size_t i = 0; i + 1 < size; ++i)
      if (pairs[i] && (!best || pairs[i]->rank < best->rank)) {
        best = pairs[i];
        at = i;
      }
    if (!best) break;
    tokens[at] = best->merged;
    std::copy(tokens + at + 2, tokens + size, tokens + at + 1);
    if (at + 2 < size) std::copy(pairs + at + 2, pairs + size - 1, pairs + at + 1);
    --size;
    if (at > 0) pairs[at - 1] = find_merge(tokens[at - 1], tokens[at]);
    if (at + 1 < size) pairs[at] = find_merge(tokens[at], tokens[at + 1]);
  }
  symbols.resize(size);
  for (size_t i = 0; i < size; ++i) symbols[i].token = tokens[i];
}

void Model::merge_long(std::vector<Symbol>& symbols, std::vector<WordSpace::Pair>& heap) const {
  using Pair = WordSpace::Pair;
  const auto later = [](const Pair& a, const Pair& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.left > b.left;
  };
  const auto at = [&](int32_t i) -> Symbol& { return symbols[static_cast<size_t>(i)]; };
  const auto pair = [&](int32_t left) -> std::optional<Pair> {
    const int32_t right = left < 0 ? -1 : at(left).next;
    const Merge* merge = right < 0 ? nullptr : find_merge(at(left).token, at(right).token);
    if (!merge) return {};
    return Pair{merge->rank, left, at(left).token, at(right).token, merge->merged};
  };
  heap.clear();
  for (int32_t i = 0; i < static_cast<int32_t>(symbols.size()); ++i)
    if (const auto found = pair(i)) heap.push_back(*found);
  std::make_heap(heap.begin(), heap.end(), later);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const Pair best = heap.back();
    heap.pop_back();
    const int32_t right = at(best.left).next;
    // Either symbol may have gone into another merge meanwhile.
    if (at(best.left).token != best.left_token || right < 0 || at(right).token != best.right_token) continue;
    at(best.left).token = best.merged;
    at(best.left).next = at(right).next;
    if (at(right).next >= 0) at(at(right).next).previous = best.left;
    at(right) = {};
    for (const int32_t left : {at(best.left).previous, best.left})
      if (const auto found = pair(left)) {
        heap.push_back(*found);
        std::push_heap(heap.begin(), heap.end(), later);
      }
  }
}

std::string Model::description() const {
  std::string out =
      fmt::format("byte_level {} byte_fallback {} fuse_unknown {} ignore_merges {} unknown {}\n", byte_level_,
                  byte_fallback_, fuse_unknown_, ignore_merges_, unknown_.value_or(-1));
  for (size_t i = 0; i < texts_.size(); ++i) out += fmt::format("{} {}\n", texts_[i].size(), texts_[i]);
  std::vector<Merge> merges;
  for (const Merge& merge : merges_)
    if (merge.merged >= 0) merges.push_back(merge);
  std::sort(merges.begin(), merges.end(), [](const Merge& a, const Merge& b) { return a.rank < b.rank; });
  for (const Merge& merge : merges) out += fmt::format("{:x} {}\n", merge.pair, merge.merged);
  return out;
}

}  // namespace osprey::bpe
