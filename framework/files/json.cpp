#include "framework/files/json.h"

#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "framework/files/file.h"
#include "kernels/core/check.h"

namespace osprey {

using nlohmann::json;

json parse_json(const std::string& where, std::string_view text, int most_depth) {
  std::vector<std::set<std::string>> keys;  // of every object that is open
  const auto watch = [&](int depth, json::parse_event_t event, json& parsed) {
    using Event = json::parse_event_t;
    if (event == Event::object_start || event == Event::array_start) {
      require(depth < most_depth, where, "is nested deeper than {} levels", most_depth);
      if (event == Event::object_start) keys.emplace_back();
    } else if (event == Event::key) {
      const std::string key = parsed.get<std::string>();
      require(keys.back().insert(key).second, where, "has the key '{}' twice", shown(key));
    } else if (event == Event::object_end) {
      keys.pop_back();
    }
    return true;
  };
  // The parser takes a NUL for the end of its input and would not look behind it.
  require(text.find('\0') == std::string_view::npos, where, "is not valid JSON: it holds a NUL");
  try {
    return json::parse(text.begin(), text.end(), watch);
  } catch (const json::exception& e) {
    const std::string said = e.what();  // "[json.exception.parse_error.101] parse error at ..."
    const size_t bracket = said.find("] ");
    fail(where, "is not valid JSON: {}; the file is damaged",
         shown(bracket == std::string::npos ? said : said.substr(bracket + 2)));
  }
}

json read_json(const std::filesystem::path& path, int64_t most_bytes, int most_depth) {
  return parse_json(path.string(), read_file(path, most_bytes), most_depth);
}

}  // namespace osprey
