#pragma once
// A file of JSON cut into its rows: JSON lines, or the elements of one array.

#include <cstdint>
#include <string>
#include <string_view>

namespace osprey {

/// The text of one row, and the line that it begins on, from 1.
struct JsonRecord {
  int64_t line = 0;
  std::string_view text;
};

/// Rows of `bytes` in order, views of it, not parsed yet. A byte order mark, blank lines and carriage returns
/// are passed over. A file that begins with `[` is one array, on however many lines.
class JsonRecords {
 public:
  /// `name` is for messages.
  JsonRecords(std::string_view bytes, std::string name);

  /// False at the end. Errors: an array that is not closed, or followed by more.
  bool next(JsonRecord& record);

 private:
  bool next_line(JsonRecord& record);
  bool next_element(JsonRecord& record);
  void skip_space();
  size_t element_end() const;

  std::string_view rest_;
  std::string name_;
  int64_t line_ = 1;  // of the first byte of `rest_`
  bool array_ = false, closed_ = false;
};

/// \uD800 to \uDFFF that pair with nothing become \uFFFD, for JSON knows no half characters: `text` itself
/// where there are none, otherwise a copy in `scratch`.
std::string_view mend_surrogates(std::string_view text, std::string& scratch);

}  // namespace osprey
