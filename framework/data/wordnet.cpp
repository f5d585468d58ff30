#include "framework/data/wordnet.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "framework/data/byte_stream.h"
#include "framework/files/file.h"
#include "framework/files/utf8.h"
#include "kernels/core/check.h"
#include "kernels/core/random.h"
#include "kernels/numerics/random.h"

namespace osprey {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxBytes = size_t{1} << 30, kMaxDefinitionBytes = 160;

std::string_view trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \r;");
  return begin == std::string_view::npos ? std::string_view()
                                         : text.substr(begin, text.find_last_not_of(" \r;") + 1 - begin);
}

/// Takes "[syn: {a}, {b}]" out of a sense.
std::vector<std::string> take_words(std::string& sense, std::string_view mark) {
  std::vector<std::string> words;
  const size_t begin = sense.find(mark);
  const size_t end = begin == std::string::npos ? begin : sense.find(']', begin);
  if (end == std::string::npos) return words;
  for (size_t open = sense.find('{', begin); open < end; open = sense.find('{', open + 1)) {
    const size_t close = sense.find('}', open);
    if (close > end) break;
    words.push_back(sense.substr(open + 1, close - open - 1));
  }
  sense.erase(begin, end + 1 - begin);
  return words;
}

/// "n 1: a bird; \"an example\" [syn: {x}]" after a sense of `part`.
WordSense parse_sense(std::string text, const std::string& part) {
  WordSense sense{.part = part, .definition = {}, .examples = {}, .synonyms = {}, .antonyms = {}};
  sense.synonyms = take_words(text, "[syn:");
  sense.antonyms = take_words(text, "[ant:");
  const size_t colon = text.find(": "), quote = text.find("; \"");
  const std::string_view all = text;
  sense.definition = trimmed(all.substr(colon + 2, quote == std::string::npos ? quote : quote - colon - 2));
  for (size_t open = quote == std::string::npos ? quote : quote + 2; open != std::string::npos;) {
    const size_t close = text.find('"', open + 1);
    if (close == std::string::npos) break;
    sense.examples.emplace_back(all.substr(open + 1, close - open - 1));
    open = text.find('"', close + 1);
  }
  return sense;
}

/// The part of speech that "n 1: ..." begins with; `before` where it only has a number; empty for other text.
std::string part_of(std::string_view text, const std::string& before) {
  const size_t colon = text.find(": ");
  if (colon == std::string_view::npos) return {};
  std::string_view head = text.substr(0, colon);
  std::string part = before;
  for (const auto& [mark, name] :
       {std::pair{"n ", "noun"}, {"v ", "verb"}, {"adj ", "adjective"}, {"adv ", "adverb"}})
    if (head.starts_with(mark)) {
      part = name;
      head.remove_prefix(std::string_view(mark).size());
    }
  const bool number = !head.empty() && head.find_first_not_of("0123456789") == std::string_view::npos;
  return number ? part : std::string();
}

/// A word that a dictionary for learners would have: lower-case letters and hyphens.
bool plain(const std::string& word) {
  return word.size() >= 3 && word.find_first_not_of("abcdefghijklmnopqrstuvwxyz-") == std::string::npos &&
         word.front() != '-';
}

struct Row {
  std::string instruction, input, output;
};

/// What can be asked of a word, by its first sense of each part of speech.
std::vector<Row> rows_of(const WordEntry& entry, std::vector<std::string>& definitions) {
  std::vector<Row> rows;
  std::set<std::string> parts;
  for (const WordSense& s : entry.senses) {
    if (!parts.insert(s.part).second || s.definition.empty() || s.definition.size() > kMaxDefinitionBytes)
      continue;
    const std::string& word = entry.word;
    definitions.push_back(s.definition);
    rows.push_back({fmt::format("Define the {} {}.", s.part, word), "", s.definition});
    rows.push_back({fmt::format("Which {} has this meaning?", s.part), s.definition, word});
    const auto other = [&](const std::string& w) { return w != word && plain(w); };
    if (const auto synonym = std::find_if(s.synonyms.begin(), s.synonyms.end(), other);
        synonym != s.synonyms.end())
      rows.push_back({fmt::format("Give a synonym of the {} {}.", s.part, word), "", *synonym});
    if (const auto antonym = std::find_if(s.antonyms.begin(), s.antonyms.end(), other);
        antonym != s.antonyms.end())
      rows.push_back({fmt::format("What is the opposite of the {} {}?", s.part, word), "", *antonym});
    const auto uses = [&](const std::string& e) { return e.find(word) != std::string::npos; };
    if (const auto example = std::find_if(s.examples.begin(), s.examples.end(), uses);
        example != s.examples.end())
      rows.push_back({fmt::format("Use the {} {} in a few words.", s.part, word), "", *example});
  }
  return rows;
}

std::string read_dictionary(const std::string& path) {
  std::error_code ignored;
  require(fs::exists(path, ignored), "wordnet",
          "{} does not exist; install Debian's package dict-wn, or name the dictionary with --dictionary",
          path);
  const auto stream = open_bytes(path);
  std::string text;
  while (stream->read(text, size_t{1} << 20) > 0)
    require(text.size() <= kMaxBytes, "wordnet", "{} is larger than {} MiB; is it WordNet?", path,
            kMaxBytes >> 20);
  require(!find_malformed_utf8(text), "wordnet", "{} is not UTF-8 text; is it WordNet?", path);
  return text;
}

}  // namespace

std::vector<WordEntry> parse_wordnet(std::string_view text) {
  constexpr size_t kIndent = 4;
  std::vector<WordEntry> entries;
  std::string sense, part;  // the sense at hand, its lines joined
  const auto close = [&] {
    if (!sense.empty()) entries.back().senses.push_back(parse_sense(std::move(sense), part));
    sense.clear();
  };
  while (!text.empty()) {
    const size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end), body = trimmed(line);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    if (body.empty()) continue;
    const size_t indent = line.find_first_not_of(' ');
    if (indent == 0) {
      close();
      entries.push_back({std::string(body), {}});
      part.clear();
    } else if (const std::string begun = indent == kIndent ? part_of(body, part) : std::string();
               !begun.empty() && !entries.empty()) {
      close();
      part = begun;
      sense = line.substr(indent);
    } else if (!sense.empty()) {
      sense += ' ';
      sense += line.substr(indent);
    }
  }
  close();
  std::erase_if(entries, [](const WordEntry& e) { return e.senses.empty(); });
  require(!entries.empty(), "wordnet",
          "the text holds no entry; is it the dictionary of Debian's package dict-wn?");
  return entries;
}

WordnetSummary write_wordnet(const WordnetOptions& options) {
  require(!options.output.empty(), "wordnet", "no --output directory is named");
  require(options.words >= 2 && options.validation_fraction > 0 && options.validation_fraction < 1, "wordnet",
          "--words must be 2 or more and --validation-fraction between 0 and 1; got {} and {}", options.words,
          options.validation_fraction);
  std::error_code ignored;
  require(!fs::exists(options.output, ignored), "wordnet",
          "{} exists already; name another --output or remove it", options.output);
  std::vector<WordEntry> entries = parse_wordnet(read_dictionary(options.dictionary));
  std::erase_if(entries, [](const WordEntry& e) { return !plain(e.word); });
  // By a hash of the word: whether one is drawn does not depend on the others.
  const uint64_t drawn = stream_of("words"), held_out = stream_of("words held out");
  const auto draw = [&](uint64_t stream, const WordEntry& e) {
    return random_u64(options.seed, stream, stream_of(e.word));
  };
  std::sort(entries.begin(), entries.end(), [&](const WordEntry& a, const WordEntry& b) {
    return std::pair(draw(drawn, a), a.word) < std::pair(draw(drawn, b), b.word);
  });
  entries.resize(std::min(entries.size(), static_cast<size_t>(options.words)));

  std::string files[2];
  WordnetSummary summary{.words = static_cast<int64_t>(entries.size())};
  std::set<std::string> seen;  // definitions of training rows
  for (const bool validation : {false, true})
    for (const WordEntry& e : entries) {
      const double u = static_cast<double>(draw(held_out, e) >> 11) * 0x1p-53;
      if ((u < options.validation_fraction) != validation) continue;
      std::vector<std::string> definitions;
      const std::vector<Row> rows = rows_of(e, definitions);
      const auto known = [&](const std::string& d) { return seen.contains(d); };
      if (validation && std::any_of(definitions.begin(), definitions.end(), known)) continue;
      if (!validation) seen.insert(definitions.begin(), definitions.end());
      for (const Row& r : rows) {
        const nlohmann::ordered_json row = {
            {"instruction", r.instruction}, {"input", r.input}, {"output", r.output}};
        files[validation] += row.dump() + "\n";
        ++(validation ? summary.validation_rows : summary.train_rows);
      }
    }
  require(summary.train_rows > 0 && summary.validation_rows > 0, "wordnet",
          "{} words leave {} rows to train on and {} to validate on; raise --words or --validation-fraction",
          summary.words, summary.train_rows, summary.validation_rows);
  const fs::path partial = options.output + ".partial";
  fs::remove_all(partial);
  fs::create_directories(partial);
  write_file(partial / "train.jsonl", files[0]);
  write_file(partial / "validation.jsonl", files[1]);
  sync_directory(partial);
  fs::rename(partial, options.output);
  return summary;
}

}  // namespace osprey
