#include "framework/data/bpe/added_tokens.h"

#include <utf8proc.h>

#include <algorithm>
#include <set>

namespace osprey::bpe {
namespace {

/// The character that begins at text[at], and its bytes.
std::pair<int32_t, size_t> character(std::string_view text, size_t at) {
  int32_t point = 0;
  const auto bytes = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + at,
                                      static_cast<utf8proc_ssize_t>(text.size() - at), &point);
  return {point, bytes > 0 ? static_cast<size_t>(bytes) : 1};
}

size_t last_character(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80) --at;
  return at;
}

/// Unicode's White_Space.
bool is_space(int32_t c) {
  return (c >= 9 && c <= 13) || c == 0x85 || utf8proc_category(c) == UTF8PROC_CATEGORY_ZS || c == 0x2028 ||
         c == 0x2029;
}

/// \w of the regex crate: Alphabetic (by category), marks, digits, connectors, joiners.
bool is_word(int32_t c) {
  switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return c == 0x200c || c == 0x200d;
  }
}

size_t spaces_before(std::string_view text, size_t end, size_t least) {
  while (end > least) {
    const size_t at = last_character(text.substr(0, end));
    if (at < least || !is_space(character(text, at).first)) break;
    end = at;
  }
  return end;
}

size_t spaces_behind(std::string_view text, size_t at) {
  while (at < text.size()) {
    const auto [point, bytes] = character(text, at);
    if (!is_space(point)) break;
    at += bytes;
  }
  return at;
}

}  // namespace

std::vector<AddedToken> read_added_tokens(const JsonNode& json) {
  std::vector<AddedToken> tokens;
  if (json.is_null()) return tokens;
  std::set<std::string> contents;
  json.each([&](const JsonNode& one) {
    AddedToken token{.id = one["id"].token(),
                     .content = one["content"].text(),
                     .special = one["special"].flag_or(false),
                     .single_word = one["single_word"].flag_or(false),
                     .lstrip = one["lstrip"].flag_or(false),
                     .rstrip = one["rstrip"].flag_or(false),
                     .normalized = one["normalized"].flag_or(true)};
    one["content"].check(!token.content.empty(), "is empty");
    if (!contents.insert(token.content).second)
      one["content"].refuse("is '{}' for the second time", shown(token.content));
    tokens.push_back(std::move(token));
  });
  return tokens;
}

AddedTokenFinder::AddedTokenFinder(const std::vector<AddedToken>& tokens, bool normalized,
                                   const Normalizer& normalizer) {
  std::fill(std::begin(roots_), std::end(roots_), -1);
  for (const AddedToken& token : tokens) {
    if (token.normalized != normalized) continue;
    std::string buffer;
    const std::string content(normalized ? normalizer(token.content, buffer) : token.content);
    if (content.empty()) continue;
    insert(content, static_cast<int32_t>(tokens_.size()));
    tokens_.push_back(token);
  }
}

void AddedTokenFinder::insert(std::string_view content, int32_t token) {
  int32_t node = -1;
  for (const char c : content) {
    const auto byte = static_cast<unsigned char>(c);
    const int32_t first = node < 0 ? roots_[byte] : nodes_[static_cast<size_t>(node)].child;
    int32_t next = first;
    while (next >= 0 && nodes_[static_cast<size_t>(next)].byte != byte)
      next = nodes_[static_cast<size_t>(next)].sibling;
    if (next < 0) {
      next = static_cast<int32_t>(nodes_.size());
      nodes_.push_back({.byte = byte, .sibling = first});
      (node < 0 ? roots_[byte] : nodes_[static_cast<size_t>(node)].child) = next;
    }
    node = next;
  }
  int32_t& held = nodes_[static_cast<size_t>(node)].token;
  if (held < 0) held = token;
}

std::pair<int32_t, size_t> AddedTokenFinder::longest(std::string_view text, size_t at) const {
  int32_t node = roots_[static_cast<unsigned char>(text[at])], found = -1;
  size_t bytes = 0;
  for (size_t i = at; node >= 0; ++i) {
    if (nodes_[static_cast<size_t>(node)].token >= 0) {
      found = nodes_[static_cast<size_t>(node)].token;
      bytes = i + 1 - at;
    }
    if (i + 1 >= text.size()) break;
    const auto next = static_cast<unsigned char>(text[i + 1]);
    node = nodes_[static_cast<size_t>(node)].child;
    while (node >= 0 && nodes_[static_cast<size_t>(node)].byte != next)
      node = nodes_[static_cast<size_t>(node)].sibling;
  }
  return {found, bytes};
}

void AddedTokenFinder::operator()(std::string_view text, Specials specials, const Visit& visit) const {
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    const auto [index, bytes] = longest(text, at);
    if (index < 0) {
      ++at;
      continue;
    }
    size_t begin = at, end = at + bytes;
    at = end;
    const AddedToken& token = tokens_[static_cast<size_t>(index)];
    if (token.special && specials == Specials::are_text) continue;
    if (token.single_word &&
        ((begin > 0 && is_word(character(text, last_character(text.substr(0, begin))).first)) ||
         (end < text.size() && is_word(character(text, end).first))))
      continue;
    if (token.lstrip) begin = spaces_before(text, begin, done);
    if (token.rstrip) end = spaces_behind(text, end);
    if (begin > done) visit(text.substr(done, begin - done), nullptr);
    visit(text.substr(begin, end - begin), &token);
    done =
        end;  // the library goes on at the token's own end: white space taken with it may be a token as well
  }
  if (done < text.size()) visit(text.substr(done), nullptr);
}

}  // namespace osprey::bpe
