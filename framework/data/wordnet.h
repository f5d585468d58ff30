#pragma once
// Instruction data made of WordNet, as Debian's package dict-wn has it: what words mean, which word means
// something, synonyms, opposites, and words in use.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace osprey {

/// One meaning of a word.
struct WordSense {
  std::string part;  // "noun", "verb", "adjective", "adverb"
  std::string definition;
  std::vector<std::string> examples, synonyms, antonyms;
};
struct WordEntry {
  std::string word;
  std::vector<WordSense> senses;
};

/// The entries of a dictd dictionary of WordNet: a word at the beginning of a line, its senses in lines that
/// are indented by four spaces and go on in lines indented further. Errors: throws for text that holds no
/// entry.
std::vector<WordEntry> parse_wordnet(std::string_view text);

struct WordnetOptions {
  std::string dictionary = "/usr/share/dictd/wn.dict.dz";  // plain or compressed
  std::string output;                                      // a directory; must not exist
  int64_t words = 20'000;                                  // so many at most, drawn evenly
  double validation_fraction = 0.05;                       // of words
  uint64_t seed = 42;
};
struct WordnetSummary {
  int64_t words = 0, train_rows = 0, validation_rows = 0;
};
/// Writes train.jsonl and validation.jsonl, rows of instruction, input and output. All rows of a word are in
/// one of them, and no definition of the first stands in the second. The same options give the same bytes.
/// The directory appears by one rename. Errors: no such dictionary, an output that exists, too few words.
WordnetSummary write_wordnet(const WordnetOptions& options);

}  // namespace osprey
