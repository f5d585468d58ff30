#include "framework/data/text_reader.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "framework/data/byte_stream.h"
#include "framework/files/utf8.h"
#include "kernels/core/check.h"

namespace osprey {
namespace {

constexpr size_t kReadBytes = size_t{1} << 18;
constexpr size_t kMaxDocumentBytes = size_t{1} << 30;

bool is_jsonl(const std::string& path) {
  std::string name = path;
  for (const char* ending : {".gz", ".zst"})
    if (name.ends_with(ending)) name.resize(name.size() - std::strlen(ending));
  require(
      !name.ends_with(".json"), "prepare",
      "{} is JSON; documents are read of JSON lines, one object a line: give such a file as .jsonl, or say "
      "--format jsonl, or --format text to take it as it stands",
      path);
  return name.ends_with(".jsonl") || name.ends_with(".ndjson");
}

bool is_blank(std::string_view line) {
  return line.find_first_not_of(" \t\r\n\f\v") == std::string_view::npos;
}

/// Windows-1252 to UTF-8: bytes 0x80..0x9f are the printer's marks, above them it is Latin-1.
std::string from_windows1252(std::string_view text) {
  static constexpr uint16_t kMarks[32] = {0x20ac, 0x81,   0x201a, 0x0192, 0x201e, 0x2026, 0x2020, 0x2021,
                                          0x02c6, 0x2030, 0x0160, 0x2039, 0x0152, 0x8d,   0x017d, 0x8f,
                                          0x90,   0x2018, 0x2019, 0x201c, 0x201d, 0x2022, 0x2013, 0x2014,
                                          0x02dc, 0x2122, 0x0161, 0x203a, 0x0153, 0x9d,   0x017e, 0x0178};
  std::string out;
  out.reserve(text.size() + text.size() / 16);
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const uint32_t code = byte >= 0x80 && byte < 0xa0 ? kMarks[byte - 0x80] : byte;
    if (code < 0x80) {
      out.push_back(c);
    } else if (code < 0x800) {
      out.push_back(static_cast<char>(0xc0 | (code >> 6)));
      out.push_back(static_cast<char>(0x80 | (code & 0x3f)));
    } else {
      out.push_back(static_cast<char>(0xe0 | (code >> 12)));
      out.push_back(static_cast<char>(0x80 | ((code >> 6) & 0x3f)));
      out.push_back(static_cast<char>(0x80 | (code & 0x3f)));
    }
  }
  return out;
}

/// Takes away blank lines at both ends, and the newline of the last line.
void trim_blank_lines(std::string& text) {
  size_t end = text.find_last_not_of(" \t\r\n\f\v");
  if (end == std::string::npos) {
    text.clear();
    return;
  }
  text.resize(end + 1);
  const size_t first = text.find_first_not_of(" \t\r\n\f\v");
  const size_t line = text.rfind('\n', first);  // the first line keeps its indentation
  if (line != std::string::npos) text.erase(0, line + 1);
}

}  // namespace

/// The unread part of the file.
class TextReader::Buffer {
 public:
  explicit Buffer(const std::string& path) : stream_(open_bytes(path)) {}

  /// Bytes up to and including `mark`, or the rest of the file; empty at the end. Valid until the
  /// next call.
  std::string_view until(std::string_view mark, const std::string& path) {
    size_t from = begin_;
    for (;;) {
      const size_t at = bytes_.find(mark, from);
      if (at != std::string::npos) return take(at + mark.size() - begin_);
      // A mark may lie across two reads.
      const size_t unread = bytes_.size() - begin_;
      from = unread >= mark.size() ? bytes_.size() - (mark.size() - 1) : begin_;
      require(unread < kMaxDocumentBytes, "prepare",
              "{} has a line or document longer than {} MiB; is it text? split it with --documents or "
              "--document-separator",
              path, kMaxDocumentBytes >> 20);
      from -= begin_;
      bytes_.erase(0, begin_);
      begin_ = 0;
      if (stream_->read(bytes_, kReadBytes) == 0) return take(bytes_.size());
    }
  }

 private:
  std::string_view take(size_t count) {
    const std::string_view taken = std::string_view(bytes_).substr(begin_, count);
    begin_ += count;
    return taken;
  }

  std::unique_ptr<ByteStream> stream_;
  std::string bytes_;
  size_t begin_ = 0;
};

TextReader::TextReader(const std::string& path, const TextOptions& options)
    : path_(path),
      options_(options),
      jsonl_(options.format == TextOptions::Format::jsonl ||
             (options.format == TextOptions::Format::automatic && is_jsonl(path))),
      buffer_(std::make_unique<Buffer>(path)) {
  require(!options.separator || !options.separator->empty(), "prepare", "the document separator is empty");
}

TextReader::~TextReader() = default;

bool TextReader::next(std::string& text) {
  if (jsonl_) {
    std::string_view line;
    while (next_line(line))
      if (!is_blank(line) && accept_json(line, text)) return true;
    return false;
  }
  while (options_.separator ? next_separated(text) : next_raw(text))
    if (accept_text(text)) return true;
  return false;
}

bool TextReader::next_line(std::string_view& line) {
  line = buffer_->until("\n", path_);
  if (line.empty()) return false;
  if (++line_ == 1 && line.starts_with("\xef\xbb\xbf"))
    line.remove_prefix(3);  // a byte order mark is not text
  return true;
}

bool TextReader::next_raw(std::string& text) {
  using Documents = TextOptions::Documents;
  text = std::move(held_);
  held_.clear();
  document_line_ = text.empty() ? line_ + 1 : held_line_;
  std::string_view line;
  bool after_blank = false;
  while (next_line(line)) {
    const bool blank = is_blank(line);
    const bool indented = line[0] == ' ' || line[0] == '\t';
    const bool begins = after_blank && !text.empty() &&
                        ((options_.documents == Documents::entry && !blank && !indented) ||
                         (options_.documents == Documents::paragraph && !blank));
    if (begins) {
      held_ = line;
      held_line_ = line_;
      return true;
    }
    text += line;
    after_blank = blank;
    if (options_.documents == Documents::line) return true;
    require(text.size() <= kMaxDocumentBytes, "prepare",
            "{} has a document longer than {} MiB; split it with --documents or --document-separator", path_,
            kMaxDocumentBytes >> 20);
  }
  return !text.empty();
}

bool TextReader::next_separated(std::string& text) {
  document_line_ = line_ + 1;
  std::string_view part = buffer_->until(*options_.separator, path_);
  if (part.empty()) return false;
  line_ += std::count(part.begin(), part.end(), '\n');
  if (part.ends_with(*options_.separator)) part.remove_suffix(options_.separator->size());
  if (document_line_ == 1 && part.starts_with("\xef\xbb\xbf")) part.remove_prefix(3);
  text = part;
  return true;
}

bool TextReader::accept_json(std::string_view line, std::string& text) {
  const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return refuse(line_, "is not valid JSON"), false;
  const bool known =
      json.is_object() && json.contains(options_.text_key) && json[options_.text_key].is_string();
  if (!known)
    return refuse(line_, fmt::format("has no text under the key `{}` (--text-key)", options_.text_key)),
           false;
  text = json[options_.text_key].get<std::string>();
  trim_blank_lines(text);
  return !text.empty();
}

bool TextReader::accept_text(std::string& text) {
  if (options_.encoding == TextOptions::Encoding::windows1252) text = from_windows1252(text);
  if (const auto at = find_malformed_utf8(text)) {
    const int64_t line =
        document_line_ + std::count(text.begin(), text.begin() + static_cast<int64_t>(*at), '\n');
    refuse(line, fmt::format("is not UTF-8 (byte 0x{:02x}); older texts are often --encoding windows-1252",
                             static_cast<unsigned char>(text[*at])));
    return false;
  }
  trim_blank_lines(text);
  return !text.empty();
}

void TextReader::refuse(int64_t line, const std::string& what) {
  const std::string where = fmt::format("{}:{} {}", path_, line, what);
  require(options_.bad == TextOptions::Bad::skip, "prepare",
          "{}; mend the file, or leave such documents out with --skip-bad", where);
  if (skipped_++ == 0) first_skipped_ = where;
}

}  // namespace osprey
