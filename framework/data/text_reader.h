#pragma once
// Files of text or JSON lines as a run of documents.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace osprey {

struct TextOptions {
  enum class Format {
    automatic,
    text,
    jsonl
  };  // automatic: by name, .jsonl and .ndjson are JSON lines, .json is refused
  enum class Documents {
    file,       // the whole file
    line,       // every line
    paragraph,  // runs of lines between blank lines
    entry,      // an unindented line after a blank line begins the next: dictionaries
  };
  enum class Encoding { utf8, windows1252 };
  enum class Bad { refuse, skip };

  Format format = Format::automatic;
  Documents documents = Documents::file;
  std::optional<std::string> separator = {};  // stands between documents, instead of `documents`
  std::string text_key = "text";              // of JSON lines
  Encoding encoding = Encoding::utf8;
  Bad bad = Bad::refuse;
};

/// Documents of one file in order, as valid UTF-8 with blank lines at both ends taken away; empty
/// ones are left out. Errors: malformed UTF-8 or JSON names the file and line, unless bad is skip,
/// which counts them.
class TextReader {
 public:
  TextReader(const std::string& path, const TextOptions& options);
  ~TextReader();

  /// Replaces `text` with the next document; false at the end.
  bool next(std::string& text);
  int64_t skipped() const { return skipped_; }
  /// What was wrong with the first document that was skipped; empty when none was.
  const std::string& first_skipped() const { return first_skipped_; }

 private:
  class Buffer;
  bool next_line(std::string_view& line);
  bool next_raw(std::string& text);
  bool next_separated(std::string& text);
  bool accept_json(std::string_view line, std::string& text);
  bool accept_text(std::string& text);
  void refuse(int64_t line, const std::string& what);

  std::string path_;
  TextOptions options_;
  bool jsonl_;
  std::unique_ptr<Buffer> buffer_;
  std::string held_;           // a line that begins the next document
  int64_t line_ = 0;           // lines read so far
  int64_t document_line_ = 0;  // where the document at hand begins
  int64_t held_line_ = 0;
  int64_t skipped_ = 0;
  std::string first_skipped_;
};

}  // namespace osprey
