#define PCRE2_CODE_UNIT_WIDTH 8
#include "framework/data/bpe/pattern.h"

#include <pcre2.h>

#include <cctype>
#include <vector>

#include "framework/files/file.h"
#include "kernels/core/check.h"

namespace osprey::bpe {
namespace {

/// Steps of one match, about half a second: published patterns take as many as there are characters in a
/// piece.
constexpr uint32_t kMatchLimit = 100'000'000;

/// Reads a pattern from left to right, and lets through only what both libraries read alike.
class Translator {
 public:
  Translator(std::string_view pattern, const std::string& where) : pattern_(pattern), where_(where) {}

  std::string run() {
    while (at_ < pattern_.size()) {
      const char c = pattern_[at_];
      if (c == '\\')
        escape();
      else if (c == '[')
        character_class();
      else if (c == '(')
        group();
      else if (c == '{')
        interval();
      else
        plain(c);
    }
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(std::string_view what) const {
    fail(where_,
         "the pattern '{}' has '{}', which is not understood; Osprey reads literals, classes, \\p, \\s, \\d, "
         "alternatives, (?:), (?i:), (?=), (?!) and their repetitions",
         shown(pattern_), shown(what));
  }
  std::string_view next(size_t bytes) const { return pattern_.substr(at_, bytes); }
  void take(size_t bytes) {
    out_ += next(bytes);
    at_ += bytes;
  }

  void plain(char c) {
    if (c == '^' || c == '$' || c == '.') refuse(next(1));  // lines and their ends differ
    if (c == ')' && !caseless_.empty()) caseless_.pop_back();
    take(1);
  }

  void escape() {
    if (at_ + 1 >= pattern_.size()) refuse(next(1));
    const char c = pattern_[at_ + 1];
    if (c == 's' || c == 'S') {
      // PCRE2 takes U+180E for white space; Unicode and Oniguruma do not.
      out_ += c == 's' ? "\\p{White_Space}" : "\\P{White_Space}";
      at_ += 2;
    } else if (c == 'p' || c == 'P') {
      const size_t end = pattern_.find('}', at_);
      if (next(3).back() != '{' || end == std::string_view::npos || end - at_ > 6) refuse(next(2));
      // Without regard to case a class of letters has other members in each library.
      if (!caseless_.empty() && caseless_.back()) refuse("(?i:" + std::string(next(end + 1 - at_)));
      for (size_t i = at_ + 3; i < end; ++i)  // L, Lu, N, Nd, ...: general categories
        if (!((pattern_[i] >= 'A' && pattern_[i] <= 'Z' && i == at_ + 3) ||
              (pattern_[i] >= 'a' && pattern_[i] <= 'z' && i == at_ + 4)))
          refuse(next(end + 1 - at_));
      take(end + 1 - at_);
    } else if (std::string_view("rntd").find(c) != std::string_view::npos || (c > 0 && std::ispunct(c))) {
      take(2);
    } else {
      refuse(next(2));
    }
  }

  void character_class() {
    take(1);
    if (next(1) == "^") take(1);
    bool empty = true;
    for (; at_ < pattern_.size(); empty = false) {
      const char c = pattern_[at_];
      if (c == ']') {
        if (empty) refuse("[]");
        take(1);
        return;
      }
      // A set in a set, [:name:] and && mean more in one library than in the other.
      if (c == '[' || next(2) == "&&") refuse(next(2));
      if (c == '\\')
        escape();
      else
        take(1);
    }
    refuse("[");
  }

  void group() {
    for (const std::string_view open : {"(?:", "(?=", "(?!", "(?i:"})
      if (next(open.size()) == open) {
        caseless_.push_back(open == "(?i:" || (!caseless_.empty() && caseless_.back()));
        return take(open.size());
      }
    if (next(2) == "(?" || next(2) == "(*") refuse(next(3));
    caseless_.push_back(!caseless_.empty() && caseless_.back());
    take(1);
  }

  void interval() {
    const size_t end = pattern_.find('}', at_);
    if (end == std::string_view::npos || end == at_ + 1) refuse("{");
    for (size_t i = at_ + 1; i < end; ++i)
      if (!(pattern_[i] >= '0' && pattern_[i] <= '9') && !(pattern_[i] == ',' && i > at_ + 1)) refuse("{");
    take(end + 1 - at_);
    // Possessive or lazy in PCRE2, a repetition of the repetition in Oniguruma.
    if (next(1) == "+" || next(1) == "?") refuse("}" + std::string(next(1)));
  }

  std::string_view pattern_;
  const std::string& where_;
  size_t at_ = 0;
  std::string out_;
  std::vector<bool> caseless_;  // of the groups that are open
};

}  // namespace

void PcreDelete::operator()(pcre2_code* p) const { pcre2_code_free(p); }
void PcreDelete::operator()(pcre2_match_context* p) const { pcre2_match_context_free(p); }
void PcreDelete::operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }

MatchSpace::MatchSpace() : data_(pcre2_match_data_create(1, nullptr)) {
  require(data_ != nullptr, "tokenizer", "there is no memory for a match");
}

std::string to_pcre(std::string_view oniguruma, const std::string& where) {
  return Translator(oniguruma, where).run();
}

Pattern::Pattern(const std::string& oniguruma, const std::string& where) : where_(where) {
  require(oniguruma.size() < 10'000, where, "the pattern has {} bytes, more than 10000", oniguruma.size());
  const std::string pattern = to_pcre(oniguruma, where);
  int error = 0;
  size_t at = 0;
  code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                            PCRE2_UTF | PCRE2_UCP, &error, &at, nullptr));
  if (!code_) {
    unsigned char said[160];
    pcre2_get_error_message(error, said, sizeof said);
    fail(where, "the pattern '{}' is wrong: {}", shown(oniguruma), reinterpret_cast<const char*>(said));
  }
  pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);  // where there is none, matching is slower and the same
  context_.reset(pcre2_match_context_create(nullptr));
  require(context_ != nullptr, where, "there is no memory for a match");
  pcre2_set_match_limit(context_.get(), kMatchLimit);
}

std::optional<Pattern::Match> Pattern::find(std::string_view text, size_t from, MatchSpace& space) const {
  const int found = pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                                PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, space.data_.get(), context_.get());
  if (found == PCRE2_ERROR_NOMATCH) return {};
  require(
      found >= 0, where_,
      "the pattern takes too long on a text of {} bytes (PCRE2 error {}); it is no pattern for splitting text",
      text.size(), found);
  const size_t* ends = pcre2_get_ovector_pointer(space.data_.get());
  return Match{ends[0], ends[1]};
}

}  // namespace osprey::bpe
