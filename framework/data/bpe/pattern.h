#pragma once
// The regular expressions of tokenizer.json. They are written for the Oniguruma library; here PCRE2 matches
// them.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

struct pcre2_real_code_8;
struct pcre2_real_match_context_8;
struct pcre2_real_match_data_8;

namespace osprey::bpe {

struct PcreDelete {
  void operator()(pcre2_real_code_8* p) const;
  void operator()(pcre2_real_match_context_8* p) const;
  void operator()(pcre2_real_match_data_8* p) const;
};

/// Where a match is written; one for each thread.
class MatchSpace {
 public:
  MatchSpace();

 private:
  friend class Pattern;
  std::unique_ptr<pcre2_real_match_data_8, PcreDelete> data_;
};

/// Const members may be called from several threads at once.
class Pattern {
 public:
  /// Errors: syntax that PCRE2 and Oniguruma read differently, and syntax that is wrong; `where` is for
  /// messages.
  Pattern(const std::string& oniguruma, const std::string& where);

  struct Match {
    size_t begin, end;
  };
  /// The first match at or behind `from` that is not empty. `text` must be valid UTF-8 and `from` the
  /// beginning of a character. Errors: a pattern that backtracks without end.
  std::optional<Match> find(std::string_view text, size_t from, MatchSpace& space) const;

 private:
  std::string where_;
  std::unique_ptr<pcre2_real_code_8, PcreDelete> code_;
  std::unique_ptr<pcre2_real_match_context_8, PcreDelete> context_;
};

/// The same pattern for PCRE2. Errors: as the constructor's.
std::string to_pcre(std::string_view oniguruma, const std::string& where);

}  // namespace osprey::bpe
